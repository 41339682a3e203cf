package bs3

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// through puts hooks before the way of a daemon, which has retries and two
// uploaders as a real one.
func through(before func(context.Context, objtest.Op) error) func(*Options) {
	return func(o *Options) {
		hooked := &objtest.Hooks{Inner: o.Store, Before: before}
		o.Store = objproxy.NewPriority(objproxy.NewRetry(hooked, objproxy.RetryOptions{}), 2, 2)
	}
}

// within runs f, which must end in time.
func within(t *testing.T, limit time.Duration, what string, f func() error) error {
	t.Helper()
	start := time.Now()
	err := f()
	if took := time.Since(start); took > limit {
		t.Errorf("%s took %v", what, took)
	}
	return err
}

// A store that does not delete (retention, object lock, keys that may only add,
// no such request) keeps what it has, and nothing else of the volume suffers.
func TestDeletesDenied(t *testing.T) {
	for name, answer := range map[string]func(ctx context.Context, names []string) error{
		"each name": func(_ context.Context, names []string) error {
			var failed []*objproxy.DeleteError
			for _, n := range names {
				failed = append(failed, &objproxy.DeleteError{Name: n, Err: errors.New("AccessDenied: protected")})
			}
			return objproxy.JoinDelete(failed)
		},
		"the request": func(context.Context, []string) error { return errors.New("501 NotImplemented") },
		"no answer":   func(context.Context, []string) error { return fmt.Errorf("503: %w", objproxy.ErrTransient) },
		"never": func(ctx context.Context, _ []string) error {
			<-ctx.Done()
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				var denied atomic.Bool
				denied.Store(true)
				a := w.open("a", through(func(ctx context.Context, op objtest.Op) error {
					if op.Kind == objtest.Delete && denied.Load() && !strings.HasPrefix(op.Name, objproxy.ProbePrefix) {
						return answer(ctx, op.Names)
					}
					return nil
				}))
				for i := range uint64(4) {
					a.write(1+i, 0, 1)
					_ = within(t, time.Second, "a checkpoint", func() error { a.checkpoint(); return nil })
				}
				collect, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				if _, err := a.e.GC(collect); err == nil {
					t.Error("a collection says that it has deleted what is dead")
				}
				if name != "never" {
					time.Sleep(time.Minute)
					u := a.e.Status().Undeleted
					if u == nil || u.Objects == 0 || u.Checkpoints == 0 || u.Error == "" || u.Since.IsZero() {
						t.Errorf("the status says: %+v", u)
					}
				}
				a.write(9, 0)
				_ = within(t, time.Second, "a flush", func() error { a.flush(); return nil })
				w.intact()
				if err := within(t, 5*time.Second, "a close", a.close); err != nil {
					t.Fatal(err)
				}
				if v, _, err := volume.ReadRecord(t.Context(), w.memory); err != nil || !v.Writer.Released {
					t.Errorf("it is not released: %v", err)
				}

				denied.Store(false)
				b := w.open("b")
				b.holds(9, 0)
				b.write(10, 0)
				b.collect()
				b.collect()
				if u := b.e.Status().Undeleted; u != nil {
					t.Errorf("the status still says: %+v", u)
				}
				if err := b.close(); err != nil {
					t.Fatal(err)
				}
				if n := w.names(layout.CheckpointPrefix); len(n) != layout.MaxCheckpoints {
					t.Errorf("checkpoints: %v", n)
				}
				for _, f := range w.check().Findings {
					if f.Kind == fsck.KindLeftover {
						t.Errorf("left: %v", f)
					}
				}
			})
		})
	}
}

