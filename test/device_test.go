package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// blockDevice is a volume as a block device of this machine: nbdfuse shows the
// NBD export as a file, and a loop device turns that file into a block device.
type blockDevice struct {
	t     testing.TB
	fuse  *process
	point string // where nbdfuse is mounted
	file  string // the export as a file
	path  string // of the loop device; empty when detached
	mount string // where its file system is mounted; empty if it is not
}

// attach makes the served volume v a block device.
func (v *volume) attach() *blockDevice {
	t := v.t
	t.Helper()
	needRoot(t)
	needTools(t, "nbdfuse", "fusermount3", "losetup")
	return attach(t, v.uri())
}

func attach(t testing.TB, uri string) *blockDevice {
	t.Helper()
	point := t.TempDir()
	b := &blockDevice{t: t, point: point, file: filepath.Join(point, "nbd")}
	b.fuse = start(t, "nbdfuse", exec.Command("nbdfuse", point, uri))
	t.Cleanup(b.tearDown)
	b.fuse.waitFor("nbdfuse to show the export", func() bool {
		_, err := os.Stat(b.file)
		return err == nil
	})
	b.path = strings.TrimSpace(command(t, "losetup", "--find", "--show", b.file))
	return b
}

// mountAt mounts the device's file system.
func (b *blockDevice) mountAt(dir, fs string) {
	b.t.Helper()
	command(b.t, "mount", "-t", fs, b.path, dir)
	b.mount = dir
}

func (b *blockDevice) unmount() {
	b.t.Helper()
	command(b.t, "umount", b.mount)
	b.mount = ""
}

// trim discards what the mounted file system does not use. It mounts it anew
// first: xfs frees deleted blocks in the background, and sync does not wait for
// that.
func (b *blockDevice) trim(fs string) {
	b.t.Helper()
	dir := b.mount
	b.unmount()
	b.mountAt(dir, fs)
	command(b.t, "fstrim", dir)
}

// detach removes the device; its file system must not be mounted.
func (b *blockDevice) detach() {
	b.t.Helper()
	command(b.t, "losetup", "--detach", b.path)
	b.path = ""
	// The kernel lets go of the file a moment later.
	b.fuse.waitFor("nbdfuse to unmount", func() bool {
		return exec.Command("fusermount3", "-u", b.point).Run() == nil
	})
	if code := b.fuse.wait(); code != 0 {
		b.t.Fatalf("nbdfuse: exit code %d", code)
	}
}

// tearDown removes what a test that failed half-way has left. When the export
// hangs, so does everything above it; the limit says when to take it for hanging
// and kill nbdfuse. No test fails by that limit.
func (b *blockDevice) tearDown() {
	const limit = 20 * time.Second
	try := func(name string, args ...string) error {
		cmd := exec.Command(name, args...)
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			return err
		case <-time.After(limit):
			b.fuse.kill()
			return errors.Join(errors.New("hangs"), <-ended)
		}
	}
	if b.mount != "" {
		b.t.Logf("umount %s: %v", b.mount, try("umount", b.mount))
	}
	if b.path != "" {
		b.t.Logf("losetup --detach %s: %v", b.path, try("losetup", "--detach", b.path))
	}
	if b.mount != "" || b.path != "" {
		_ = try("fusermount3", "-u", "-z", b.point)
	}
}
