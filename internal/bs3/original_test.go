package bs3_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// The ways in which the system that this one follows loses data in its garbage
// collection. The others are tests of the real daemon and of device/buse, see
// docs/TESTING.md.

// litter writes a volume so that a collection finds something to move.
func litter(t *testing.T, e *bs3.Engine) *shadow {
	t.Helper()
	s := newShadow(e)
	s.some(t, e, rand.New(rand.NewPCG(7, 7)), 400)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// crash ends e and opens the volume with nothing but its store.
func crash(t *testing.T, e *bs3.Engine, o bs3.Options) *bs3.Engine {
	t.Helper()
	kill(t, e)
	if err := os.RemoveAll(o.StatePath); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

// Failure 2: after a collection and a crash, blocks of 4096 bytes were read
// from where units of 512 had been.
func TestOriginalCrashAfterGC(t *testing.T) {
	o := gcOptions(t, objtest.NewMemory())
	o.BlockSize, o.ChunkSize = 4096, 8*4096
	o.Size, o.Memory = 1000*blockSize/4096*4096, 6*8*4096
	e := open(t, o)
	p := make([]byte, o.Size)
	fill := func(from, step int) {
		for b := from; b*4096 < len(p); b += step {
			p[b*4096+b%4096] = byte(from + step)
			if err := e.WriteAt(t.Context(), p[b*4096:][:4096], int64(b*4096)); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(0, 1)
	fill(1, 3)
	fill(2, 3)
	report, err := e.GC(t.Context())
	if err != nil || report.MovedBytes == 0 || report.Deleted == 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	e = crash(t, e, o)
	(&shadow{p}).compare(t, e)
	shut(t, e)
}

// Failure 3: an upload of the collection failed, its key stayed a hole, and the
// next start took the hole for the end of the log.
func TestOriginalUploadOfGCFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hole atomic.Int64 // the key that cannot be stored; below 0 = every key can
		hole.Store(-1)
		hooks := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(_ context.Context, op objtest.Op) error {
			if k, err := key.Parse(op.Name); err == nil && op.Kind == objtest.Put && int64(k) == hole.Load() {
				return objproxy.ErrTransient
			}
			return nil
		}}
		o := gcOptions(t, objproxy.NewRetry(hooks, objproxy.RetryOptions{}))
		e := open(t, o)
		s := litter(t, e)
		hole.Store(int64(e.Status().NextKey))
		collected, flushed := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := e.GC(t.Context())
			collected <- err
		}()
		time.Sleep(time.Second) // of the bubble's time: the collection waits for the store
		later := *s
		later.bytes = append([]byte(nil), s.bytes...)
		later.write(t, e, rand.New(rand.NewPCG(8, 8)), 5, 2)
		go func() { flushed <- e.Flush(t.Context()) }()
		time.Sleep(time.Minute)
		if len(collected)+len(flushed) > 0 {
			t.Fatal("a flush, or the collection, came to an end over a hole in the log")
		}
		kill(t, e)
		hole.Store(-1)
		e = open(t, o) // with its chunk memory
		later.compare(t, e)
		e = crash(t, e, o)
		later.compare(t, e)
		shut(t, e)
	})
}

// Failure 4: a download of the collection failed, and what the buffer held was
// stored over good data.
func TestOriginalDownloadOfGCFails(t *testing.T) {
	broken := errors.New("broken")
	var fail atomic.Bool
	hooks := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(_ context.Context, op objtest.Op) error {
		if _, err := key.Parse(op.Name); err == nil && op.Kind == objtest.Get && fail.Load() {
			return broken
		}
		return nil
	}}
	o := gcOptions(t, hooks)
	e := open(t, o)
	s := litter(t, e)
	fail.Store(true)
	report, err := e.GC(t.Context())
	if !errors.Is(err, broken) || report.MovedBytes > 0 || report.Deleted > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	fail.Store(false)
	s.compare(t, e)
	e = crash(t, e, o)
	s.compare(t, e)
	shut(t, e)
}
