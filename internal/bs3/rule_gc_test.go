package bs3

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// collecting collects garbage in the background.
func (x *ruleWriter) collecting() <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := x.e.GC(x.w.t.Context())
		done <- err
	}()
	synctest.Wait()
	return done
}

func (x *ruleWriter) collect() {
	x.w.t.Helper()
	if err := <-x.collecting(); err != nil {
		x.w.t.Fatalf("collect garbage: %v", err)
	}
}

// deleteDead is the collection of dead objects alone, which writes no checkpoint.
func (x *ruleWriter) deleteDead() {
	x.w.t.Helper()
	if _, err := x.e.collector.DeleteDead(x.w.t.Context()); err != nil {
		x.w.t.Fatalf("delete what is dead: %v", err)
	}
}

// TestRuleCOMMIT: a checkpoint that a zombie stored and could not commit
// counts for nothing: neither does the zombie remove anything on the strength
// of it, nor does an open use it.
func TestRuleCOMMIT(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(2) {
			a.write(1+i, 0)
			a.checkpoint()
		}
		a.write(3, 0)
		commit := a.hold(isVolumePut)
		done := make(chan error, 1)
		go func() { done <- a.e.Checkpoint(t.Context()) }()
		commit.wait(t)
		b := w.open("b")
		commit.letGo()
		w.fenced(<-done)
		w.intact()
		b.holds(3, 0)
		b.write(4, 0)
		b.flush()
		b.kill()
		w.open("c").holds(4, 0)
	})
}

// TestRuleATOMIC: a checkpoint is the map with exactly the objects up to its
// key, whatever is written meanwhile.
func TestRuleATOMIC(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1)
		done := make(chan error, 1)
		go func() { done <- a.e.Checkpoint(t.Context()) }()
		for i := range uint64(20) {
			time.Sleep(time.Millisecond)
			a.write(2+i, i%4)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		a.flush()
		w.intact()
		a.kill()
		w.wipe("a")
		b := w.open("a")
		for i := range uint64(4) {
			b.holds(18+i, i)
		}
	})
}

// TestRuleSWEEP: a zombie that has committed its last checkpoint before a
// newer writer came does not sweep what that one stores.
func TestRuleSWEEP(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		sweep := a.hold(below(layout.CheckpointPrefix, objtest.List))
		done := make(chan error, 1)
		go func() { done <- a.e.Checkpoint(t.Context()) }()
		sweep.wait(t)
		b := w.open("b")
		for i := range uint64(2) {
			b.write(2+i, 0)
			b.checkpoint()
		}
		sweep.letGo()
		t.Log("the zombie: ", <-done)
		w.intact()
		b.kill()
		w.open("c").holds(3, 0)
	})
}

// TestRuleUNDERWAY: a sweep that takes its time leaves alone what the next
// checkpoint has stored and not committed yet.
func TestRuleUNDERWAY(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		sweep := a.hold(below(layout.CheckpointPrefix, objtest.List))
		a.checkpoint()
		sweep.wait(t)
		a.write(2, 0)
		commit := a.hold(isVolumePut)
		done := make(chan error, 1)
		go func() { done <- a.e.Checkpoint(t.Context()) }()
		commit.wait(t)
		sweep.letGo()
		synctest.Wait()
		commit.letGo()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.intact()
		a.kill()
		w.wipe("a")
		w.open("a").holds(2, 0)
	})
}

// TestRuleUNKNOWN: a commit that was given up may have been done: what it named
// is not swept, however often that is tried, until the next commit.
func TestRuleUNKNOWN(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(3) {
			a.write(1+i, 0)
			a.checkpoint()
		}
		synctest.Wait()
		a.write(4, 0)
		commit := a.holdAnswer(isVolumePut)
		ctx, giveUp := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.e.Checkpoint(ctx) }()
		commit.wait(t)
		giveUp()
		t.Log("given up: ", <-done)
		if err := a.e.keeper.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.intact()
		a.write(5, 0)
		a.checkpoint()
		synctest.Wait()
		w.intact()
		if n := w.names(layout.CheckpointPrefix); len(n) != layout.MaxCheckpoints {
			t.Errorf("checkpoints: %v", n)
		}
	})
}

