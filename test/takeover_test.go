package test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

const exitFenced = 76

// elsewhere returns the same volume as another host sees it, which shares
// nothing but the store.
func (v *volume) elsewhere() *volume {
	v.t.Helper()
	other := emptyVolume(v.t)
	for key, value := range v.config {
		if _, own := other.config[key]; !own {
			other.config[key] = value
		}
	}
	return other
}

// A host dies with a volume. Another one is refused until it is told to take the
// volume over, and then has everything that was flushed. When the first host's
// daemon starts again, it sets its chunk memory aside.
func TestTakeoverFromADeadHost(t *testing.T) {
	for _, store := range []string{onDir, onVersitygw} {
		t.Run(store, func(t *testing.T) {
			a := newVolume(t, store).with("write.linger", 600_000)
			d := a.start()
			c := dial(t, a.socket)
			flushed := randomBytes(8 * mib)
			c.write(0, flushed)
			c.flush()
			c.write(0, randomBytes(mib)) // acknowledged, and only in chunk memory
			d.kill()

			b := a.elsewhere()
			code, _, errs := run(t, b.command())
			if code != exitRefused || !strings.Contains(errs, a.config["state.path"].(string)) || !strings.Contains(errs, "was not released") {
				t.Errorf("without --takeover: exit code %d, stderr %s", code, errs)
			}
			if now := a.info(); now.Epoch != 1 {
				t.Errorf("the refused daemon left epoch %d", now.Epoch)
			}
			d = b.start("--takeover")
			if !bytes.Equal(dial(t, b.socket).read(0, len(flushed)), flushed) {
				t.Error("the new host does not have what was flushed")
			}

			code, _, errs = run(t, a.command())
			if code != exitRefused || !strings.Contains(errs, "was not released") {
				t.Errorf("the old host, while the new one serves: exit code %d, stderr %s", code, errs)
			}
			d.stop() // releases it
			d = a.start()
			line := d.expect("set aside")
			if level := field[string](t, line, "level"); level != "error" {
				t.Errorf("the loss is logged at level %s: %s", level, line)
			}
			aside := field[string](t, line, "file")
			if found, err := filepath.Glob(filepath.Join(a.dir, "state", "memory.aside-*")); err != nil || len(found) != 1 || found[0] != aside {
				t.Errorf("set aside: %v (%v), the log says %s", found, err, aside)
			}
			if !bytes.Equal(dial(t, a.socket).read(0, len(flushed)), flushed) {
				t.Error("the old host does not have what the new one had")
			}
			d.stop()
		})
	}
}

// A volume is taken over from a live daemon. That one is fenced at its next
// upload: its clients get errors, it names who took over, and exits with a code
// of its own. It does the new one no harm.
func TestTakeoverFromALivingHost(t *testing.T) {
	for _, test := range []struct {
		name, store string
		stopped     bool // the old daemon stands still meanwhile
	}{
		{"dir", onDir, false},
		{"versitygw", onVersitygw, false},
		{"versitygw/stopped", onVersitygw, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newVolume(t, test.store)
			old := a.start()
			c := dial(t, a.socket)
			before := randomBytes(4 * mib)
			c.write(0, before)
			c.flush()
			if test.stopped {
				old.signal(syscall.SIGSTOP)
			}

			b := a.elsewhere().with("takeover", "auto")
			d := b.start()
			fresh := dial(t, b.socket)
			after := randomBytes(4 * mib)
			fresh.write(4*mib, after)
			fresh.flush()
			if test.stopped {
				old.signal(syscall.SIGCONT)
			}

			late := c.send(nbdWrite, 0, int(mib), randomBytes(mib)) // may be acknowledged, as it is in memory
			flush := c.send(nbdFlush, 0, 0, nil)
			if _, err := flush.wait(); err == nil {
				t.Error("a daemon that no longer owns the volume acknowledged a flush")
			}
			if _, err := late.wait(); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the fenced daemon does not answer a write")
			}
			host, err := os.Hostname()
			if err != nil {
				t.Fatal(err)
			}
			line := old.expect("the volume has failed")
			if why := field[string](t, line, "error"); !strings.Contains(why, "fenced") || !strings.Contains(why, "epoch 2") || !strings.Contains(why, host) {
				t.Errorf("the log does not say why: %s", line)
			}
			if code := old.wait(); code != exitFenced {
				t.Errorf("the fenced daemon's exit code is %d", code)
			}
			if !bytes.Equal(fresh.read(0, len(before)), before) || !bytes.Equal(fresh.read(4*mib, len(after)), after) {
				t.Error("the new host has other data than was written")
			}
			d.stop()
			b.wipeState()
			d = b.start()
			fresh = dial(t, b.socket)
			if !bytes.Equal(fresh.read(0, len(before)), before) || !bytes.Equal(fresh.read(4*mib, len(after)), after) {
				t.Error("the store has other data than was written")
			}
			d.stop()
		})
	}
}

