package bs3

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// TestRuleVGET: a zombie replaces a leftover only as it was when it judged it:
// not a newer writer's fence that came in between.
func TestRuleVGET(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.leftover()
		b := w.open("b") // fence at 1
		judged := b.holdAnswer(isFetch(2))
		b.write(3, 0, 1) // object 2
		flush := b.flushing()
		judged.wait(t)
		next := b.hold(func(op objtest.Op) bool { return op.Name == key.Key(2).Name() })
		judged.letGo()
		next.wait(t)
		c := w.open("c") // fence at 2
		next.letGo()
		w.fenced(<-flush)
		if o := w.object(2); !o.Fence || o.Epoch != 3 {
			t.Fatalf("the fence of epoch 3 was replaced by an object of epoch %d", o.Epoch)
		}
		c.write(4, 0)
		c.flush()
		c.holds(0, 1)
	})
}

// TestRuleRULE: what lies where the fence should be is judged: a leftover is
// replaced, an object of the writer before is part of the log.
func TestRuleRULE(t *testing.T) {
	t.Run("leftover", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.leftover()
			w.open("b").kill() // fence at 1
			c := w.open("c")   // fence at 2, in place of the leftover
			for block := range uint64(4) {
				c.holds(0, block)
			}
			if o := w.object(2); o.Epoch != 3 || !o.Fence {
				t.Fatalf("object 2 is of epoch %d", o.Epoch)
			}
		})
	})
	t.Run("last object", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			a := w.open("a")
			b := w.start("b")
			fence := b.hold(on(objtest.Put, key.Key(1).Name()))
			b.launch()
			fence.wait(t)
			a.write(1, 0)
			a.flush() // object 1, where the fence should be
			fence.letGo()
			if err := b.opened(); err != nil {
				t.Fatal(err)
			}
			b.holds(1, 0)
		})
	})
}

// TestRuleHIGHER: an opener that finds objects of a newer writer stops.
func TestRuleHIGHER(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		a.kill()
		b := w.start("b")
		claimed := b.holdAnswer(isVolumePut)
		b.launch()
		claimed.wait(t)
		c := w.open("c")
		c.write(2, 0, 1)
		c.flush()
		claimed.letGo()
		w.fenced(b.opened())
		c.write(3, 1)
		c.flush()
		c.kill()
		d := w.open("d")
		d.holds(2, 0)
		d.holds(3, 1)
	})
}

// TestRuleVERIFY: an opener that was passed by a newer writer, whose collector
// removed what it still had to read, takes the hole for the end of the log. It
// must look at the record again before it serves.
func TestRuleVERIFY(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		b := w.start("b")
		claimed := b.holdAnswer(isVolumePut)
		b.launch()
		claimed.wait(t)
		a.write(1, 0, 1) // object 1
		a.write(2, 2, 3) // object 2
		a.flush()
		a.kill()
		c := w.open("c")
		c.write(3, 0, 1, 2, 3)
		c.flush()
		c.checkpoint()
		if _, err := c.e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.object(1) != nil {
			t.Fatal("object 1 was not collected")
		}
		claimed.letGo()
		w.fenced(b.opened())
		c.holds(3, 0)
		w.intact()
	})
}

// TestPassedWithoutARecord: an opener that was passed by a newer writer does not
// serve, nor puts its record back, when the record of that one is lost: its fence
// is there.
func TestPassedWithoutARecord(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.open("a").kill()
		b := w.start("b")
		fenced := b.holdAnswer(isObjectPut)
		b.launch()
		fenced.wait(t)
		c := w.open("c")
		c.write(1, 0)
		c.flush()
		if err := w.memory.Delete(t.Context(), []string{layout.VolumeName}); err != nil {
			t.Fatal(err)
		}
		fenced.letGo()
		w.fenced(b.opened())
		if names := w.names(layout.VolumeName); len(names) > 0 {
			t.Error("the fenced opener has put a record")
		}
		c.checkpoint()
		w.intact()
	})
}

// TestRuleOWNF: an opener whose fence was stored, and the answer lost, finds
// it there and is done.
func TestRuleOWNF(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		a.kill()
		b := w.start("b")
		lost := false
		b.way.After = func(_ context.Context, op objtest.Op, err error) error {
			if isObjectPut(op) && err == nil && !lost {
				lost = true
				return errSimTransient
			}
			return err
		}
		b.launch()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.holds(1, 0)
		if !lost || w.object(2) == nil || w.object(3) != nil {
			t.Fatal("there is not one fence")
		}
	})
}

