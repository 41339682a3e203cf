package bs3

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// logFrames is a size of the local log: so many frames of one or two blocks.
func logFrames(n int64) int64 { return n * simPage }

// local is a change of options: the mode of the local log, on the disk of the
// host.
func (w *ruleWorld) local(host string) func(*Options) {
	if w.disks == nil {
		w.disks = make(map[string]*simDisk)
	}
	if w.disks[host] == nil {
		w.disks[host] = &simDisk{}
	}
	return func(o *Options) {
		o.Durable, o.CachePath, o.LogSize = false, w.cache(host), logFrames(64)
		o.openLog = w.disks[host].open
	}
}

func (w *ruleWorld) cache(host string) string { return filepath.Join(w.root, host+"-cache") }

func forget(o *Options) { o.ForgetLocalLog = true }

// crash is the end of a machine whose state directory is in memory. What was
// not synced on its disk is lost.
func (w *ruleWorld) crash(host string) {
	w.t.Helper()
	for _, x := range w.writers {
		if x.opts.Host.ID == host {
			x.kill()
		}
	}
	w.wipe(host)
	if err := w.disks[host].crash(filepath.Join(w.cache(host), "log"), func() bool { return false }); err != nil {
		w.t.Fatal(err)
	}
}

// flushedBehind leaves a volume with writes of host a that the store does not
// have: all but the last are flushed.
func (w *ruleWorld) flushedBehind() {
	w.t.Helper()
	a := w.open("a", w.local("a"))
	a.write(1, 0)
	if err := a.e.log.FlushToStore(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	a.hold(isObjectPut)
	a.hold(isObjectPut)
	a.write(2, 1)
	a.write(3, 2)
	a.flush()
	a.write(4, 3)
	a.kill()
}

// cameBack demands what was flushed.
func (w *ruleWorld) cameBack(x *ruleWriter) {
	w.t.Helper()
	for i := range uint64(3) {
		x.holds(1+i, i)
	}
}

// TestRuleLog: what was flushed survives the machine, what was acknowledged
// the daemon.
func TestRuleLog(t *testing.T) {
	t.Run("machine", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.flushedBehind()
			w.crash("a")
			a := w.open("a", w.local("a"))
			w.cameBack(a)
			a.holds(0, 3)
		})
	})
	t.Run("daemon", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.flushedBehind()
			a := w.open("a", w.local("a"))
			w.cameBack(a)
			a.holds(4, 3)
		})
	})
	t.Run("another mode", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.flushedBehind()
			w.crash("a")
			a := w.open("a", w.local("a"), func(o *Options) { o.Durable = true })
			w.cameBack(a)
			a.kill()
			w.cameBack(w.open("b"))
		})
	})
}

// TestRuleLDUR: the log keeps a write until the durable key covers it, not
// until it is stored: without the objects below it is lost.
func TestRuleLDUR(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", w.local("a"), func(o *Options) { o.LogSize = logFrames(3) })
		first := a.hold(on(objtest.Put, key.Key(1).Name()))
		a.write(1, 0, 1) // object 1
		a.flush()
		first.wait(t)
		a.write(2, 2, 3)
		a.flush()
		a.write(3, 4, 5)
		a.flush()
		synctest.Wait()
		if w.object(3) == nil {
			t.Fatal("object 3 is not stored")
		}
		a.write(4, 6, 7)
		flush := a.flushing() // there is no room
		a.kill()
		if err := <-flush; err == nil {
			t.Error("a flush did not wait for the store, although the log was full")
		}
		w.crash("a")
		a = w.open("a", w.local("a"))
		for i := range uint64(3) {
			a.holds(1+i, 2*i)
			a.holds(1+i, 2*i+1)
		}
	})
}

// TestLogFull: a flush that the log has no room for waits for the store.
func TestLogFull(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", w.local("a"), func(o *Options) { o.LogSize = logFrames(1) })
		put := a.hold(isObjectPut)
		a.write(1, 0)
		a.flush()
		a.write(2, 1)
		flush := a.flushing()
		put.wait(t)
		select {
		case err := <-flush:
			t.Fatal("the flush was acknowledged: ", err)
		default:
		}
		put.letGo()
		if err := <-flush; err != nil {
			t.Fatal(err)
		}
		if s := a.e.Status().LocalLog; s.FullFlushes != 1 || s.Failed != "" {
			t.Fatalf("%+v", s)
		}
		a.hold(isObjectPut)
		a.write(3, 2)
		a.flush() // there is room again
		w.crash("a")
		a = w.open("a", w.local("a"))
		for i := range uint64(3) {
			a.holds(1+i, i)
		}
	})
}

// TestRuleLGROUP: a flush counts only a sync that began after its writes were
// in the log.
func TestRuleLGROUP(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", w.local("a"))
		a.hold(isObjectPut)
		syncs := make(chan chan error)
		w.disks["a"].sync = func() error {
			ended := make(chan error)
			syncs <- ended
			return <-ended
		}
		a.write(1, 0)
		first := a.flushing()
		one := <-syncs
		a.write(2, 1)
		second := a.flushing()
		one <- nil
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-second:
			t.Fatal("acknowledged after a sync that had begun before: ", err)
		case two := <-syncs:
			two <- nil
		}
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		w.disks["a"].sync = nil
		w.crash("a")
		a = w.open("a", w.local("a"))
		a.holds(1, 0)
		a.holds(2, 1)
	})
}