// A daemon that stands still in the midst of its work, while another host takes
// the volume over, overwrites, checkpoints and collects it, destroys nothing when
// it resumes.
func TestStoppedDaemonGoesOn(t *testing.T) {
	const size = 16 * mib
	for range 3 { // stops at different points
		a := newVolume(t, onVersitygw).with("write.chunk_size", 1).with("write.memory", 32).
			with("gc.wait", 1).with("gc.idle_timeout", 0).with("gc.live_data", 0.5).with("checkpoint.interval", 1)
		old := a.start()
		busy := dial(t, a.socket)
		ended := make(chan error, 1)
		go func() {
			for {
				for off := int64(0); off < size; off += mib / 4 {
					if _, err := busy.send(nbdWrite, off, int(mib/4), randomBytes(mib/4)).wait(); err != nil {
						ended <- err
						return
					}
				}
			}
		}()
		old.waitFor("the old daemon to have deleted something", func() bool { return a.status().Collected.Deleted > 0 })
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		old.signal(syscall.SIGSTOP)

		b := a.elsewhere().with("takeover", "auto").with("gc.wait", 0)
		d := b.start()
		c := dial(t, b.socket)
		want := randomBytes(size)
		for range 2 {
			for off := int64(0); off < size; off += mib {
				c.write(off, want[off:][:mib])
			}
			c.flush()
			b.call(nil, "checkpoint")
		}
		b.call(nil, "gc", "--json")
		var before map[string]objproxy.Info
		d.waitFor("the new daemon to have swept what its checkpoints replaced", func() bool {
			before = b.bucket().objects(t)
			// The collection has written a checkpoint of what the last one has, in order
			// to delete: both need the one pack that has the volume's only leaf.
			checkpoints, packs := 0, 0
			for name := range before {
				if strings.Contains(name, "/"+layout.CheckpointPrefix) {
					checkpoints++
				} else if strings.Contains(name, "/"+layout.MapPrefix) {
					packs++
				}
			}
			return checkpoints == layout.MaxCheckpoints && packs == 1
		})

		old.signal(syscall.SIGCONT)
		if code := old.wait(); code != exitFenced {
			t.Errorf("the fenced daemon's exit code is %d", code)
		}
		if err := <-ended; err == nil {
			t.Error("the writer on the fenced daemon got no error")
		}
		after := b.bucket().objects(t)
		for name, info := range before {
			if after[name] != info {
				t.Errorf("%s was %v, is %v", name, info, after[name])
			}
		}
		t.Logf("%d objects, %d after the old daemon had resumed", len(before), len(after))
		if !bytes.Equal(c.read(0, len(want)), want) {
			t.Error("other data than was written")
		}
		c.write(0, want[:mib]) // replaces what the old daemon left above the end
		c.flush()
		d.kill()
		b.wipeState()
		d = b.start("--takeover")
		if !bytes.Equal(dial(t, b.socket).read(0, len(want)), want) {
			t.Error("after a restart on nothing but the store: other data than was written")
		}
		d.stop()
		if code, out, errs := run(t, b.command("fsck", "--data")); code != 0 {
			t.Errorf("fsck: exit code %d\n%s%s", code, out, errs)
		}
	}
}
