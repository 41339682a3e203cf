package bs3_test

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

func gcOptions(t *testing.T, store objproxy.Store) bs3.Options {
	o := options(t, store)
	o.GC = gc.Options{Step: 64, LiveData: 0.5, MaxGarbage: 0.6}
	return o
}

// countObjects counts the objects of the log in a store.
func countObjects(t *testing.T, store objproxy.Store) int {
	t.Helper()
	list, err := store.List(t.Context(), "", "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, o := range list {
		if _, err := key.Parse(o.Name); err == nil {
			n++
		}
	}
	return n
}

func TestGCGivesSpaceBackAndLosesNothing(t *testing.T) {
	memory := objtest.NewMemory()
	o := gcOptions(t, memory)
	rnd := rand.New(rand.NewPCG(3, 4))
	e := open(t, o)
	s := newShadow(e)
	for round := range 8 {
		s.some(t, e, rnd, 400)
		before := countObjects(t, memory)
		report, err := e.GC(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		after := countObjects(t, memory)
		t.Logf("round %d: %d objects, then %d: %+v", round, before, after, report)
		if after >= before || report.Deleted == 0 || report.Compacted == 0 {
			t.Fatal("nothing was collected")
		}
		// 1000 blocks in chunks of 8: at 0.5 live no object needs to be less than half used.
		if most := 2*1000/8 + 20; after > most {
			t.Fatalf("%d objects are left, more than %d", after, most)
		}
		s.compare(t, e)
		switch round % 3 {
		case 0:
			shut(t, e)
		case 1:
			kill(t, e)
		default:
			if err := e.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			kill(t, e)
			if err := os.RemoveAll(o.StatePath); err != nil {
				t.Fatal(err)
			}
		}
		e = open(t, o)
		s.compare(t, e)
	}
	shut(t, e)
}

func TestDiscardGivesSpaceBack(t *testing.T) {
	memory := objtest.NewMemory()
	o := gcOptions(t, memory)
	e := open(t, o)
	s := newShadow(e)
	s.some(t, e, rand.New(rand.NewPCG(1, 1)), 300)
	s.discard(t, e, 0, 1000)
	if _, err := e.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := countObjects(t, memory); n > 3 {
		t.Fatalf("%d objects are left of an empty volume", n)
	}
	s.compare(t, e)
	shut(t, e)
	e = open(t, o)
	s.compare(t, e)
	shut(t, e)
}

// TestIdleVolumeFallsSilent: with collections and checkpoints by time, an idle
// volume reaches a point from which it sends no request.
func TestIdleVolumeFallsSilent(t *testing.T) {
	memory := objtest.NewMemory()
	calls := objtest.NewRecorder(memory)
	o := gcOptions(t, calls)
	o.GC.Wait, o.CheckpointInterval, o.Linger = 2*time.Millisecond, 3*time.Millisecond, time.Millisecond
	e := open(t, o)
	s := newShadow(e)
	s.some(t, e, rand.New(rand.NewPCG(5, 5)), 300)
	s.discard(t, e, 100, 500)
	quiet := 0
	for range 500 {
		calls.Reset()
		time.Sleep(20 * time.Millisecond)
		if len(calls.Calls()) == 0 {
			if quiet++; quiet == 5 {
				break
			}
		} else {
			quiet = 0
		}
	}
	if quiet < 5 {
		t.Fatalf("the idle volume still sends requests: %v", calls.Calls())
	}
	// One by hand may go below gc.max_garbage, where those by time stop; the next
	// finds nothing.
	if _, err := e.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if report, err := e.GC(t.Context()); err != nil || report != (gc.Report{}) {
		t.Fatalf("a second collection found something left: %+v, %v", report, err)
	}
	s.compare(t, e)
	shut(t, e)
}

// TestReadersBesideGC: readers and writers go on while objects are moved and
// deleted under them.
func TestReadersBesideGC(t *testing.T) {
	o := gcOptions(t, objtest.NewMemory())
	o.StatePath = "" // on the heap the race detector sees the slots
	o.ReadCache = 100 * blockSize
	e := open(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const blocks, per = 200, 4
	for w := range 3 { // each owns every third range of blocks, and reads the others
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 8))
			stamp := make(map[int]byte)
			for i := 0; ctx.Err() == nil; i++ {
				at := rnd.IntN(blocks/per/3)*3 + w
				p := make([]byte, per*blockSize)
				if i%2 == 0 {
					stamp[at] = byte(i)
					for j := range p {
						p[j] = byte(i)
					}
					if err := e.WriteAt(t.Context(), p, int64(at*per*blockSize)); err != nil {
						t.Error(err)
						return
					}
					continue
				}
				if err := e.ReadAt(t.Context(), p, int64(at*per*blockSize)); err != nil {
					t.Error(err)
					return
				}
				for j := range p {
					if p[j] != stamp[at] {
						t.Errorf("range %d holds %d, not %d", at, p[j], stamp[at])
						return
					}
				}
			}
		})
	}
	for range 30 {
		if _, err := e.GC(t.Context()); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	shut(t, e)
}

