package objtest

import (
	"context"
	"sync"
	"sync/atomic"

	"bs3/internal/bs3/objproxy"
)

// Recorder is a Store that remembers the calls made through it.
type Recorder struct {
	Hooks
	mu    sync.Mutex
	calls []Call
}

// Call is a call that was answered.
type Call struct {
	Op
	Err error
}

// NewRecorder returns a Recorder around inner.
func NewRecorder(inner objproxy.Store) *Recorder {
	r := &Recorder{}
	r.Hooks = Hooks{Inner: inner, After: func(_ context.Context, op Op, err error) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls = append(r.calls, Call{Op: op, Err: err})
		return err
	}}
	return r
}

// Calls returns what was recorded, in the order of the answers.
func (r *Recorder) Calls() []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Call(nil), r.calls...)
}

// Count returns how many calls of one kind were recorded.
func (r *Recorder) Count(kind Kind) int {
	n := 0
	for _, c := range r.Calls() {
		if c.Kind == kind {
			n++
		}
	}
	return n
}

// Reset forgets what was recorded.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = nil
}

// FailNth is a Store of which one call fails. A test runs its scenario with
// n = 1, 2, 3, … until Fired returns false: then every call had its turn.
type FailNth struct {
	Hooks
	calls atomic.Int64
	n     int64
}

// NewFailNth returns a FailNth around inner whose nth call (from 1) fails with
// err; if applied is true, after the call was made, as if its answer was lost.
func NewFailNth(inner objproxy.Store, n int, err error, applied bool) *FailNth {
	f := &FailNth{n: int64(n)}
	f.Inner = inner
	if applied {
		f.After = func(_ context.Context, _ Op, answer error) error {
			if f.calls.Add(1) == f.n {
				return err
			}
			return answer
		}
		return f
	}
	f.Before = func(context.Context, Op) error {
		if f.calls.Add(1) == f.n {
			return err
		}
		return nil
	}
	return f
}

// Fired reports whether the nth call was made.
func (f *FailNth) Fired() bool { return f.calls.Load() >= f.n }