// check returns what fsck says.
func (w *ruleWorld) check() *fsck.Report {
	w.t.Helper()
	report, err := fsck.Check(w.t.Context(), w.memory, fsck.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

// Of a batch, only what the store did not delete counts as being there.
func TestSomeDeletesDenied(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		protected := key.Key(2).Name()
		var denied atomic.Bool
		denied.Store(true)
		hooks := &objtest.Hooks{}
		a := w.open("a", func(o *Options) {
			hooks.Inner = o.Store
			o.Store = &someDenied{hooks, func(name string) bool { return denied.Load() && name == protected }}
		})
		for i := range uint64(5) {
			a.write(1+i, 0, 1)
			a.checkpoint()
		}
		_, err := a.e.GC(t.Context())
		if failed := objproxy.FailedDeletes(err); len(failed) != 1 || failed[0].Name != protected {
			t.Errorf("the error is %v", err)
		}
		if w.object(1) != nil || w.object(2) == nil || w.object(3) != nil {
			t.Errorf("there are: %v", w.names(""))
		}
		if u := a.e.Status().Undeleted; u == nil || u.Objects != 1 || u.Checkpoints != 0 {
			t.Errorf("the status says: %+v", u)
		}
		denied.Store(false)
		report, err := a.e.GC(t.Context())
		if err != nil || report.Deleted == 0 || w.object(2) != nil || a.e.Status().Undeleted != nil {
			t.Errorf("%+v, %v, %+v", report, err, a.e.Status().Undeleted)
		}
	})
}

// Old checkpoints that the store did not delete are asked for again by a collection,
// also if it writes no checkpoint.
func TestOldCheckpointsAskedForAgain(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		var denied atomic.Bool
		denied.Store(true)
		a := w.open("a", through(func(_ context.Context, op objtest.Op) error {
			if op.Kind == objtest.Delete && denied.Load() {
				return errors.New("AccessDenied")
			}
			return nil
		}))
		for i := range uint64(4) {
			a.write(1+i, i)
			a.checkpoint()
		}
		time.Sleep(time.Minute)
		if u := a.e.Status().Undeleted; u == nil || u.Checkpoints == 0 || u.Objects != 0 {
			t.Fatalf("the status says: %+v", u)
		}
		denied.Store(false)
		if _, err := a.e.collector.ByTime(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := w.names(layout.CheckpointPrefix); len(n) != layout.MaxCheckpoints || a.e.Status().Undeleted != nil {
			t.Errorf("there are %v; the status says: %+v", n, a.e.Status().Undeleted)
		}
	})
}

// Where some objects cannot be deleted, as under retention, collections go on with
// the others.
func TestCollectionGoesOnBesideDenied(t *testing.T) {
	for name, collect := range map[string]func(e *Engine, ctx context.Context) (gc.Report, error){
		"asked for": (*Engine).GC,
		"by time":   func(e *Engine, ctx context.Context) (gc.Report, error) { return e.collector.ByTime(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				a := w.open("a", func(o *Options) {
					o.GC.MaxGarbage = 0.1
					o.Store = &someDenied{o.Store, func(name string) bool { return name == key.Key(2).Name() }}
				})
				a.write(1, 4, 5) // object 1
				for i := range uint64(4) {
					a.write(2+i, 0, 1)
					a.checkpoint()
				}
				a.write(6, 4)
				a.write(7, 10, 11)
				a.flush()
				synctest.Wait()
				report, err := collect(a.e, t.Context())
				if failed := objproxy.FailedDeletes(err); len(failed) != 1 {
					t.Errorf("the error is %v", err)
				}
				if report.Compacted == 0 || report.Deleted == 0 || w.object(2) == nil || w.object(3) != nil {
					t.Errorf("%+v; there are %v", report, w.names(""))
				}
				a.write(8, 10) // and again, when nothing else can be deleted
				a.flush()
				synctest.Wait()
				for range 3 {
					a.checkpoint()
					_, _ = a.e.collector.DeleteDead(t.Context())
				}
				report, err = collect(a.e, t.Context())
				if len(objproxy.FailedDeletes(err)) != 1 || report.Compacted == 0 {
					t.Errorf("again: %+v, %v", report, err)
				}
				a.holds(1, 5)
				w.intact()
			})
		})
	}
}

