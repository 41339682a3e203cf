package bs3_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

func checkVolume(t *testing.T, store objproxy.Store) *fsck.Report {
	t.Helper()
	r, err := fsck.Check(t.Context(), store, fsck.Options{Data: true})
	if err != nil {
		t.Fatalf("fsck: %v", err)
	}
	return r
}

// clean checks that there is no damage.
func clean(t *testing.T, store objproxy.Store) *fsck.Report {
	t.Helper()
	r := checkVolume(t, store)
	if err := r.Err(); err != nil {
		for _, f := range r.Findings {
			t.Log(f)
		}
		t.Fatal(err)
	}
	return r
}

// TestFsckCleanHistories: whatever a volume goes through, as long as the store
// keeps what it is given, there is nothing to be found.
func TestFsckCleanHistories(t *testing.T) {
	fromStart, gone, gaps := 0, 0, 0
	for seed := range 12 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 21))
		memory := objtest.NewMemory()
		o := gcOptions(t, memory)
		o.Durable = rnd.IntN(2) == 0
		o.SkipCheckpoint = rnd.IntN(10) == 0
		for range 6 {
			calls := objtest.NewRecorder(memory)
			c := newCable(calls)
			var stuck atomic.Bool // puts of some objects do not arrive
			c.holds = func(op objtest.Op) bool {
				k, err := key.Parse(op.Name)
				return stuck.Load() && err == nil && k%3 == 0 && op.Kind == objtest.Put
			}
			o.Store = c
			e := open(t, o)
			s := &shadow{make([]byte, e.Geometry().Size)}
			for range 1 + rnd.IntN(4) {
				s.some(t, e, rnd, rnd.IntN(100))
				switch rnd.IntN(5) {
				case 0:
					s.discard(t, e, 0, 1000)
				case 1:
					if o.SkipCheckpoint {
						break
					}
					if _, err := e.GC(t.Context()); err != nil {
						t.Fatal(err)
					}
				case 2:
					if o.SkipCheckpoint {
						break
					}
					if err := e.Checkpoint(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				clean(t, memory)
			}
			switch rnd.IntN(3) {
			case 0:
				shut(t, e)
			case 1:
				kill(t, e)
			default:
				stuck.Store(true)
				for range 8 {
					p := make([]byte, 8*blockSize)
					if e.TryWriteAt(p, int64(8*rnd.IntN(100)*blockSize)) {
						s.bytes = nil // it may be lost
					}
				}
				eventuallyIdle(t, calls)
				c.crash(t, e)
				if rnd.IntN(2) == 0 {
					if err := os.RemoveAll(o.StatePath); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := clean(t, memory)
			if r.FromStart {
				fromStart++
			} else {
				gone++
			}
			gaps += r.Warnings
		}
	}
	t.Logf("the whole log was there %d times, not %d times; %d objects behind gaps", fromStart, gone, gaps)
	if fromStart == 0 || gone == 0 || gaps == 0 {
		t.Fatal("the histories do not show all that they should")
	}
}

// TestFsckBesideWriter: a writer that checkpoints and collects garbage all the
// time never looks damaged.
func TestFsckBesideWriter(t *testing.T) {
	memory := objtest.NewMemory()
	o := gcOptions(t, memory)
	o.GC.LiveData = 0.9 // objects do not live long
	shut(t, open(t, o))
	slow := &objtest.Hooks{Inner: memory, Before: func(context.Context, objtest.Op) error {
		if rand.IntN(20) == 0 { // so that the writer gets on in between
			time.Sleep(time.Duration(rand.IntN(int(time.Millisecond))))
		}
		return nil
	}}
	done, moving, restarts := 0, 0, 0
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		for i := range 100 {
			if _, err := volume.ReadInfo(t.Context(), slow); err != nil && !errors.Is(err, volume.ErrMoving) {
				t.Errorf("info: %v", err)
				return
			}
			r, err := fsck.Check(t.Context(), slow, fsck.Options{Data: i%2 == 0})
			switch {
			case errors.Is(err, volume.ErrMoving):
				moving++
				continue
			case err == nil && r.Err() != nil:
				for _, f := range r.Findings {
					t.Log(f)
				}
				err = r.Err()
			}
			if err != nil {
				t.Error(err)
				return
			}
			done++
			restarts += r.Restarts
		}
	}()
	rnd := rand.New(rand.NewPCG(1, 31))
	for running := true; running; {
		e := open(t, o)
		s := &shadow{make([]byte, e.Geometry().Size)}
		for range 5 + rnd.IntN(20) {
			s.some(t, e, rnd, 1+rnd.IntN(60))
			if _, err := e.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if rnd.IntN(2) == 0 {
			shut(t, e)
		} else {
			kill(t, e)
		}
		select {
		case <-checked:
			running = false
		default:
		}
	}
	t.Logf("%d checks came to an end, after %d restarts in all; %d did not", done, restarts, moving)
	if done < 20 {
		t.Error("the writer was too fast for the checks to show anything")
	}
}

// TestFsckWriterAtEveryCall: whatever the check is about to read, the writer
// may have replaced, moved and given back before.
func TestFsckWriterAtEveryCall(t *testing.T) {
	memory := objtest.NewMemory()
	o := gcOptions(t, memory)
	o.GC.LiveData = 0.9
	rnd := rand.New(rand.NewPCG(4, 31))
	e := open(t, o)
	s := newShadow(e)
	s.some(t, e, rnd, 40)
	restarts, skipped := 0, 0
	for n := int32(1); ; n += 1 + n/30 {
		var calls atomic.Int32
		var work sync.Mutex // other readers wait until the writer has done it
		hook := &objtest.Hooks{Inner: memory, Before: func(context.Context, objtest.Op) error {
			work.Lock()
			defer work.Unlock()
			if calls.Add(1) != n {
				return nil
			}
			if rnd.IntN(7) == 0 { // a takeover, too
				kill(t, e)
				e = open(t, o)
			}
			s.some(t, e, rnd, 5+rnd.IntN(20))
			_, err := e.GC(t.Context())
			return err
		}}
		r := clean(t, hook)
		restarts += r.Restarts
		if r.Restarts == 0 {
			skipped++
		}
		if calls.Load() < n {
			t.Logf("up to call %d: %d restarts, %d times none was needed", n-1, restarts, skipped)
			break
		}
	}
	if restarts == 0 || skipped == 0 {
		t.Error("the calls do not show both")
	}
	shut(t, e)
}

// eventuallyIdle waits until no more calls arrive.
func eventuallyIdle(t *testing.T, calls *objtest.Recorder) {
	t.Helper()
	for n := -1; n != len(calls.Calls()); time.Sleep(2 * time.Millisecond) {
		n = len(calls.Calls())
	}
}