// TestRuleKEEPORPH: nothing above the end of the log is deleted: a newer
// writer's objects may be there by the time the delete arrives.
func TestRuleKEEPORPH(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.leftover()
		b := w.open("b")
		synctest.Wait()
		if w.object(2) == nil {
			t.Fatal("the leftover was deleted")
		}
		b.write(3, 0)
		b.flush()
		if o := w.object(2); o.Epoch != 2 {
			t.Fatal("the leftover was not replaced")
		}
	})
}

// TestRuleCKEPOCH: the log after a checkpoint begins with the epoch of its
// last object: a leftover behind that is none of it.
func TestRuleCKEPOCH(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.leftover()
		b := w.open("b") // fence at 1
		b.checkpoint()   // at 1
		b.kill()
		c := w.open("c")
		for block := range uint64(4) {
			c.holds(0, block)
		}
	})
}

// TestRuleNOBASE: without its checkpoints a volume is not opened, for the log
// before them may be gone.
func TestRuleNOBASE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		a.write(2, 0)
		a.checkpoint()
		a.kill()
		if err := w.memory.Delete(t.Context(), w.names(layout.CheckpointPrefix)); err != nil {
			t.Fatal(err)
		}
		if err := w.start("a").launch().opened(); err == nil {
			t.Fatal("a volume without its checkpoints was opened")
		}
	})
}

// TestRuleMEMDUR: what is above the durable key is read from memory: what the
// store has there may be another writer's by now.
func TestRuleMEMDUR(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		first := a.hold(on(objtest.Put, key.Key(1).Name()))
		a.write(1, 0, 1) // object 1
		a.write(2, 2, 3) // object 2
		first.wait(t)
		b := w.open("b") // fence at 1
		b.write(3, 2, 3) // object 2
		b.flush()
		a.holds(2, 2)
		a.holds(2, 3)
	})
}

// TestRuleSLOTDUR: chunk memory keeps what is stored until the durable key
// covers it: without the object below it is lost.
func TestRuleSLOTDUR(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.leftover()
		a := w.open("a") // the same host: everything acknowledged is there
		a.holds(1, 0)
		a.holds(1, 1)
		a.holds(2, 2)
		a.holds(2, 3)
	})
}

// TestRuleRHEAP: a pool that is full of what the store does not have does not
// keep an open from replaying it.
func TestRuleRHEAP(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for range a.opts.slots() {
			a.hold(isObjectPut)
		}
		for i := range uint64(2 * a.opts.slots()) {
			a.write(1+i, i)
		}
		if a.e.TryWriteAt(simRec{0, 1, 99}.data(), 0) {
			t.Fatal("the pool is not full")
		}
		a.kill()
		b := w.open("a")
		for i := range uint64(2 * b.opts.slots()) {
			b.holds(1+i, i)
		}
	})
}

// behind leaves unstored writes of host a in its chunk memory, which is then
// not the volume's any more: another host has gone on from the flushed one.
func (w *ruleWorld) behind(other string) {
	w.t.Helper()
	a := w.open("a")
	a.write(1, 0)
	a.flush()
	a.hold(isObjectPut)
	a.write(2, 1)
	a.write(3, 2)
	a.write(4, 3)
	a.kill()
	if other == "" {
		return
	}
	b := w.open(other)
	b.write(5, 1)
	b.flush()
	b.kill()
}

// TestRuleLNONCE: chunk memory of a writer that another one has replaced is
// not replayed.
func TestRuleLNONCE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("b")
		w.wentOn(w.open("a"))
	})
}

// wentOn demands the history of the other host.
func (w *ruleWorld) wentOn(x *ruleWriter) {
	w.t.Helper()
	x.holds(1, 0)
	x.holds(5, 1)
	x.holds(0, 2)
	x.holds(0, 3)
}

// TestRuleLCHAIN: nor is it when an open of ours died after its claim: that
// claim replaced the other writer, not the one of the memory.
func TestRuleLCHAIN(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		tried := w.start("a") // dies before its claim, with an intent to replace the writer of the memory
		claim := tried.hold(isVolumePut)
		tried.launch()
		claim.wait(t)
		tried.kill()
		b := w.open("b")
		b.write(5, 1)
		b.flush()
		b.kill()
		died := w.start("a") // dies when it has claimed
		claimed := died.holdAnswer(isVolumePut)
		died.launch()
		claimed.wait(t)
		died.kill()
		w.wentOn(w.open("a"))
	})
}

