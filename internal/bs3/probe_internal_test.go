package bs3

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy/objtest"
)

// probe returns the outcome of a Probe, or late if it takes too long.
func probe(t *testing.T, e *Engine, late error) error {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
	defer cancel()
	return e.Probe(ctx)
}

// While the store is away everything that needs it waits, for however long,
// and the volume still moves.
func TestProbeWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := make(chan struct{})
		o := tinyOptions(t)
		hooks := &objtest.Hooks{Inner: o.Store}
		o.Store = hooks
		e, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		stored := make([]byte, 512)
		if err := errors.Join(e.WriteAt(t.Context(), stored, 0), e.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		hooks.Before = func(context.Context, objtest.Op) error { <-away; return nil }
		var waiting sync.WaitGroup
		for i := range 100 { // more than chunk memory takes
			waiting.Go(func() {
				if err := e.WriteAt(t.Context(), make([]byte, 512), int64(1+i)*512); err != nil {
					t.Error(err)
				}
			})
		}
		waiting.Go(func() {
			if err := errors.Join(e.ReadAt(t.Context(), stored, 0), e.Flush(t.Context())); err != nil {
				t.Error(err)
			}
			if _, err := e.GC(t.Context()); err != nil {
				t.Error(err)
			}
		})
		for range 10 {
			time.Sleep(time.Minute)
			if err := probe(t, e, errors.New("blocked")); err != nil {
				t.Fatalf("a volume whose store is away does not move: %v", err)
			}
		}
		if s := e.Status(); s.WritersWaiting == 0 || s.FreeSlots != 0 {
			t.Errorf("chunk memory is not full: %+v", s)
		}
		close(away)
		waiting.Wait()
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := probe(t, e, errors.New("blocked")); err != nil {
			t.Errorf("a closed volume: %v", err)
		}
	})
}

func TestOpenProgress(t *testing.T) {
	o := tinyOptions(t)
	o.StatePath = t.TempDir()
	var hold atomic.Bool // puts do not get through
	o.Store = &objtest.Hooks{Inner: o.Store, Before: func(ctx context.Context, op objtest.Op) error {
		if op.Kind == objtest.Put && hold.Load() {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	}}
	var seen []OpenProgress
	o.Progress = func(p OpenProgress) { seen = append(seen, p) }
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(seen, OpenProgress{Stage: "trying the store"}) {
		t.Errorf("a new volume: %v", seen)
	}
	for i := range 3 { // an object each
		if err := errors.Join(e.WriteAt(t.Context(), make([]byte, 512), int64(i)*512), e.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	hold.Store(true)
	for i := range 2 { // in chunk memory
		if err := e.WriteAt(t.Context(), make([]byte, 512), int64(i)*512); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Close(gone); err == nil {
		t.Fatal("the engine was to die")
	}
	seen = nil
	hold.Store(false)
	if e, err = Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	want := []OpenProgress{
		{Stage: "reading the checkpoint"},
		{"reading the log", 1, 0}, // the fence
		{"reading the log", 2, 0}, {"reading the log", 3, 0}, {"reading the log", 4, 0},
		{"replaying writes", 1, 2}, {"replaying writes", 2, 2},
	}
	if !slices.Equal(seen, want) {
		t.Errorf("%v, want %v", seen, want)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// The watchdog looks after a volume that was closed, cleanly or not: its chunk
// memory and its cache are not mapped any more.
func TestProbeAfterClose(t *testing.T) {
	for _, clean := range []bool{true, false} {
		o := tinyOptions(t)
		hooks := &objtest.Hooks{Inner: o.Store}
		o.Store, o.StatePath, o.ReadCache = hooks, t.TempDir(), 1<<20
		e, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if clean {
			err = errors.Join(e.WriteAt(ctx, make([]byte, 512), 0), e.Flush(ctx)) // now it is in the cache
		} else {
			hooks.Before = func(ctx context.Context, _ objtest.Op) error { <-ctx.Done(); return ctx.Err() }
			err = e.WriteAt(ctx, make([]byte, 512), 0)
			cancel()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(ctx); (err == nil) != clean {
			t.Fatal(err)
		}
		if err := probe(t, e, errors.New("blocked")); err != nil {
			t.Error(err)
		}
	}
}