// TestRuleCKNAME: two checkpoints at the same key are two objects.
func TestRuleCKNAME(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		before := w.names(layout.CheckpointPrefix)
		a.checkpoint()
		if after := w.names(layout.CheckpointPrefix); len(before) != 1 || len(after) != 2 {
			t.Fatalf("checkpoints: %v, then %v", before, after)
		}
		w.intact()
	})
}

// TestRuleGATE: as long as two checkpoints are kept, the log from the older
// one on is: the newest may be damaged.
func TestRuleGATE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1)
		a.checkpoint()
		a.write(2, 0, 1) // the object before is dead
		a.write(3, 0, 1) // and so is this one
		a.checkpoint()
		a.deleteDead()
		a.write(4, 0)
		a.flush()
		a.kill()
		names := w.names(layout.CheckpointPrefix)
		if err := w.memory.Delete(t.Context(), names[len(names)-1:]); err != nil {
			t.Fatal(err)
		}
		b := w.open("a")
		b.holds(4, 0)
		b.holds(3, 1)
	})
}

// TestRuleKEEPFENCE: a fence stays for ever: a put of the writer before it may
// still be on its way to the very key.
func TestRuleKEEPFENCE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		late := a.hold(on(objtest.Put, key.Key(1).Name()))
		a.write(1, 0)
		flush := a.flushing()
		late.wait(t)
		b := w.open("b") // fence at 1
		for i := range uint64(4) {
			b.write(2+i, 0)
			b.checkpoint()
		}
		b.collect()
		late.letGo()
		w.fenced(<-flush)
		b.holds(5, 0)
	})
}

// TestRuleNOEMPTY: collecting an idle volume comes to an end, and leaves no
// objects that hold nothing.
func TestRuleNOEMPTY(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(5) {
			a.write(1+i, 0, 1)
		}
		a.flush()
		a.collect()
		a.collect()
		before := strings.Join(w.names(""), " ")
		a.collect()
		if after := strings.Join(w.names(""), " "); before != after {
			t.Fatalf("an idle volume was collected again: %s, then %s", before, after)
		}
		w.intact()
	})
}

// compacting lays out blocks 0, 2 and 4 of three objects, of which it still
// has to read the last, when block 0 is written again.
func (w *ruleWorld) compacting() *ruleWriter {
	w.t.Helper()
	a := w.open("a", func(o *Options) { o.ChunkSize, o.Memory = 3*simBlockSize, 6*3*simBlockSize })
	a.write(1, 0, 1, 10) // object 1
	a.write(2, 2, 3, 11) // object 2
	a.write(3, 4, 5, 12) // object 3
	a.write(4, 1, 3, 5)  // object 4
	a.write(5, 10, 11, 12)
	a.flush()
	var last *ruleHold
	read := a.hold(isFetch(3))
	done := a.collecting()
	last = read
	last.wait(w.t)
	a.write(6, 0)
	last.letGo()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
	return a
}

// compacted looks at what compacting leaves, before and after a restart from
// the store.
func (w *ruleWorld) compacted(a *ruleWriter) {
	w.t.Helper()
	for range 2 {
		for block, stamp := range map[uint64]uint64{0: 6, 1: 4, 2: 2, 3: 4, 4: 3, 5: 4, 10: 5, 11: 5, 12: 5} {
			a.holds(stamp, block)
		}
		a.flush()
		w.intact()
		opts := a.opts
		a.kill()
		w.wipe("a")
		a = w.open("a", func(o *Options) { o.ChunkSize, o.Memory = opts.ChunkSize, opts.Memory })
	}
}

