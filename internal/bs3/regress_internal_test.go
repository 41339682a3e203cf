package bs3

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

func tinyOptions(t *testing.T) Options {
	return Options{
		Store: objtest.NewMemory(), Log: zerolog.Nop(), Host: Host{ID: "a", Name: "a"},
		Size: 8192 * 512, BlockSize: 512, ChunkSize: 8 * 512, Durable: true, Memory: 6 * 8 * 512, Uploaders: 4,
		GC: gc.Options{Step: 64, LiveData: 0.5},
	}
}

// An empty write that does not wait.
func TestEmptyTryWrite(t *testing.T) {
	o := tinyOptions(t)
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	e.TryWriteAt(nil, 0)
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Close wrote a checkpoint, so read the log itself.
	tails := volume.Tails{Store: o.Store, UUID: e.UUID(), ChunkBlocks: o.chunkBlocks()}
	for k := range e.log.Now().Next {
		if _, err := tails.Read(context.Background(), k); err != nil {
			t.Errorf("the log cannot be read any more: %v", err)
		}
	}
}

// A checkpoint that is due because the log is long is written twice.
func TestCheckpointTwice(t *testing.T) {
	o := tinyOptions(t)
	rec := objtest.NewRecorder(o.Store)
	o.Store = &objtest.Hooks{Inner: rec, Before: func(_ context.Context, op objtest.Op) error {
		if strings.HasPrefix(op.Name, layout.CheckpointPrefix) {
			time.Sleep(20 * time.Millisecond) // a store is not next door
		}
		return nil
	}}
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b int64) {
		if err := e.WriteAt(t.Context(), make([]byte, 512), b*512); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	e.log.Regrow(volume.Length{Objects: 10_000}) // a long log
	for b := range int64(10000) {                // a busy volume
		write(b % 100)
		if b%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	time.Sleep(50 * time.Millisecond)
	n := 0
	for _, c := range rec.Calls() {
		if c.Kind == objtest.Put && strings.HasPrefix(c.Name, layout.CheckpointPrefix) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d checkpoints, 1 was due", n)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Garbage that was compacted and waits for its second checkpoint still counts
// as excess: every tick compacts more.
func TestOverCompaction(t *testing.T) {
	o := tinyOptions(t)
	o.GC = gc.Options{Step: 64, LiveData: 0.9, MaxGarbage: 0.4}
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b int64) {
		if err := e.WriteAt(t.Context(), make([]byte, 512), b*512); err != nil {
			t.Fatal(err)
		}
	}
	for b := range int64(8 * 100) {
		write(b)
	}
	for b := range int64(8 * 100) { // a bit more than 0.4 of all becomes garbage
		if b%8 < 6 && b < 8*100 {
			write(b)
		}
	}
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := 0
	for tick := range 6 {
		excess := len(e.collector.Excess(o.GC.MaxGarbage))
		r, err := e.collector.ByTime(t.Context()) // the volume is written: checkpoints in their own rhythm
		if err != nil {
			t.Fatal(err)
		}
		write(0)
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("tick %d: excess %d objects, compacted %d objects", tick, excess, r.Compacted)
		if tick == 0 {
			first = r.Compacted
		} else if r.Compacted > 0 {
			t.Errorf("tick %d: %d more objects, the first %d were enough", tick, r.Compacted, first)
		}
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// One damaged thin object on an idle volume with garbage above the limit.
func TestIdleAsksForDamaged(t *testing.T) {
	o := tinyOptions(t)
	o.GC = gc.Options{Step: 64, LiveData: 0.9, MaxGarbage: 0.2, Wait: 5 * time.Millisecond}
	o.CheckpointInterval = 5 * time.Millisecond
	memory := o.Store.(*objtest.Memory)
	rec := objtest.NewRecorder(memory)
	o.Store = rec
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	k := e.log.Now().Next
	p := make([]byte, 8*512)
	if err := e.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := memory.Delete(t.Context(), []string{k.Name()}); err != nil { // lost by the store
		t.Fatal(err)
	}
	if err := e.Discard(t.Context(), 0, 5*512); err != nil {
		t.Fatal(err)
	}
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	rec.Reset()
	time.Sleep(200 * time.Millisecond)
	if n := len(rec.Calls()); n > 0 {
		t.Errorf("an idle volume sent %d requests, the first %v", n, rec.Calls()[0])
	}
	_ = e.Close(t.Context())
}

// An object that the map needs is gone, and the disk cache has the first of the
// blocks that are asked for: the error is about another place than the map's run.
func TestReadOfGoneObjectEnds(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1) // object 1
		a.flush()
		a.kill()
		a = w.open("a", w.withDisk("a", 4))
		a.holds(1, 0)
		synctest.Wait() // it is in the disk cache
		if err := w.memory.Delete(t.Context(), []string{key.Key(1).Name()}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		asked := 0
		after := a.way.After
		a.way.After = func(c context.Context, op objtest.Op, err error) error {
			if asked++; asked > 10 {
				cancel()
			}
			return after(c, op, err)
		}
		err := a.e.ReadAt(ctx, make([]byte, 2*simBlockSize), 0)
		if !errors.Is(err, objproxy.ErrNotFound) || ctx.Err() != nil {
			t.Errorf("after %d requests: %v", asked, err)
		}
	})
}

// A client asks where a range lies that is all holes, one block wide.
func TestAllocationIsBounded(t *testing.T) {
	o := tinyOptions(t)
	o.Size = 5 * 8192 * 512
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for block := int64(0); block < 4*8192; block += 2 {
		if err := e.WriteAt(t.Context(), make([]byte, 512), block*512); err != nil {
			t.Fatal(err)
		}
	}
	end, answers := int64(0), 0
	for ; end < o.Size; answers++ {
		extents, err := e.Allocation(t.Context(), end, o.Size-end)
		if err != nil || len(extents) == 0 {
			t.Fatalf("%d extents at %d: %v", len(extents), end, err)
		}
		if len(extents) > 8192 {
			t.Fatalf("%d extents in one answer", len(extents))
		}
		for _, x := range extents {
			end += x.Length
		}
	}
	if end != o.Size || answers < 4 {
		t.Errorf("%d answers, %d bytes of %d", answers, end, o.Size)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Objects below the checkpoint are read by the collection only: what an open
// would refuse must not end the daemon there.
func TestCompactionOfForeignObject(t *testing.T) {
	for what, change := range map[string]func(o *layout.Object){
		"a record beyond the volume": func(o *layout.Object) { o.Records[0].Block = 1 << 40 },
		"another block size":         func(o *layout.Object) { o.BlockSize, o.Blocks = 512, 20 },
	} {
		t.Run(what, func(t *testing.T) {
			const bs = 4096
			o := tinyOptions(t)
			o.BlockSize, o.ChunkSize, o.Memory = bs, 8*bs, 6*8*bs
			e, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			for _, blocks := range []int{8, 6, 1} { // of object 1 two stay live
				if err := errors.Join(e.WriteAt(t.Context(), make([]byte, blocks*bs), 0), e.Flush(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
			thin, err := volume.Tails{Store: o.Store, UUID: e.UUID(), ChunkBlocks: o.chunkBlocks()}.Read(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			change(thin.Object)
			b := layout.AppendTail(make([]byte, thin.Object.DataSize()), thin.Object)
			if _, err := o.Store.Put(t.Context(), key.Key(1).Name(), objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
				t.Fatal(err)
			}
			if r, err := e.GC(t.Context()); err != nil || r.FailedReads != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			if err := e.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The newest checkpoint does not verify, and an object after the one before it
// is lost: what a checkpoint was made of was acknowledged, so the log does not
// end there.
func TestLogIsNotCutBelowCheckpoint(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1) // object 1
		a.checkpoint()
		a.write(2, 2, 3) // object 2
		a.write(3, 4, 5) // object 3
		a.checkpoint()
		a.kill()
		newest := w.names(layout.CheckpointPrefix)[1]
		if err := w.memory.Delete(t.Context(), []string{newest, key.Key(2).Name()}); err != nil {
			t.Fatal(err)
		}
		if err := w.start("a").launch().opened(); !errors.Is(err, volume.ErrRefused) {
			t.Errorf("the open: %v", err)
		}
		if w.object(2) != nil {
			t.Error("a fence is in the place of the object that is lost")
		}
	})
}
