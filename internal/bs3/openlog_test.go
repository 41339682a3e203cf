package bs3

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// TestLogNeeded: a volume whose writer had a local log is not opened without
// it, unless it was released, or somebody says so.
func TestLogNeeded(t *testing.T) {
	refused := func(t *testing.T, w *ruleWorld, host string, change ...func(*Options)) {
		t.Helper()
		err := w.start(host, change...).launch().opened()
		if !errors.Is(err, volume.ErrRefused) {
			t.Fatalf("on %s: %v", host, err)
		}
		t.Log(err)
	}
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		refused(t, w, "b")
		refused(t, w, "b", w.local("b"))
		refused(t, w, "a") // without its cache.path
		w.cameBack(w.open("a", w.local("a")))
		if err := w.writers[len(w.writers)-1].close(); err != nil {
			t.Fatal(err)
		}
		b := w.open("b") // it was released
		w.cameBack(b)
		if err := b.close(); err != nil {
			t.Fatal(err)
		}
		a := w.open("a", w.local("a")) // nothing in its log is missed
		w.cameBack(a)
		if _, err := os.Stat(filepath.Join(w.cache("a"), "log.aside-1")); !errors.Is(err, os.ErrNotExist) {
			t.Error("a log of which nothing is needed was set aside: ", err)
		}
	})
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		if err := os.RemoveAll(w.cache("a")); err != nil {
			t.Fatal(err)
		}
		refused(t, w, "a", w.local("a"))
		a := w.open("a", w.local("a"), forget)
		a.holds(1, 0) // a prefix
		a.holds(0, 1)
		a.holds(0, 2)
		a.write(2, 1)
		a.flush()
		w.crash("a")
		a = w.open("a", w.local("a"))
		a.holds(2, 1)
	})
	// The flag costs nothing where the log is at hand.
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		w.crash("a")
		w.cameBack(w.open("a", w.local("a"), forget))
	})
}

// TestLogMadeAnew: who dies while a log of another size is made leaves a volume
// that opens without being told to forget anything: nothing is missing.
func TestLogMadeAnew(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		// The making fails behind the removal of the old log.
		b := w.start("a", w.local("a"), func(o *Options) { o.LogSize *= 2 })
		open := b.opts.openLog
		ctx, dies := context.WithCancel(t.Context())
		made := false
		b.opts.openLog = func(path string) (wlog.LogFile, error) {
			if made {
				dies()
				if err := os.Remove(path); err != nil {
					return nil, err
				}
			}
			made = true
			return open(path)
		}
		if _, err := Open(ctx, b.opts); !errors.Is(err, context.Canceled) {
			t.Fatal("opened: ", err)
		}
		a := w.open("a", w.local("a"))
		w.cameBack(a)
		a.holds(4, 3)
	})
}

// TestLogDamage: a log that has lost what it had synced is no end of the
// history.
func TestLogDamage(t *testing.T) {
	damage := func(t *testing.T, w *ruleWorld, at int64) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(w.cache("a"), "log"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("damage"), at); err != nil {
			t.Fatal(err)
		}
	}
	for name, at := range map[string]int64{"header": 20, "frame": simPage + 50, "data": simPage + 250} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				a := w.open("a", w.local("a"))
				a.hold(isObjectPut)
				for i := range uint64(3) {
					a.write(1+i, i)
					a.flush()
				}
				w.crash("a")
				damage(t, w, at)
				err := w.start("a", w.local("a")).launch().opened()
				if !errors.Is(err, volume.ErrRefused) {
					t.Fatal("opened: ", err)
				}
				t.Log(err)
				a = w.open("a", w.local("a"), forget)
				for i := range uint64(3) {
					a.holds(0, i)
				}
			})
		})
	}
}

