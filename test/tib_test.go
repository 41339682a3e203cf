package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// File systems are made on an empty volume of 1 TiB, all of which mkfs discards
// first. The same on nbdkit's memory tells what of the time is mkfs's own; both
// are shown, and the test fails only when they are wrong by a factor of ten.
// Then files come and go, and fstrim gives back what they took.
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
			waitFor(t, startLimit, "nbdkit to listen", func() bool {
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
			if ours > theirs+10*more {
				t.Errorf("it should take at most %v longer than %v", more, theirs)
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
			command(t, 5*time.Minute, "sync", "-f", point)
			if full := v.status().LiveBytes; full < files {
				t.Fatalf("with files of %d bytes %d are live", files, full)
			}
			for _, name := range []string{"a", "b", "c", "d"} {
				if err := os.Remove(filepath.Join(point, name)); err != nil {
					t.Fatal(err)
				}
			}
			after := trim()
			t.Logf("the store holds %.1f MB of data after mkfs, %.1f when files of %d MB were made and deleted",
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
