package bs3

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/device"
)

// quota is how many bytes the store of a world takes; 0 = any number.
type quota struct {
	w     *ruleWorld
	bytes atomic.Int64
}

func (w *ruleWorld) stored() (bytes int64) {
	w.t.Helper()
	list, err := w.memory.List(w.t.Context(), "", "", 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range list {
		bytes += o.Size
	}
	return bytes
}

func (q *quota) before(_ context.Context, op objtest.Op) error {
	if n := q.bytes.Load(); op.Kind == objtest.Put && n > 0 && q.w.stored()+op.Bytes > n {
		return errors.New("QuotaExceeded")
	}
	return nil
}

// reached leaves room for so many bytes.
func (q *quota) reached(room int64) { q.bytes.Store(q.w.stored() + room) }

// full is a volume in a store that has no room any more. Objects 1 to 8 are dead
// in both checkpoints, a checkpoint waits for an upload, and so do more uploads
// than there are uploaders.
func (w *ruleWorld) full(change ...func(*Options)) (*ruleWriter, *quota) {
	w.t.Helper()
	q := &quota{w: w}
	a := w.open("a", append([]func(*Options){through(q.before)}, change...)...)
	for range 2 {
		for i := range uint64(8) {
			a.write(1+i, 2*i, 2*i+1)
		}
		a.flush()
		a.checkpoint()
	}
	a.write(9, 20)
	a.checkpoint()
	synctest.Wait()
	q.reached(100)
	a.write(19, 40)
	go func() { _ = a.e.Checkpoint(w.t.Context()) }()
	synctest.Wait() // until it waits
	for i := range uint64(3) {
		a.write(20+i, 30+2*i, 31+2*i)
	}
	synctest.Wait()
	return a, q
}

// What is dead in the kept checkpoints is deleted although nothing gets into the
// store, and then all that waited goes on.
func TestFullStoreGivesBackGarbage(t *testing.T) {
	for name, collect := range map[string]func(a *ruleWriter) error{
		"asked for": func(a *ruleWriter) error { _, err := a.e.GC(a.w.t.Context()); return err },
		"by time":   func(*ruleWriter) error { time.Sleep(2 * time.Hour); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				a, _ := w.full(func(o *Options) {
					if name == "by time" {
						o.GC.Wait = time.Hour
					}
				})
				flush := a.flushing()
				select {
				case err := <-flush:
					t.Fatalf("the store is not full: %v", err)
				case <-time.After(time.Minute):
				}
				if err := collect(a); err != nil {
					t.Fatal(err)
				}
				if w.object(1) != nil || w.object(2) != nil || w.object(3) != nil {
					t.Error("dead objects are still there")
				}
				select {
				case err := <-flush:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(time.Minute):
					t.Error("the flush does not go on")
				}
				w.intact()
			})
		})
	}
}

// What can be deleted is, also while a collection is under way that does not get
// on.
func TestDeletesBesideCollection(t *testing.T) {
	for name, wait := range map[string]time.Duration{"asked for": 0, "by time": time.Hour} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				a := w.open("a", func(o *Options) { o.GC.Wait = wait })
				a.write(1, 0, 1) // object 1
				a.write(2, 1, 2) // object 2
				a.flush()
				synctest.Wait() // until they have left memory
				fetch := a.hold(isFetch(1))
				first := a.collecting()
				fetch.wait(t)
				a.write(3, 1, 2) // object 2 is dead
				for range 2 {
					a.checkpoint()
				}
				if wait > 0 {
					time.Sleep(wait + time.Second)
				} else {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if _, err := a.e.GC(ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("the second collection: %v", err)
					}
				}
				if w.object(2) != nil {
					t.Error("a dead object waits for a collection that waits")
				}
				fetch.letGo()
				if err := <-first; err != nil {
					t.Error(err)
				}
				w.intact()
			})
		})
	}
}

// A collection by time moves nothing while nothing gets into the store: it would
// have to get there before what frees something.
func TestFullStoreIsNotCompacted(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		q := &quota{w: w}
		a := w.open("a", through(q.before), func(o *Options) { o.GC.MaxGarbage = 0.1 })
		for i := range uint64(4) {
			a.write(1+i, 2*i, 2*i+1)
		}
		a.write(9, 0, 2)
		a.write(9, 4, 6)
		a.flush()
		synctest.Wait()
		q.reached(100)
		a.write(10, 20)
		flush := a.flushing()
		next := a.e.log.Now().Next
		if len(a.e.collector.Excess(0.1)) == 0 {
			t.Fatal("there is nothing to compact")
		}
		report, err := a.e.collector.ByTime(t.Context())
		if err != nil || report != (gc.Report{}) {
			t.Errorf("%+v, %v", report, err)
		}
		if now := a.e.log.Now().Next; now != next {
			t.Errorf("the log has grown to %d, from %d", now, next)
		}
		q.bytes.Store(0)
		if err := <-flush; err != nil {
			t.Error(err)
		}
		if report, err = a.e.collector.ByTime(t.Context()); err != nil || report.Compacted == 0 {
			t.Errorf("with room: %+v, %v", report, err)
		}
	})
}