// TestRuleLFSYNC: after a sync that failed, flushes wait for the store for
// good.
func TestRuleLFSYNC(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", w.local("a"))
		put := a.hold(isObjectPut)
		w.disks["a"].sync = func() error { return errSimDisk }
		a.write(1, 0)
		first := a.flushing()
		w.disks["a"].sync = nil
		second := a.flushing()
		put.wait(t)
		for _, f := range []<-chan error{first, second} {
			select {
			case err := <-f:
				t.Fatal("acknowledged from a log that has failed: ", err)
			default:
			}
		}
		if s := a.e.Status(); s.Mode != "durable" || s.LocalLog.Failed == "" {
			t.Errorf("%s, %+v", s.Mode, s.LocalLog)
		}
		put.letGo()
		if err := errors.Join(<-first, <-second); err != nil {
			t.Fatal(err)
		}
		w.crash("a")
		a = w.open("a", w.local("a"))
		a.holds(1, 0)
		if m := a.e.Mode(); m != "local log" {
			t.Errorf("a new daemon is in mode %s", m)
		}
	})
}

// TestRuleLBOTH: chunk memory and log make one history.
func TestRuleLBOTH(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		// As if the state directory were on a disk that has only the last write.
		kept := filepath.Join(w.root, "a")
		if err := os.Rename(kept, kept+".kept"); err != nil {
			t.Fatal(err)
		}
		w.crash("a")
		if err := os.Rename(kept+".kept", kept); err != nil {
			t.Fatal(err)
		}
		a := w.open("a", w.local("a"), func(o *Options) { o.Host.Boot[1] = 1 })
		w.cameBack(a)
		a.holds(4, 3)
	})
}

// TestRuleLINTENT: the intents of an open that died come through a crash of
// the machine, as the log does.
func TestRuleLINTENT(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		for range 2 {
			died := w.start("a", w.local("a"))
			claimed := died.holdAnswer(isVolumePut)
			died.launch()
			claimed.wait(t)
			w.crash("a")
		}
		w.cameBack(w.open("a", w.local("a")))
	})
}

// TestRuleLogLOLD: the log is there until what was replayed from it is stored.
func TestRuleLogLOLD(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		b := w.start("a", w.local("a"))
		fence := b.hold(isObjectPut)
		for range 4 {
			b.hold(isObjectPut)
		}
		b.launch()
		fence.wait(t)
		fence.letGo()
		time.Sleep(time.Second)
		w.crash("a")
		w.cameBack(w.open("a", w.local("a")))
	})
}

// TestRuleLogLNONCE: the log of a writer that another one has replaced is not
// replayed.
func TestRuleLogLNONCE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		b := w.open("b", forget)
		b.write(5, 1)
		b.flush()
		b.kill()
		w.wentOn(w.open("a", w.local("a")))
		if _, err := os.Stat(filepath.Join(w.cache("a"), "log.aside-1")); err != nil {
			t.Error(err)
		}
	})
}

// TestRuleLogLJUDGE: nor is it when that happened while we opened.
func TestRuleLogLJUDGE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		a := w.start("a", w.local("a"))
		claim := a.hold(isVolumePut)
		a.launch()
		claim.wait(t)
		b := w.open("b", forget)
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

// TestRuleLogLSHOWN: a log that was moved away, and comes back when a writer
// has gone on without it, is of the past.
func TestRuleLogLSHOWN(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		path := filepath.Join(w.cache("a"), "log")
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		b := w.open("a", w.local("a"), forget)
		b.write(5, 1)
		if err := b.e.log.FlushToStore(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.crash("a")
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		if err := w.start("a", w.local("a")).launch().opened(); !errors.Is(err, volume.ErrRefused) {
			t.Fatal("without the log of the last writer: ", err)
		}
		w.wentOn(w.open("a", w.local("a"), forget))
	})
}

// TestRuleVCOUNT: one wrong bit in the count of a slot hides no acknowledged
// write.
func TestRuleVCOUNT(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		stored := a.hold(isObjectPut)
		a.write(1, 0, 1) // two records, of one block each
		stored.wait(t)
		a.kill()
		f, err := os.OpenFile(filepath.Join(w.root, "a", "memory"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		page, slot, flipped := make([]byte, 4096), layout.SlotOffsets(2, simBlockSize).Size, 0
		for at := int64(layout.MemoryHeaderSize); ; at += slot {
			if _, err := f.ReadAt(page, at); err != nil {
				break
			}
			if n, ok := layout.SlotCount(page); !ok || n != 2 {
				continue
			}
			flipped++
			if _, err := f.WriteAt([]byte{0}, at+layout.SlotCountOffset); err != nil {
				t.Fatal(err)
			}
		}
		if flipped != 1 {
			t.Fatalf("%d slots hold two records", flipped)
		}
		if err := w.start("a").launch().opened(); !errors.Is(err, volume.ErrRefused) {
			t.Fatalf("two writes are hidden, and the open returns: %v", err)
		}
	})
}