// TestRuleChain: chunk memory is replayed through opens of ours that claimed
// and died.
func TestRuleChain(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		for range 3 {
			died := w.start("a")
			claimed := died.holdAnswer(isVolumePut)
			died.launch()
			claimed.wait(t)
			died.kill()
		}
		a := w.open("a")
		for i := range uint64(4) {
			a.holds(1+i, i)
		}
	})
}

// TestRuleLJUDGE: each try of the claim judges chunk memory against the very
// record that it replaces.
func TestRuleLJUDGE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		a := w.start("a")
		claim := a.hold(isVolumePut)
		a.launch()
		claim.wait(t)
		b := w.open("b")
		b.write(5, 1)
		b.flush()
		b.kill()
		claim.letGo()
		if err := a.opened(); err != nil {
			t.Fatal(err)
		}
		w.wentOn(a)
	})
}

// TestRuleLSEQ: replay leaves out what the store has.
func TestRuleLSEQ(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		answer := a.holdAnswer(isObjectPut)
		a.write(1, 0)
		flush := a.flushing()
		answer.wait(t)
		a.hold(isObjectPut)
		a.write(2, 0)
		a.kill()
		t.Log("the flush: ", <-flush)
		b := w.open("a")
		b.holds(2, 0)
		if seq := b.e.log.Now().Seq; seq != 3 {
			t.Fatalf("after two writes the next sequence number is %d", seq)
		}
	})
}

// TestRuleLOLD: chunk memory is there until what was replayed from it is
// stored, however often an open dies.
func TestRuleLOLD(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		b := w.start("a")
		var puts []*ruleHold
		fence := b.hold(isObjectPut)
		for range 4 {
			puts = append(puts, b.hold(isObjectPut))
		}
		b.launch()
		fence.wait(t)
		fence.letGo()
		puts[0].wait(t)
		time.Sleep(time.Second)
		b.kill()
		a := w.open("a")
		for i := range uint64(4) {
			a.holds(1+i, i)
		}
	})
}

// TestRuleLSHOWN: the chain passes only opens that never served. Chunk memory
// that was moved away, and comes back when a writer has gone on without it, is
// of the past.
func TestRuleLSHOWN(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		path := filepath.Join(w.root, "a", "memory")
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		b := w.open("a")
		b.write(5, 1)
		b.flush()
		b.kill()
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		w.wentOn(w.open("a"))
	})
}

// TestRuleBEFORE: a refusal changes nothing, so what is to be replayed is judged
// before the claim.
func TestRuleBEFORE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		w.clearSlot("a", 2)
		before := w.versions()
		err := w.start("a").launch().opened()
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "write 2 is missing") {
			t.Fatal("opened: ", err)
		}
		if now := w.versions(); now != before {
			t.Fatalf("a refused open has changed the store:\n%s\nwas\n%s", now, before)
		}
	})
}

// TestRuleAGAIN: what an opener reads before its claim a living writer may remove
// meanwhile. That is no damage.
func TestRuleAGAIN(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		b := w.start("b")
		pack := b.hold(below(layout.MapPrefix, objtest.Get))
		b.launch()
		pack.wait(t)
		for i := range uint64(3) {
			a.write(2+i, 0)
			a.checkpoint()
		}
		pack.letGo()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.holds(4, 0)
	})
}

// TestRulePASSED: between two tries of a claim a living writer may remove what
// the next one would read next.
func TestRulePASSED(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.flush() // object 1
		b := w.start("b")
		claim := b.hold(isVolumePut)
		b.launch()
		claim.wait(t)
		a.write(2, 0)
		a.flush() // object 2
		for i := range uint64(2) {
			a.write(3+i, 0)
			a.checkpoint()
		}
		if _, err := a.e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.object(2) != nil {
			t.Fatal("object 2 was not collected")
		}
		claim.letGo()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.holds(4, 0)
	})
}

// TestRuleTABLE: what a living writer deletes between two tries of a claim is in
// no object table afterwards.
func TestRuleTABLE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(2) {
			a.write(1+i, 0)
			a.flush() // objects 1 and 2
		}
		b := w.start("b")
		claim := b.hold(isVolumePut)
		b.launch()
		claim.wait(t)
		a.checkpoint()
		a.checkpoint()
		if _, err := a.e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.object(1) != nil {
			t.Fatal("object 1 was not collected")
		}
		a.checkpoint()
		a.checkpoint()
		claim.letGo()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.holds(2, 0)
		b.checkpoint()
		w.intact()
	})
}