// A discard at the quota, without a byte more of it, gives its space back, if what
// was written before it fits into the reserve.
func TestFullStoreIsEmptied(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		q := &quota{w: w}
		a := w.open("a", through(q.before), func(o *Options) { o.GC.Reserve = 20_000 })
		const thin, discarded = 120, 150
		for i := range uint64(thin + discarded) {
			a.write(1+i, 2*i, 2*i+1)
		}
		for i := range uint64(thin) { // they want to be moved, which takes more room than the reserve has
			a.write(1000+i, 2*i)
		}
		a.flush()
		a.checkpoint()
		synctest.Wait()
		if len(w.names(layout.ReserveName)) != 1 {
			t.Fatal("there is no reserve")
		}
		before := w.stored()
		q.reached(100)
		a.write(2000, 1000)
		flush := a.flushing()
		time.Sleep(time.Minute)
		if err := a.e.Discard(t.Context(), 2*thin*simBlockSize, 2*discarded*simBlockSize); err != nil {
			t.Fatal(err)
		}
		done := a.collecting()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(5 * time.Minute):
			t.Fatal("the collection does not end")
		}
		if err := <-flush; err != nil {
			t.Error(err)
		}
		if after := w.stored(); after > before-2*discarded*simBlockSize {
			t.Errorf("%d bytes are stored, before %d", after, before)
		}
		if len(w.names(layout.ReserveName)) != 1 {
			t.Error("the reserve was not made again")
		}
		w.intact()
		for _, f := range w.check().Findings {
			if f.Kind == fsck.KindLeftover {
				t.Errorf("fsck says: %v", f)
			}
		}
		a.holds(2000, 1000)
		a.holds(1002, 4)
		a.holds(3, 5)
		a.kill()
		w.wipe("a")
		w.open("a").holds(2000, 1000)
	})
}

// What a collection has deleted is not deleted again by later writers, if the
// volume was closed, and fsck says where the table and the store differ.
func TestDeletedStaysDeleted(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(map[bool]string{true: "closed", false: "killed"}[clean], func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				deletes := 0
				counted := through(func(_ context.Context, op objtest.Op) error {
					if _, err := key.Parse(op.Name); err == nil && op.Kind == objtest.Delete {
						deletes++
					}
					return nil
				})
				a := w.open("a", counted)
				for i := range uint64(5) {
					a.write(1+i, 0, 1)
				}
				a.flush()
				a.collect()
				if deletes == 0 {
					t.Fatal("nothing was collected")
				}
				end := func(x *ruleWriter) {
					if !clean {
						x.kill()
					} else if err := x.close(); err != nil {
						t.Fatal(err)
					}
				}
				end(a)
				if gone := w.check().GoneObjects; clean != (gone == 0) {
					t.Errorf("fsck says that %d objects of the table are gone", gone)
				}
				deletes = 0
				b := w.open("a", counted)
				if s := b.e.Status(); clean && s.StoredBytes != s.LiveBytes {
					t.Errorf("the status says: %+v", s)
				}
				b.collect()
				if clean && deletes > 0 {
					t.Errorf("%d requests delete what is gone", deletes)
				}
				if err := b.close(); err != nil { // whatever the writer before did
					t.Fatal(err)
				}
				if report := w.check(); report.GoneObjects != 0 || report.Infos != 0 {
					t.Errorf("fsck says: %+v", report)
				}
				deletes = 0
				c := w.open("a", counted)
				c.collect()
				if deletes > 0 {
					t.Errorf("%d requests delete again what is gone", deletes)
				}
				c.holds(5, 0)
			})
		})
	}
}

// Who wants to give up the reserve waits while it is being stored, and holds up
// nothing else.
func TestReserveIsStoredSlowly(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		q := &quota{w: w}
		a := w.start("a", through(q.before), func(o *Options) { o.GC.Reserve = 20_000 })
		put := a.hold(on(objtest.Put, layout.ReserveName))
		if err := a.launch().opened(); err != nil {
			t.Fatal(err)
		}
		put.wait(t)
		q.reached(100)
		a.write(1, 0)
		done := a.collecting()
		time.Sleep(7 * time.Second) // now it has found out that the store is full
		q.bytes.Store(0)
		put.letGo()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(w.names(layout.ReserveName)) != 1 {
			t.Error("the reserve was not made again")
		}
	})
}

// The reserve grows with the volume, and the next writer does not store it again.
func TestReserveGrows(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		puts := 0
		open := func() *ruleWriter {
			x := w.open("a", through(func(_ context.Context, op objtest.Op) error {
				if op.Kind == objtest.Put && op.Name == layout.ReserveName {
					puts++
				}
				return nil
			}), func(o *Options) { o.GC.Reserve = 1000 })
			synctest.Wait()
			return x
		}
		size := func() int64 {
			_, info, err := w.memory.Get(t.Context(), layout.ReserveName, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size
		}
		a := open()
		first := size()
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
		b := open()
		if puts != 1 {
			t.Errorf("stored %d times", puts)
		}
		for i := range uint64(50) {
			b.write(1+i, 2*i, 2*i+1)
		}
		b.collect()
		b.collect()
		if puts != 2 || size() < first+50*64 {
			t.Errorf("stored %d times: %d bytes, then %d", puts, first, size())
		}
	})
}

// A volume that is closed is not collected any more, however late that is asked for.
func TestCollectionAfterClose(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(4) {
			a.write(1+i, 0, 1)
			a.checkpoint()
		}
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
		before := w.versions()
		if _, err := a.e.GC(t.Context()); !errors.Is(err, device.ErrStopped) {
			t.Errorf("the error is %v", err)
		}
		if after := w.versions(); after != before {
			t.Errorf("the store had %s, and has %s", before, after)
		}
	})
}