// So does one that waits for another.
func TestCollectionWaitsBesideDenied(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", func(o *Options) {
			o.Store = &someDenied{o.Store, func(name string) bool { return name == key.Key(2).Name() }}
		})
		a.write(1, 0, 1) // object 1
		a.write(2, 1, 2) // object 2
		a.write(3, 3, 4) // object 3
		a.flush()
		synctest.Wait() // until they have left memory
		fetch := a.hold(isFetch(1))
		first := a.collecting()
		fetch.wait(t)
		a.write(4, 1, 2, 3, 4) // objects 2 and 3 are dead
		for range 2 {
			a.checkpoint()
		}
		second := a.collecting()
		if w.object(3) != nil {
			t.Error("a dead object waits for a collection that waits")
		}
		select {
		case err := <-second:
			t.Fatalf("the second collection does not wait: %v", err)
		default:
		}
		fetch.letGo()
		for _, done := range []<-chan error{first, second} {
			if err := <-done; len(objproxy.FailedDeletes(err)) != 1 {
				t.Errorf("the error is %v", err)
			}
		}
		w.intact()
	})
}

// A collection that has given up the reserve makes it again, also if the store then
// deletes nothing.
func TestReserveWhereDeletesAreDenied(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		q := &quota{w: w}
		given := false
		a := w.open("a", through(func(ctx context.Context, op objtest.Op) error {
			switch _, err := key.Parse(op.Name); {
			case op.Kind != objtest.Delete:
				return q.before(ctx, op)
			case op.Name == layout.ReserveName:
				given = true
				q.bytes.Store(0)
			case err == nil:
				return errors.New("AccessDenied")
			}
			return nil
		}), func(o *Options) { o.GC.Reserve = 20_000 })
		for i := range uint64(4) {
			a.write(1+i, 2*i, 2*i+1)
		}
		a.checkpoint()
		synctest.Wait()
		q.reached(100)
		a.write(9, 0, 1, 2, 3)
		_, err := a.e.GC(t.Context())
		if !given || err == nil {
			t.Errorf("given up: %v, %v", given, err)
		}
		if len(w.names(layout.ReserveName)) != 1 {
			t.Error("the reserve was not made again")
		}
	})
}

// someDenied is a store that does not delete some names.
type someDenied struct {
	objproxy.Store
	denied func(name string) bool
}

func (s *someDenied) Delete(ctx context.Context, names []string) error {
	var failed []*objproxy.DeleteError
	var rest []string
	for _, n := range names {
		if s.denied(n) {
			failed = append(failed, &objproxy.DeleteError{Name: n, Err: errors.New("AccessDenied")})
		} else {
			rest = append(rest, n)
		}
	}
	if err := s.Store.Delete(ctx, rest); err != nil {
		return err
	}
	return objproxy.JoinDelete(failed)
}

// A daemon that is killed while deletes are denied goes on where it was, and
// nobody else does without being told to.
func TestKilledWhileDeletesAreDenied(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		var denied atomic.Bool
		denied.Store(true)
		way := through(func(_ context.Context, op objtest.Op) error {
			if op.Kind == objtest.Delete && denied.Load() && !strings.HasPrefix(op.Name, objproxy.ProbePrefix) {
				return errors.New("AccessDenied")
			}
			return nil
		})
		noTakeover := func(o *Options) { o.Takeover = false }
		a := w.open("a", way, noTakeover)
		for i := range uint64(3) {
			a.write(1+i, 0, 1)
			a.checkpoint()
		}
		a.write(7, 2)
		a.flush()
		a.kill()
		if err := w.start("b", way, noTakeover).launch().opened(); !errors.Is(err, volume.ErrRefused) {
			t.Errorf("another host: %v", err)
		}
		c := w.open("a", way, noTakeover)
		c.holds(3, 0)
		c.holds(7, 2)
		denied.Store(false)
		c.write(9, 0)
		c.checkpoint()
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		if n := w.names(layout.CheckpointPrefix); len(n) != layout.MaxCheckpoints {
			t.Errorf("checkpoints: %v", n)
		}
		w.intact()
	})
}
