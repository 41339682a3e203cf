package objproxy

import (
	"context"
	"io"
	"sync"
)

// Late is a Store that its first request opens, so that a caller who retries
// waits in the same way for a directory or bucket that is missing as for a
// store that does not answer. It is safe for concurrent use.
type Late struct {
	open   func(context.Context) (Store, error)
	turn   chan struct{} // holds a token while somebody opens the store
	opened chan struct{} // closed when store is set
	store  Store
	close  func() error // of store, once
}

// NewLate makes a Late of open, which requests call, one at a time, until it
// succeeds. Where it fails, the request fails with its error.
func NewLate(open func(context.Context) (Store, error)) *Late {
	l := &Late{open: open, turn: make(chan struct{}, 1), opened: make(chan struct{})}
	l.close = sync.OnceValue(func() error { return Close(l.store) })
	return l
}

// Close closes s if it has something to close.
func Close(s Store) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Close closes the store, if it was opened; closing it again changes nothing.
// No request may be under way, or follow.
func (l *Late) Close() error {
	select {
	case <-l.opened:
		return l.close()
	default:
		return nil
	}
}

// get returns the store, and opens it if nobody has done that yet.
func (l *Late) get(ctx context.Context) (Store, error) {
	select {
	case <-l.opened:
		return l.store, nil
	default:
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-l.opened: // by the one whose turn it was before
		return l.store, nil
	default:
	}
	store, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	l.store = store
	close(l.opened)
	return store, nil
}

// Put implements Store.
func (l *Late) Put(ctx context.Context, name string, body Body, cond Condition) (Version, error) {
	store, err := l.get(ctx)
	if err != nil {
		return "", err
	}
	return store.Put(ctx, name, body, cond)
}

// Get implements Store.
func (l *Late) Get(ctx context.Context, name string, p []byte, off int64) (int, Info, error) {
	store, err := l.get(ctx)
	if err != nil {
		return 0, Info{}, err
	}
	return store.Get(ctx, name, p, off)
}

// List implements Store.
func (l *Late) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	store, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return store.List(ctx, prefix, after, limit)
}

// Delete implements Store.
func (l *Late) Delete(ctx context.Context, names []string) error {
	store, err := l.get(ctx)
	if err != nil {
		return err
	}
	return store.Delete(ctx, names)
}
