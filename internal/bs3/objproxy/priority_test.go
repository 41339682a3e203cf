package objproxy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

func TestPriorityContract(t *testing.T) {
	objtest.Suite(t, func(*testing.T) objproxy.Store {
		return objproxy.NewPriority(objtest.NewMemory(), 1, 1)
	})
}

// busy is a store each of whose calls takes a second. It records in which order
// they came in and how many of which kind ran at once.
type busy struct {
	*objtest.Hooks
	mu                         sync.Mutex
	order                      []string
	now, most                  map[bool]int // by objtest.Op.Changes
	background, mostBackground int
}

func newBusy() *busy {
	b := &busy{now: make(map[bool]int), most: make(map[bool]int)}
	isBackground := func(op objtest.Op) bool { return strings.HasPrefix(op.Name, "bg") }
	b.Hooks = &objtest.Hooks{
		Inner: objtest.NewMemory(),
		Before: func(_ context.Context, op objtest.Op) error {
			b.mu.Lock()
			b.order = append(b.order, op.Name)
			b.now[op.Changes()]++
			b.most[op.Changes()] = max(b.most[op.Changes()], b.now[op.Changes()])
			if isBackground(op) {
				b.background++
				b.mostBackground = max(b.mostBackground, b.background)
			}
			b.mu.Unlock()
			time.Sleep(time.Second)
			return nil
		},
		After: func(_ context.Context, op objtest.Op, err error) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.now[op.Changes()]--
			if isBackground(op) {
				b.background--
			}
			return err
		},
	}
	return b
}

// TestPriorityOrder checks the order: users first, then background, first in
// first out.
func TestPriorityOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBusy()
		p := objproxy.NewPriority(b, 1, 1)
		var wg sync.WaitGroup
		put := func(ctx context.Context, name string) {
			wg.Go(func() {
				if _, err := p.Put(ctx, name, objproxy.Body{}, objproxy.Condition{}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // so that the order of arrival is known
		}
		put(t.Context(), "first")
		for i := range 3 {
			put(objproxy.Background(t.Context()), fmt.Sprint("bg", i))
		}
		for i := range 3 {
			put(t.Context(), fmt.Sprint("user", i))
		}
		wg.Wait()
		if got := fmt.Sprint(b.order); got != "[first user0 user1 user2 bg0 bg1 bg2]" {
			t.Errorf("order is %s", got)
		}
	})
}

// TestPriorityLimits checks that as many requests run at once as there are slots,
// uploads apart from downloads, and background work in half of them.
func TestPriorityLimits(t *testing.T) {
	for _, c := range []struct{ up, down, mostBackgroundUp int }{{4, 6, 2}, {1, 1, 1}, {3, 2, 1}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBusy()
			p := objproxy.NewPriority(b, c.up, c.down)
			start := time.Now()
			var wg sync.WaitGroup
			for i := range 2 * c.mostBackgroundUp {
				wg.Go(func() {
					_, err := p.Put(objproxy.Background(t.Context()), fmt.Sprint("bg", i), objproxy.Body{}, objproxy.Condition{})
					if err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			if b.background != c.mostBackgroundUp {
				t.Errorf("%d slots for background work of %d, want %d", b.background, c.up, c.mostBackgroundUp)
			}
			for i := range 3 * c.up {
				wg.Go(func() {
					if _, err := p.Put(t.Context(), fmt.Sprint("user", i), objproxy.Body{}, objproxy.Condition{}); err != nil {
						t.Error(err)
					}
				})
			}
			for i := range 3 * c.down {
				wg.Go(func() {
					var err error
					if i%2 == 0 {
						_, _, err = p.Get(t.Context(), "user", nil, 0)
					} else {
						_, err = p.List(t.Context(), "user", "", 1)
					}
					if err != nil && !errors.Is(err, objproxy.ErrNotFound) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if b.most[true] != c.up || b.most[false] != c.down {
				t.Errorf("%d uploads and %d downloads at once, want %d and %d", b.most[true], b.most[false], c.up, c.down)
			}
			if b.mostBackground != c.mostBackgroundUp {
				t.Errorf("%d background at once, want %d", b.mostBackground, c.mostBackgroundUp)
			}
			// 3·up user requests and 2·bg background ones keep every slot busy,
			// except at the end, when background work has half of them.
			if took := time.Since(start); took > 6*time.Second {
				t.Errorf("took %v: slots stood empty", took)
			}
		})
	}
}

// TestPriorityDeletesPass checks that a Delete does not wait for Puts, which may
// wait for the room that it makes.
func TestPriorityDeletesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(ctx context.Context, op objtest.Op) error {
			if op.Kind != objtest.Put {
				return nil
			}
			<-ctx.Done() // there is no room
			return ctx.Err()
		}}
		p := objproxy.NewPriority(s, 2, 2)
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() { _, _ = p.Put(ctx, fmt.Sprint(i), objproxy.Body{}, objproxy.Condition{}) })
		}
		synctest.Wait()
		deleted := make(chan error, 1)
		go func() { deleted <- p.Delete(objproxy.Background(ctx), []string{"old"}) }()
		synctest.Wait()
		select {
		case err := <-deleted:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("a delete waits for puts")
		}
		cancel()
		wg.Wait()
	})
}

// TestPriorityCancel checks that a request that stops waiting leaves no trace,
// and that a slot granted at that moment is not lost.
func TestPriorityCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBusy()
		p := objproxy.NewPriority(b, 3, 3)
		r := rand.New(rand.NewPCG(1, 2))
		var wg sync.WaitGroup
		var cancelled, done int
		var mu sync.Mutex
		for i := range 500 {
			// Calls end at whole seconds, and so do many contexts.
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(40))*time.Second)
			name := "user"
			if i%3 == 0 {
				ctx, name = objproxy.Background(ctx), "bg"
			}
			time.Sleep(time.Duration(r.IntN(3)) * 50 * time.Millisecond)
			wg.Go(func() {
				defer cancel()
				_, err := p.Put(ctx, name, objproxy.Body{}, objproxy.Condition{})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					done++
				case errors.Is(err, context.DeadlineExceeded):
					cancelled++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if cancelled < 50 || done < 50 {
			t.Errorf("%d calls gave up and %d were done: not what this test is about", cancelled, done)
		}
		if b.most[true] > 3 {
			t.Errorf("%d at once", b.most[true])
		}
		// Every slot is still there.
		start := time.Now()
		for range 3 {
			wg.Go(func() {
				if _, err := p.Put(t.Context(), "user", objproxy.Body{}, objproxy.Condition{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("three calls in three slots took %v", took)
		}
	})
}

// TestPriorityHolds checks that a request that waits for its next try keeps its
// slot, and releases it when its ctx ends.
func TestPriorityHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := failing(times(1000, errFlaky))
		p := objproxy.NewPriority(objproxy.NewRetry(s, objproxy.RetryOptions{}), 1, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := p.List(ctx, "", "", 1); !errors.Is(err, errFlaky) {
				t.Errorf("want the store's error, got %v", err)
			}
		})
		synctest.Wait()
		short, cancelShort := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancelShort()
		_, err := p.List(short, "", "", 1)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errFlaky) {
			t.Errorf("the second call was let through: %v", err)
		}
		wg.Wait()
		short, cancelShort = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancelShort()
		if _, err := p.List(short, "", "", 1); !errors.Is(err, errFlaky) {
			t.Errorf("the slot was not given back: %v", err)
		}
	})
}
