package objproxy

import (
	"container/list"
	"context"
	"fmt"
	"sync"
)

type classKey struct{}

// Background marks the requests made under ctx as background work (garbage
// collection, checkpoints): they come after everything that a user waits for.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, classKey{}, true)
}

func isBackground(ctx context.Context) bool {
	b, _ := ctx.Value(classKey{}).(bool)
	return b
}

// Priority is a Store that bounds how many requests run at once, in two classes:
// a user's requests go before those of Background contexts, first in first out
// within a class. Background work holds at most half of the slots (at least
// one), so a user rarely finds all slots taken, and never all by background work
// unless there is only one slot.
//
// Deletes have a slot of their own: in a store that is full they make the room
// that the Puts wait for.
//
// It should wrap a Retry, not be wrapped by one: a request that waits for its
// next try then keeps its slot, so a broken store sees no more requests than a
// healthy one.
type Priority struct {
	inner            Store
	up, down, remove *slots
}

// NewPriority returns a Priority that lets at most uploaders Puts, downloaders
// Gets and Lists, and one Delete through to inner at once. Both must be at least
// 1.
func NewPriority(inner Store, uploaders, downloaders int) *Priority {
	return &Priority{inner: inner, up: newSlots(uploaders), down: newSlots(downloaders), remove: newSlots(1)}
}

// Put implements Store.
func (s *Priority) Put(ctx context.Context, name string, body Body, cond Condition) (Version, error) {
	release, err := s.up.acquire(ctx)
	if err != nil {
		return "", fmt.Errorf("put %s: wait for an upload slot: %w", name, err)
	}
	defer release()
	return s.inner.Put(ctx, name, body, cond)
}

// Get implements Store.
func (s *Priority) Get(ctx context.Context, name string, p []byte, off int64) (int, Info, error) {
	release, err := s.down.acquire(ctx)
	if err != nil {
		return 0, Info{}, fmt.Errorf("get %s: wait for a download slot: %w", name, err)
	}
	defer release()
	return s.inner.Get(ctx, name, p, off)
}

// List implements Store.
func (s *Priority) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	release, err := s.down.acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("list %s: wait for a download slot: %w", prefix, err)
	}
	defer release()
	return s.inner.List(ctx, prefix, after, limit)
}

// Delete implements Store.
func (s *Priority) Delete(ctx context.Context, names []string) error {
	release, err := s.remove.acquire(ctx)
	if err != nil {
		return fmt.Errorf("delete %d objects: wait for the slot of deletes: %w", len(names), err)
	}
	defer release()
	return s.inner.Delete(ctx, names)
}

// slots is a semaphore with two classes of waiters.
type slots struct {
	mu            sync.Mutex
	free          int
	background    int // slots held by background work
	maxBackground int
	users, others list.List // of chan struct{}, closed when a slot is granted
}

func newSlots(n int) *slots {
	return &slots{free: n, maxBackground: max(1, n/2)}
}

func (s *slots) acquire(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	bg := isBackground(ctx)
	queue := &s.users
	if bg {
		queue = &s.others
	}
	granted := make(chan struct{})
	s.mu.Lock()
	e := queue.PushBack(granted)
	s.grant()
	s.mu.Unlock()

	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.free++
		if bg {
			s.background--
		}
		s.grant()
	}
	select {
	case <-granted:
		return release, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-granted: // both happened: the slot goes to the next
		s.mu.Unlock()
		release()
	default:
		queue.Remove(e)
		s.mu.Unlock()
	}
	return nil, ctx.Err()
}

// grant assigns free slots to waiting requests. The caller holds s.mu.
func (s *slots) grant() {
	for s.free > 0 {
		queue := &s.users
		if queue.Len() == 0 {
			if s.others.Len() == 0 || s.background == s.maxBackground {
				return
			}
			queue = &s.others
			s.background++
		}
		s.free--
		close(queue.Remove(queue.Front()).(chan struct{}))
	}
}
