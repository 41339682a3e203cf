package bs3_test

import (
	"context"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
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
	for at := 0; at < orderBlocks; at += orderChunk {
		s.write(t, e, rnd, at, orderChunk)
	}
	for range 2 {
		for _, at := range rnd.Perm(orderBlocks) {
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
	e = open(t, o)
	s.compare(t, e)
	shut(t, e)
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
			<-ended // perhaps well: it may have been quicker
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
