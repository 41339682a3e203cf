package test

import (
	"crypto/sha256"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fileSystem says how to make and check one of Linux's file systems.
type fileSystem struct {
	name string
	mkfs []string // the device is appended
	fsck []string // changes nothing; the device is appended
}

func fileSystems() []fileSystem {
	return []fileSystem{
		{"ext4", []string{"mkfs.ext4", "-q"}, []string{"e2fsck", "-fn"}},
		{"xfs", []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n"}},
		{"btrfs", []string{"mkfs.btrfs", "-q"}, []string{"btrfs", "check", "--readonly"}},
	}
}

func (f fileSystem) make(b *blockDevice) {
	b.t.Helper()
	command(b.t, f.mkfs[0], append(f.mkfs[1:], b.path)...)
}

func (f fileSystem) check(b *blockDevice) {
	b.t.Helper()
	command(b.t, f.fsck[0], append(f.fsck[1:], b.path)...)
}

// The Go source tree in a file system survives if nothing but the store does, and
// deleting part of it frees space in the store.
func TestFileSystems(t *testing.T) {
	source := filepath.Join(goRoot(t), "src")
	for _, store := range []string{onDir, onVersitygw} {
		for _, f := range fileSystems() {
			t.Run(f.name+"/"+store, func(t *testing.T) {
				needTools(t, f.mkfs[0], f.fsck[0], "fstrim", "nbdinfo")
				v := newVolume(t, store)
				point := t.TempDir()
				tree := filepath.Join(point, "src")

				d := v.start()
				b := v.attach()
				f.make(b)
				b.mountAt(point, f.name)
				want := copyTree(t, source, tree)
				command(t, "sync", "-f", point)
				b.unmount()
				b.detach()
				d.stop()

				v.wipeState()
				d = v.start()
				b = v.attach()
				f.check(b)
				b.mountAt(point, f.name)
				sameTree(t, want, tree)

				before := v.dataBytes()
				for name := range want {
					if strings.HasPrefix(name, "cmd/") {
						delete(want, name)
					}
				}
				if err := os.RemoveAll(filepath.Join(tree, "cmd")); err != nil {
					t.Fatal(err)
				}
				b.trim(f.name)
				b.unmount()
				if after := v.dataBytes(); after > before-(10<<20) {
					t.Errorf("%d bytes of data before deleting 50 MB and fstrim, %d after", before, after)
				}
				b.detach()
				b = v.attach() // without the kernel's cache
				f.check(b)
				b.mountAt(point, f.name)
				sameTree(t, want, tree)
				b.unmount()
				b.detach()
				d.stop()
			})
		}
	}
}

type sum [sha256.Size]byte

// copyTree copies the regular files below from, and returns the checksums of what
// it wrote by name.
func copyTree(t *testing.T, from, to string) map[string]sum {
	t.Helper()
	want := map[string]sum{}
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case !e.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		want[name] = sha256.Sum256(content)
		return os.WriteFile(filepath.Join(to, name), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < 100 {
		t.Fatalf("%d files below %s are too few for a test", len(want), from)
	}
	return want
}

// sameTree checks that exactly the files of want are below dir.
func sameTree(t *testing.T, want map[string]sum, dir string) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		found++
		got, err := fileSum(path)
		if err == nil && got != want[name] {
			t.Errorf("%s has changed", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if found != len(want) {
		t.Errorf("found %d of %d files", found, len(want))
	}
}

func fileSum(path string) (s sum, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return sum(h.Sum(nil)), err
}