// writtenBehind lays out blocks 0 and 1, of which block 0 is written again before they
// are handed over.
func (w *ruleWorld) writtenBehind() {
	w.t.Helper()
	a := w.open("a")
	a.write(1, 0, 1)
	a.flush()
	slot, err := a.e.log.Slot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	moves := make([]volume.Move, 2)
	for i := range moves {
		b := make([]byte, simBlockSize)
		simStamp(b, uint64(i), 1)
		slot.Lay(uint32(i), b)
		moves[i] = volume.Move{Block: uint64(i), Source: a.e.log.View().Get(uint64(i)), CRC: layout.CRC(b)}
	}
	a.write(6, 0)
	if moved := a.e.log.Rewrite(slot, moves); moved != 1 {
		w.t.Errorf("%d blocks were moved, not the one that was not written again", moved)
	}
	for range 2 {
		a.holds(6, 0)
		a.holds(1, 1)
		a.flush()
		w.intact()
		a.kill()
		w.wipe("a")
		a = w.open("a")
	}
}

// TestRuleGCIDX: blocks that died while the others were read, or after they were laid
// out, leave holes in the layout: a move points at its own data.
func TestRuleGCIDX(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) { w.compacted(w.compacting()) })
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) { w.writtenBehind() })
}

// TestRuleGCSTILL: a block that was written while it was laid out, or after that, is
// not moved.
func TestRuleGCSTILL(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.compacting()
		a.holds(6, 0)
		w.compacted(a)
	})
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) { w.writtenBehind() })
}

// TestRuleGCSEAL: a compaction seals the open chunk before it takes its key,
// so that the order of the keys is the order of the log.
func TestRuleGCSEAL(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1) // object 1
		a.write(2, 1, 2) // object 2
		a.flush()
		a.write(3, 3) // the open chunk
		report, err := a.e.collector.Compact(t.Context(), a.e.collector.Thin())
		if err != nil || report.Compacted == 0 {
			t.Fatalf("%+v, %v", report, err)
		}
		a.write(4, 0)
		a.flush()
		w.intact()
		a.kill()
		w.wipe("a")
		b := w.open("a")
		for block, stamp := range []uint64{4, 2, 2, 3} {
			b.holds(stamp, uint64(block))
		}
	})
}

// TestRuleINORDER: moves take effect at their place in the log, not when their
// object is stored: a checkpoint between would have the object as dead.
func TestRuleINORDER(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1) // object 1
		a.write(2, 1, 2) // object 2
		a.flush()
		put := a.hold(on(objtest.Put, key.Key(3).Name()))
		if _, err := a.e.collector.Compact(t.Context(), a.e.collector.Thin()); err != nil {
			t.Fatal(err)
		}
		put.wait(t)
		done := make(chan error, 1)
		go func() { done <- a.e.Checkpoint(t.Context()) }()
		synctest.Wait()
		put.letGo()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.intact()
		a.checkpoint()
		a.deleteDead()
		a.holds(1, 0)
		w.intact()
	})
}

// TestRuleEra: an object is not deleted while a read that looked it up has
// still to fetch it.
func TestRuleEra(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1)
		a.flush()
		synctest.Wait() // until it has left memory
		fetch := a.hold(isFetch(1))
		read := make(chan error, 1)
		p := make([]byte, simBlockSize)
		go func() { read <- a.e.ReadAt(t.Context(), p, 0) }()
		fetch.wait(t)
		a.write(2, 0, 1)
		a.checkpoint()
		a.checkpoint()
		done := a.collecting()
		synctest.Wait()
		if w.object(1) == nil {
			t.Fatal("the object is deleted under its reader")
		}
		fetch.letGo()
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if w.object(1) != nil {
			t.Fatal("the object is still there")
		}
		if got, err := simRead(p, 0); err != nil || got != 1 && got != 2 {
			t.Fatalf("block 0 holds write %d (%v)", got, err)
		}
	})
}