// TestGCLeavesDamageAlone: an object whose data does not verify is not moved:
// the copy would be damage that nobody finds any more.
func TestGCLeavesDamageAlone(t *testing.T) {
	memory := objtest.NewMemory()
	o := gcOptions(t, memory)
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(2, 2))
	s.write(t, e, rnd, 0, 8) // object 1
	s.write(t, e, rnd, 0, 6) // object 2, with two blocks of padding below
	s.write(t, e, rnd, 8, 8)
	s.write(t, e, rnd, 16, 8)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<16)
	n, _, err := memory.Get(t.Context(), key.Key(1).Name(), p, -1)
	if err != nil {
		t.Fatal(err)
	}
	p[6*layout.Stride(blockSize)] ^= 1
	if _, err := memory.Put(t.Context(), key.Key(1).Name(), objproxy.Body{Data: p[:n]}, objproxy.Condition{}); err != nil {
		t.Fatal(err)
	}
	report, err := e.GC(t.Context())
	if err != nil || report.FailedReads != 1 || report.MovedBytes != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if _, _, err := memory.Get(t.Context(), key.Key(1).Name(), p, -1); err != nil {
		t.Fatalf("the damaged object: %v", err)
	}
	shut(t, e)
	if _, err := layout.DecodeTail(p[:n], int64(n)); err != nil {
		t.Fatal(err)
	}
}

// wrongOnce is a store whose next answer with all of an object has one wrong byte.
type wrongOnce struct {
	objproxy.Store
	name string
	at   int
	next atomic.Bool
}

func (s *wrongOnce) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := s.Store.Get(ctx, name, p, off)
	if err == nil && name == s.name && int64(n) == info.Size && s.next.CompareAndSwap(true, false) {
		p[s.at] ^= 1
	}
	return n, info, err
}

// TestGCAsksAgain: an object of which one answer is wrong is moved nevertheless,
// once, and as it is.
func TestGCAsksAgain(t *testing.T) {
	store := &wrongOnce{Store: objtest.NewMemory(), name: key.Key(1).Name(), at: 7 * layout.Stride(blockSize)}
	o := gcOptions(t, store)
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(2, 2))
	s.write(t, e, rnd, 0, 8) // object 1
	s.write(t, e, rnd, 0, 6) // object 2: blocks 6 and 7 are left of object 1
	s.write(t, e, rnd, 8, 8)
	s.write(t, e, rnd, 16, 8)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.next.Store(true)
	report, err := e.GC(t.Context())
	if err != nil || store.next.Load() || report.FailedReads != 0 || report.Compacted != 1 || report.MovedBytes != 2*blockSize {
		t.Errorf("%+v, %v", report, err)
	}
	s.compare(t, e)
	shut(t, e)
	e = open(t, o)
	s.compare(t, e)
	shut(t, e)
}
