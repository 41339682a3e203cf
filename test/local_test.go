package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// `make run` and the commands that it prints, as a user would try them: a file
// system, Ctrl-C, and the same again.
func TestLocal(t *testing.T) {
	ext4 := fileSystems()[0]
	needRoot(t)
	needTools(t, ext4.mkfs[0], ext4.fsck[0], "nbdfuse", "fusermount3", "losetup")
	dir, point := t.TempDir(), t.TempDir()
	// The socket has a fixed place below dir.
	uri := "nbd+unix:///?socket=" + filepath.Join(dir, ".bs3/nbd.sock")
	launch := func() *daemon {
		d := &daemon{start(t, "bs3", bs3(dir, "--local"))}
		d.expect("serving")
		return d
	}

	d := launch()
	b := attach(t, uri)
	ext4.make(b)
	b.mountAt(point, ext4.name)
	want := copyTree(t, filepath.Join(goRoot(t), "src"), filepath.Join(point, "src"))
	command(t, "sync")
	b.unmount()
	b.detach()
	d.stop()

	d = launch()
	b = attach(t, uri)
	ext4.check(b)
	b.mountAt(point, ext4.name)
	sameTree(t, want, filepath.Join(point, "src"))
	b.unmount()
	b.detach()
	d.stop()

	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != ".bs3" {
		t.Errorf("besides .bs3 it left %v (%v)", entries, err)
	}
}

// goRoot is where Go and its sources are.
func goRoot(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(command(t, "go", "env", "GOROOT"))
}