// TestLogDiskFailsNth: the 1st, 2nd, 3rd … call of the disk fails while a volume
// is opened that needs its log, and while it is written. Whatever comes of that,
// what was flushed is there when the disk works again.
func TestLogDiskFailsNth(t *testing.T) {
	opened, refused, failed := 0, 0, 0
	for n, fired := 1, true; fired && !t.Failed(); n++ {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.flushedBehind()
			w.crash("a")
			calls := 0
			w.disks["a"].fault = func() error {
				if calls++; calls == n {
					return errSimDisk
				}
				return nil
			}
			want := []uint64{1, 2, 3}
			before := w.versions()
			a := w.start("a", w.local("a")).launch()
			switch err := a.opened(); {
			case err == nil:
				opened++
				w.cameBack(a)
				for i := range uint64(4) {
					a.write(5+i, 3+i)
					a.flush()
					want = append(want, 5+i)
				}
				w.crash("a")
			case errors.Is(err, volume.ErrRefused):
				refused++
				if w.versions() != before {
					t.Errorf("call %d: %v, but the store was changed", n, err)
				}
			case !errors.Is(err, errSimDisk):
				t.Errorf("call %d: %v", n, err)
			default: // behind the claim
				failed++
			}
			fired = calls >= n
			w.disks["a"].fault = nil
			a = w.open("a", w.local("a"))
			for i, stamp := range want {
				a.holds(stamp, uint64(i))
			}
		})
	}
	if opened == 0 || refused == 0 {
		t.Errorf("%d opened, %d refused", opened, refused)
	}
	t.Logf("%d opened, %d refused, %d failed behind the claim", opened, refused, failed)
}

// TestLogWithoutDisk: a disk that fails before there is anything on it only
// costs the mode.
func TestLogWithoutDisk(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		change := w.local("a")
		w.disks["a"].sync = func() error { return errSimDisk }
		a := w.open("a", change)
		if s := a.e.Status(); s.Mode != "durable" || s.LocalLog.Failed == "" {
			t.Fatalf("%s, %+v", s.Mode, s.LocalLog)
		}
		put := a.hold(isObjectPut)
		a.write(1, 0)
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
		a.kill()
		w.open("b").holds(1, 0) // nothing says that a log is needed
	})
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		path := w.cache("a")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		a := w.open("a", w.local("a")) // no directory
		if m := a.e.Mode(); m != "durable" {
			t.Fatal(m)
		}
		a.write(1, 0)
		a.flush()
	})
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.start("a", w.local("a"))
		a.opts.openLog = func(string) (wlog.LogFile, error) { return nil, errSimDisk } // and there is nothing to be set aside
		if err := a.launch().opened(); err != nil {
			t.Fatal(err)
		}
		if m := a.e.Mode(); m != "durable" {
			t.Fatal(m)
		}
		a.write(1, 0)
		a.flush()
	})
	// No intent can be written where the directory is gone: that is an error only
	// if the log holds something.
	for _, holds := range []bool{false, true} {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			if holds {
				w.flushedBehind()
			}
			a := w.start("a", w.local("a"))
			open := a.opts.openLog
			a.opts.openLog = func(path string) (wlog.LogFile, error) {
				f, err := open(path)
				if err := os.RemoveAll(filepath.Dir(path)); err != nil {
					t.Error(err)
				}
				return f, err
			}
			switch err := a.launch().opened(); {
			case holds && err == nil:
				t.Fatal("opened without an intent beside the log")
			case !holds && err != nil:
				t.Fatal(err)
			case !holds && a.e.Mode() != "durable":
				t.Fatal(a.e.Mode())
			}
		})
	}
}

// TestLogUnreadable: a log that cannot be read is somebody's, and kept.
func TestLogUnreadable(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.flushedBehind()
		b := w.start("b", w.local("a"), forget)
		open, opened := b.opts.openLog, false
		b.opts.openLog = func(path string) (wlog.LogFile, error) {
			if !opened {
				opened = true
				return nil, errSimDisk
			}
			return open(path)
		}
		claim := b.hold(isVolumePut)
		b.launch()
		claim.wait(t)
		w.open("c", forget) // so that it is judged twice
		claim.letGo()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		if m := b.e.Mode(); m != "local log" {
			t.Error(m)
		}
		if _, err := os.Stat(filepath.Join(w.cache("a"), "log.aside-1")); err != nil {
			t.Error(err)
		}
	})
}
