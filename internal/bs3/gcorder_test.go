package bs3_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// orderBlocks and orderChunk are the size of the volumes of these tests, and of
// their objects, in blocks: 64 chunks, which takes two passes to sort.
const orderBlocks, orderChunk = 4096, 64

func orderOptions(t *testing.T, store objproxy.Store) bs3.Options {
	o := options(t, store)
	o.Size, o.ChunkSize, o.Memory = orderBlocks*blockSize, orderChunk*blockSize, 12*orderChunk*blockSize
	o.GC = gc.Options{Step: 64, LiveData: 0.3, MaxGarbage: 0.5}
	return o
}

// scatter fills the volume in order, and overwrites all of it at random, a block
// at a time.
func (s *shadow) scatter(t *testing.T, e *bs3.Engine, rnd *rand.Rand) {
	t.Helper()
	blocks := len(s.bytes) / blockSize
	for at := 0; at < blocks; at += orderChunk {
		s.write(t, e, rnd, at, orderChunk)
	}
	for range 2 {
		for _, at := range rnd.Perm(blocks) {
			s.write(t, e, rnd, at, 1)
		}
	}
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func look(t *testing.T, e *bs3.Engine) gc.Spread {
	t.Helper()
	spread, err := e.Spread(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return spread
}

// byTime runs n periodic collections, with a checkpoint after each as time brings
// them, and returns what they moved.
func byTime(t *testing.T, e *bs3.Engine, n int) (moved int64) {
	t.Helper()
	for range n {
		if err := checkpointed(t, e); err != nil {
			t.Fatal(err)
		}
		report, err := e.GCByTime(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		moved += report.MovedBytes
	}
	return moved
}

func TestDefrag(t *testing.T) {
	memory := objtest.NewMemory()
	calls := objtest.NewRecorder(memory)
	o := orderOptions(t, calls)
	e := open(t, o)
	s := newShadow(e)
	s.scatter(t, e, rand.New(rand.NewPCG(1, 12)))
	if err := checkpointed(t, e); err != nil {
		t.Fatal(err)
	}
	calls.Reset()
	stored := objects(t, memory)
	plan, err := e.PlanDefrag(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if sent := calls.Calls(); len(sent) > 0 || objects(t, memory) != stored {
		t.Errorf("planning sent %v", sent)
	}
	before := look(t, e)
	t.Logf("before: %+v, plan: %+v", before, plan)
	if before.FullRequests != orderBlocks/orderChunk || before.Requests < 10*before.FullRequests {
		t.Errorf("a scattered volume: %+v", before)
	}
	if plan.Passes != 2 || plan.Bytes != 2*orderBlocks*blockSize || plan.Puts != 2*orderBlocks/orderChunk || plan.Requests != before.Requests {
		t.Errorf("the plan: %+v", plan)
	}
	report, err := e.Defrag(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := look(t, e)
	t.Logf("done: %+v, after: %+v", report, after)
	if after.Requests > 3*after.FullRequests/2 || after.Objects > 5*after.FullObjects/4 {
		t.Errorf("not in order: %+v", after)
	}
	if report.MovedBytes > 3*orderBlocks*blockSize {
		t.Errorf("it moved %d bytes for %d", report.MovedBytes, orderBlocks*blockSize)
	}
	if n := countObjects(t, memory); n > 5*after.FullObjects/4+3 {
		t.Errorf("%d objects stay in the store", n)
	}
	if s := e.Status(); s.Spread == nil || s.Spread.Requests != after.Requests || s.FullObjects != after.FullObjects || s.Collection != nil {
		t.Errorf("status: %+v", s)
	}
	if again, err := e.Defrag(t.Context()); err != nil || again != (gc.Report{}) {
		t.Errorf("a second one found something left: %+v, %v", again, err)
	}
	if plan, err := e.PlanDefrag(t.Context()); err != nil || plan.Passes != 0 || plan.Bytes != 0 || plan.Gets != 0 || plan.Puts != 0 {
		t.Errorf("after it the plan is %+v, %v", plan, err)
	}
	s.compare(t, e)
	shut(t, e)
	info, err := volume.ReadInfo(t.Context(), memory)
	if err != nil || info.LiveObjects != after.Objects || info.FullObjects != after.FullObjects || info.Pieces < after.Objects/2 || info.Pieces > 2*after.Objects {
		t.Errorf("info: %+v, %v", info, err)
	}
	e = open(t, o)
	s.compare(t, e)
	shut(t, e)
}

// TestDefragOfManyObjects: the first of three passes saves hardly a request, and is
// made all the same.
func TestDefragOfManyObjects(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.Size, o.ChunkSize = 16384*blockSize, 8*blockSize
	e := open(t, o)
	s := newShadow(e)
	s.scatter(t, e, rand.New(rand.NewPCG(8, 12)))
	plan, err := e.PlanDefrag(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	report, err := e.Defrag(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := look(t, e)
	t.Logf("plan: %+v, done: %+v, after: %+v", plan, report, after)
	if plan.Passes != 3 || after.Requests > 2*after.FullRequests {
		t.Errorf("plan: %+v, after: %+v", plan, after)
	}
	if report.MovedBytes > 5*plan.Bytes/4 || report.MovedBytes < 3*plan.Bytes/4 {
		t.Errorf("it moved %d bytes, not about %d", report.MovedBytes, plan.Bytes)
	}
	s.compare(t, e)
	shut(t, e)
}

// TestMapShrinks: the map of a volume that was put in order takes less memory, at
// once.
func TestMapShrinks(t *testing.T) {
	for name, order := range map[string]func(e *bs3.Engine) error{
		"by time": func(e *bs3.Engine) error { byTime(t, e, 4); return nil },
		"defrag":  func(e *bs3.Engine) error { _, err := e.Defrag(t.Context()); return err },
	} {
		t.Run(name, func(t *testing.T) {
			o := orderOptions(t, objtest.NewMemory())
			o.Size, o.ChunkSize, o.Memory = 32*1024*blockSize, 1024*blockSize, 12*1024*blockSize
			o.GC.MaxMoves = 2
			e := open(t, o)
			s := newShadow(e)
			s.scatter(t, e, rand.New(rand.NewPCG(9, 12)))
			before := e.Status().MapBytes
			if err := order(e); err != nil {
				t.Fatal(err)
			}
			if after := e.Status().MapBytes; after > before/5 {
				t.Errorf("the map takes %d bytes, %d before: %+v", after, before, look(t, e))
			}
			s.compare(t, e)
			shut(t, e)
		})
	}
}

// TestDefragIsKilled: a volume whose writer dies in the middle of it has everything,
// and can be put in order by the next one.
func TestDefragIsKilled(t *testing.T) {
	for _, machine := range []bool{false, true} {
		puts, stop := atomic.Int64{}, make(chan struct{})
		store := objtest.Hooks{Inner: objtest.NewMemory(), Before: func(ctx context.Context, op objtest.Op) error {
			if puts.Load() > 0 && op.Kind == objtest.Put && puts.Add(-1) == 0 {
				close(stop)
			}
			return nil
		}}
		o := orderOptions(t, &store)
		e := open(t, o)
		s := newShadow(e)
		s.scatter(t, e, rand.New(rand.NewPCG(2, 12)))
		for _, after := range []int64{5, 40, 30} {
			stop = make(chan struct{})
			puts.Store(after)
			ended := make(chan error, 1)
			go func() {
				_, err := e.Defrag(t.Context())
				ended <- err
			}()
			select {
			case <-stop:
			case err := <-ended:
				t.Fatalf("it ended before it was killed: %v", err)
			}
			kill(t, e)
			if err := <-ended; err == nil {
				t.Log("it was quicker")
			}
			puts.Store(0)
			if machine {
				if err := os.RemoveAll(o.StatePath); err != nil {
					t.Fatal(err)
				}
			}
			e = open(t, o)
			s.compare(t, e)
		}
		if _, err := e.Defrag(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := look(t, e); after.Requests > 3*after.FullRequests/2 {
			t.Errorf("not in order: %+v", after)
		}
		s.compare(t, e)
		shut(t, e)
	}
}

// TestSmallObjectsAreMerged: objects of single flushed blocks become full ones,
// within the bound of moves.
func TestSmallObjectsAreMerged(t *testing.T) {
	for name, where := range map[string]func(rnd *rand.Rand, i int) int{
		"in order":  func(_ *rand.Rand, i int) int { return i },
		"at random": func(rnd *rand.Rand, i int) int { return rnd.IntN(orderBlocks) },
	} {
		t.Run(name, func(t *testing.T) {
			memory := objtest.NewMemory()
			o := orderOptions(t, memory)
			o.GC.MaxMoves = 2
			e := open(t, o)
			s := newShadow(e)
			rnd := rand.New(rand.NewPCG(3, 12))
			const writes = 2000
			for i := range writes {
				s.write(t, e, rnd, where(rnd, i), 1)
				if err := e.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			before := look(t, e)
			moved := byTime(t, e, 6)
			after := look(t, e)
			t.Logf("before: %+v, moved %d, after: %+v", before, moved, after)
			if 4*after.Objects > 5*after.FullObjects {
				t.Errorf("%d objects are left, %d would do", after.Objects, after.FullObjects)
			}
			if moved > 2*writes*blockSize {
				t.Errorf("%d bytes were moved for %d", moved, writes*blockSize)
			}
			if more := byTime(t, e, 3); more > 0 {
				t.Errorf("another %d bytes were moved", more)
			}
			if n := countObjects(t, memory); 4*(n-6) > 5*after.FullObjects {
				t.Errorf("%d objects are left in the store", n)
			}
			s.compare(t, e)
			shut(t, e)
			e = open(t, o)
			s.compare(t, e)
			shut(t, e)
		})
	}
}

// TestEachBlockIsMergedOnce: where no more may be moved than was written, small objects
// are merged all the same, however many collections come between.
func TestEachBlockIsMergedOnce(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.GC.MaxMoves = 1
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(15, 12))
	var moved int64
	for i, at := range rnd.Perm(orderBlocks) {
		s.write(t, e, rnd, at, 1)
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i%210 == 209 {
			moved += byTime(t, e, 2)
		}
	}
	moved += byTime(t, e, 4)
	if after := look(t, e); after.Objects > 2*after.FullObjects+64 {
		t.Errorf("%d bytes were moved; %d objects are left, %d would do", moved, after.Objects, after.FullObjects)
	}
	if moved > orderBlocks*blockSize {
		t.Errorf("%d bytes were moved, %d written", moved, orderBlocks*blockSize)
	}
	s.compare(t, e)
	shut(t, e)
}

// TestScatteredIsSortedByTime: by several collections, within the bound of moves,
// and then no more. What is younger than the kept checkpoints is left.
func TestScatteredIsSortedByTime(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.Size *= 8 // so that one collection does a part of it
	o.GC.MaxMoves = 2
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(4, 12))
	s.scatter(t, e, rnd)
	before := look(t, e)
	if moved := byTime(t, e, 1); moved > 0 {
		t.Errorf("%d bytes were moved that are younger than the kept checkpoints", moved)
	}
	var moved int64
	rounds, last := 0, before.Requests
	for ; rounds < 20; rounds++ {
		some := byTime(t, e, 1)
		if some == 0 { // what was moved is sorted on once it is cold
			some = byTime(t, e, 1)
		}
		now := look(t, e)
		t.Logf("moved %d: %+v", some, now)
		if moved += some; some == 0 {
			break
		}
		if now.Requests >= last {
			t.Errorf("%d requests, %d before", now.Requests, last)
		}
		last = now.Requests
	}
	if rounds < 3 || last > 3*before.FullRequests {
		t.Errorf("%d rounds left %d requests", rounds, last)
	}
	if moved > 2*e.Status().WrittenBytes {
		t.Errorf("%d bytes were moved", moved)
	}
	if more := byTime(t, e, 3); more > 0 {
		t.Errorf("another %d bytes were moved", more)
	}
	at := e.Status().Spread.At
	if more := byTime(t, e, 3); more > 0 || e.Status().Spread.At != at {
		t.Error("it has looked again, although nothing has changed")
	}
	s.compare(t, e)
	shut(t, e)
}

// TestSortingBesideAWriter: what is scattered is put in order although a few objects at
// random are written before each collection, which need more passes than what came of
// the first one.
func TestSortingBesideAWriter(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.Size *= 8
	o.GC.MaxMoves = 10
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(16, 12))
	s.scatter(t, e, rnd)
	before := look(t, e)
	for range 16 {
		for range 24 * orderChunk {
			s.write(t, e, rnd, rnd.IntN(8*orderBlocks), 1)
		}
		byTime(t, e, 1)
	}
	if after := look(t, e); after.Requests > before.Requests/5 {
		t.Errorf("of %d requests %d are left", before.Requests, after.Requests)
	}
	s.compare(t, e)
	shut(t, e)
}

// TestSortingBesideSmallObjects: small objects that wait until they fill one do not keep
// what is scattered from being put in order.
func TestSortingBesideSmallObjects(t *testing.T) {
	const chunk, chunks = 1024, 64
	o := orderOptions(t, objtest.NewMemory())
	o.Size, o.ChunkSize, o.Memory = chunks*chunk*blockSize, chunk*blockSize, 12*chunk*blockSize
	o.GC.MaxMoves = 2
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(17, 12))
	s.scatter(t, e, rnd)
	for i := range 150 {
		s.write(t, e, rnd, i*50, 1)
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkpointed(t, e); err != nil {
		t.Fatal(err)
	}
	s.write(t, e, rnd, 1, 1) // the last one: it stays younger than a kept checkpoint
	if err := checkpointed(t, e); err != nil {
		t.Fatal(err)
	}
	before := look(t, e)
	for range 4 {
		if _, err := e.GCByTime(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := look(t, e); after.Requests > before.Requests/10 {
		t.Errorf("before: %+v, after: %+v", before, after)
	}
	s.compare(t, e)
	shut(t, e)
}

// TestWhatIsRewrittenIsNotSorted: as long as much of a volume is overwritten between two
// collections, sorting would be for nothing.
func TestWhatIsRewrittenIsNotSorted(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.GC.MaxMoves, o.GC.MaxGarbage = 0.5, 0
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(16, 12))
	s.scatter(t, e, rnd)
	for range 4 {
		for range orderBlocks / 4 {
			s.write(t, e, rnd, rnd.IntN(orderBlocks), 1)
		}
		if moved := byTime(t, e, 1); moved > 0 {
			t.Errorf("%d bytes were moved", moved)
		}
	}
	var moved int64
	for range 4 {
		for range orderBlocks / 64 {
			s.write(t, e, rnd, rnd.IntN(orderBlocks), 1)
		}
		moved += byTime(t, e, 1)
	}
	if moved == 0 {
		t.Error("nothing was moved when hardly anything was written")
	}
	s.compare(t, e)
	shut(t, e)
}

// TestMaxMovesBoundsMoves: a little is written again and again, and no more is moved
// by time than the share of it that is allowed. What somebody asks for does not count.
func TestMaxMovesBoundsMoves(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.GC.MaxMoves, o.GC.MaxGarbage = 0.25, 0
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(5, 12))
	s.scatter(t, e, rnd)
	if _, err := e.Defrag(t.Context()); err != nil {
		t.Fatal(err)
	}
	var moved int64
	for range 12 {
		for range 1500 {
			s.write(t, e, rnd, rnd.IntN(orderBlocks), 1)
		}
		moved += byTime(t, e, 2)
		if written := e.Status().WrittenBytes; float64(moved) > 0.25*float64(written) {
			t.Fatalf("%d bytes were moved, %d written", moved, written)
		}
	}
	if moved == 0 {
		t.Error("nothing was moved")
	}
	s.compare(t, e)
	shut(t, e)
}

// TestOrderIsLeftAlone: nothing is moved by time, and nothing by Defrag, where it
// would gain nothing.
func TestOrderIsLeftAlone(t *testing.T) {
	for name, write := range map[string]func(t *testing.T, e *bs3.Engine, s *shadow, rnd *rand.Rand){
		"in order": func(t *testing.T, e *bs3.Engine, s *shadow, rnd *rand.Rand) {
			for at := 0; at < orderBlocks; at += 16 {
				s.write(t, e, rnd, at, 16)
			}
		},
		"with holes": func(t *testing.T, e *bs3.Engine, s *shadow, rnd *rand.Rand) {
			for at := 0; at < orderBlocks; at += 16 {
				s.write(t, e, rnd, at, 11)
			}
		},
		"two layers": func(t *testing.T, e *bs3.Engine, s *shadow, rnd *rand.Rand) {
			for at := 0; at < orderBlocks; at += 16 {
				s.write(t, e, rnd, at, 16)
			}
			for at := 0; at < orderBlocks; at += 10 {
				s.write(t, e, rnd, at, 1)
			}
		},
		"from the end": func(t *testing.T, e *bs3.Engine, s *shadow, rnd *rand.Rand) {
			for at := orderBlocks - orderChunk; at >= 0; at -= orderChunk {
				s.write(t, e, rnd, at, orderChunk)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := orderOptions(t, objtest.NewMemory())
			o.GC.MaxMoves = 10
			e := open(t, o)
			s := newShadow(e)
			write(t, e, s, rand.New(rand.NewPCG(6, 12)))
			if moved := byTime(t, e, 4); moved > 0 {
				t.Errorf("%d bytes were moved by time: %+v", moved, look(t, e))
			}
			before := look(t, e)
			plan, err := e.PlanDefrag(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			report, err := e.Defrag(t.Context())
			after := look(t, e)
			t.Logf("before: %+v, plan: %+v, report: %+v, after: %+v", before, plan, report, after)
			if err != nil || (plan.Bytes == 0) != (report.MovedBytes == 0) {
				t.Errorf("plan: %+v, report: %+v, %v", plan, report, err)
			}
			if report.MovedBytes > 0 && float64(before.Requests) < 1.25*float64(after.Requests) {
				t.Errorf("%d bytes were moved for nothing", report.MovedBytes)
			}
			s.compare(t, e)
			shut(t, e)
		})
	}
}

// TestDefragBesideWriter: it comes to an end although somebody scatters blocks
// meanwhile, and nothing is lost.
func TestDefragBesideWriter(t *testing.T) {
	o := orderOptions(t, objtest.NewMemory())
	o.StatePath = "" // on the heap the race detector sees the slots
	defragBesideWriter(t, o)
	o.Store = objtest.NewMemory()
	o.GC.Eager, o.GC.MaxGarbage, o.GC.LiveData = true, 0.02, 0.98 // garbage is moved within a pass
	defragBesideWriter(t, o)
}

func defragBesideWriter(t *testing.T, o bs3.Options) {
	t.Helper()
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(7, 12))
	s.scatter(t, e, rnd)
	ended := make(chan error, 1)
	go func() {
		var err error
		for range 3 {
			_, e := e.Defrag(t.Context())
			err = errors.Join(err, e)
		}
		ended <- err
	}()
	for running := true; running; {
		select {
		case err := <-ended:
			running = false
			if err != nil {
				t.Error(err)
			}
		default:
			s.write(t, e, rnd, rnd.IntN(orderBlocks), 1)
			if p := e.Status().Collection; p != nil && (p.MovedBytes > p.TotalBytes || p.Pass > p.Passes || p.Passes > 4) {
				t.Errorf("progress: %+v", p)
			}
		}
	}
	s.compare(t, e)
	shut(t, e)
}