// TestRuleTWICE: one wrong answer of the store does not end the log: a fence in
// that place would destroy an object.
func TestRuleTWICE(t *testing.T) {
	for name, wrong := range map[string]func(o *layout.Object){
		"other volume": func(o *layout.Object) { o.UUID[0] ^= 1 },
		"older epoch":  func(o *layout.Object) { o.Epoch = 1 },
		"newer epoch":  func(o *layout.Object) { o.Epoch += 2 },
		"other key":    func(o *layout.Object) { o.Key++ },
		"sequence":     func(o *layout.Object) { o.FirstSeq += 7 },
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				w.open("a").kill() // fence at 0
				a := w.open("a")   // fence at 1
				a.write(1, 0)
				a.flush() // object 2
				a.write(2, 1)
				a.flush() // object 3
				a.kill()
				for k := key.Key(2); k <= 3; k++ {
					b := w.start("b")
					o := w.object(k)
					o.Records = slices.Clone(o.Records)
					wrong(o)
					for i := range o.Records { // so that it verifies
						o.Records[i].Seq = o.FirstSeq + uint64(i)
					}
					answer := layout.AppendTail(make([]byte, o.DataSize()), o)
					if _, err := layout.DecodeTail(answer, int64(len(answer))); err != nil {
						t.Fatal(err)
					}
					b.opts.Store = &otherAnswer{Store: b.opts.Store, name: k.Name(), answer: answer}
					b.launch()
					if err := b.opened(); err != nil {
						t.Fatal(err)
					}
					b.holds(1, 0)
					b.holds(2, 1)
					b.kill()
				}
			})
		})
	}
}

// otherAnswer is a store that answers the first Get of a name with other bytes,
// under the version of the right ones.
type otherAnswer struct {
	objproxy.Store
	name   string
	answer []byte
	given  atomic.Bool
}

func (s *otherAnswer) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := s.Store.Get(ctx, name, p, off)
	if err == nil && name == s.name && !s.given.Swap(true) {
		info.Size = int64(len(s.answer))
		n = copy(p, s.answer[max(0, len(s.answer)-len(p)):])
	}
	return n, info, err
}

// renewRecord stores the volume record as another one than any open has judged.
func (w *ruleWorld) renewRecord() {
	w.t.Helper()
	v, version, err := volume.ReadRecord(w.t.Context(), w.memory)
	if err != nil {
		w.t.Fatal(err)
	}
	v.Generation++
	text, err := layout.EncodeVolume(v)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.memory.Put(w.t.Context(), layout.VolumeName, objproxy.Body{Data: text}, objproxy.IfVersion(version)); err != nil {
		w.t.Fatal(err)
	}
}

// flip flips a bit of the last byte of an object.
func (w *ruleWorld) flip(name string) {
	w.t.Helper()
	b, _, err := volume.ReadAll(w.t.Context(), w.memory, name)
	if err != nil {
		w.t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if _, err := w.memory.Put(w.t.Context(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		w.t.Fatal(err)
	}
}

// TestRuleBASE: the checkpoint that the map was made from may be damaged when the
// volume is judged again. The next one is not made of the leaves of an older one.
func TestRuleBASE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		a.write(2, 0)
		a.checkpoint()
		a.kill()
		newest := w.names(layout.CheckpointPrefix)[1]
		b := w.start("b")
		claim := b.hold(isVolumePut)
		b.launch()
		claim.wait(t)
		w.flip(newest)
		w.renewRecord()
		claim.letGo()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.holds(2, 0)
		b.checkpoint()
		w.intact()
		b.kill()
		c := w.open("c")
		c.holds(2, 0)
	})
}

// TestDamagedPackIsNotShared: an open that has found the packs of the newest
// checkpoint damaged, and has to judge the volume again, builds on none of them:
// its own checkpoint would be damaged too.
func TestDamagedPackIsNotShared(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(20) {
			a.write(1+i, 2*i) // a large leaf
		}
		a.write(21, 4096) // a small one
		a.checkpoint()
		before := w.names(layout.MapPrefix)
		if err := a.e.Discard(t.Context(), 0, 40*simBlockSize); err != nil {
			t.Fatal(err)
		}
		a.checkpoint() // most of the pack before is not used any more: the small leaf is written again
		a.kill()
		for _, name := range w.names(layout.MapPrefix) {
			if slices.Contains(before, name) {
				continue
			}
			w.flip(name)
		}
		b := w.start("b")
		claim := b.hold(isVolumePut)
		b.launch()
		claim.wait(t)
		w.renewRecord()
		claim.letGo()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.checkpoint()
		w.intact()
		b.kill()
		c := w.open("c")
		c.holds(21, 4096)
	})
}
