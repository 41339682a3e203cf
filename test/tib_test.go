package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// mkfs on an empty volume of 1 TiB, all of which it discards first, and the same on
// nbdkit's memory, which shows mkfs's own share of the time. The test shows both and
// fails only if the volume's share is wrong by a factor of ten. That is a promise,
// so it has a bound; nbdkit's time in it shows how slow a loaded machine is.
// Then files come and go, and fstrim frees what they took.
func TestMakeFileSystemsOnTiB(t *testing.T) {
	const (
		more  = 5 * time.Second // of time, at most
		files = 64 * mib
	)
	for _, f := range fileSystems() {
		t.Run(f.name, func(t *testing.T) {
			needTools(t, f.mkfs[0], f.fsck[0], "fstrim", "nbdkit", "nbdinfo")
			timed := func(b *blockDevice) time.Duration {
				began := time.Now()
				f.make(b)
				return time.Since(began)
			}
			socket := filepath.Join(t.TempDir(), "nbdkit.sock")
			nbdkit := start(t, "nbdkit", exec.Command("nbdkit", "-f", "-U", socket, "memory", "1T"))
			nbdkit.waitFor("nbdkit to listen", func() bool {
				_, err := os.Stat(socket)
				return err == nil
			})
			b := attach(t, "nbd+unix:///?socket="+socket)
			theirs := timed(b)
			b.detach()
			nbdkit.kill()

			v := newVolume(t, onDir).with("size", 1024).with("gc.wait", 0)
			d := v.start()
			b = v.attach()
			ours := timed(b)
			t.Logf("%v, on nbdkit's memory %v", ours.Round(time.Millisecond), theirs.Round(time.Millisecond))
			if ours > 3*theirs+10*more {
				t.Errorf("mkfs took %v, want at most %v more than the %v on nbdkit", ours, more, theirs)
			}

			point := t.TempDir()
			b.mountAt(point, f.name)
			trim := func() int64 {
				b.trim(f.name)
				v.call(nil, "gc", "--json")
				return v.status().StoredBytes
			}
			empty := trim()
			for _, name := range []string{"a", "b", "c", "d"} {
				if err := os.WriteFile(filepath.Join(point, name), randomBytes(files/4), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			command(t, "sync", "-f", point)
			if full := v.status().LiveBytes; full < files {
				t.Fatalf("%d bytes are live, want at least the %d of the files", full, files)
			}
			for _, name := range []string{"a", "b", "c", "d"} {
				if err := os.Remove(filepath.Join(point, name)); err != nil {
					t.Fatal(err)
				}
			}
			after := trim()
			t.Logf("the store holds %.1f MB of data after mkfs, %.1f after files of %d MB came and went",
				float64(empty)/float64(mib), float64(after)/float64(mib), files/mib)
			if after > empty+files/4 {
				t.Errorf("the store holds %d bytes of data, %d before the files came and went", after, empty)
			}
			b.unmount()
			f.check(b)
			b.detach()
			d.stop()
		})
	}
}
