package test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The disk cache keeps what was written or read for later daemons, whatever
// becomes of their state; and nothing is believed that a damaged cache says.
func TestDiskCache(t *testing.T) {
	v := newVolume(t, onDir).with("cache.path", filepath.Join(t.TempDir(), "cache")).with("cache.size", 1).with("read.cache_size", 0)
	data := randomBytes(16 * mib)
	d := v.start()
	c := dial(t, v.socket)
	const piece = 64 << 10 // larger writes count as streams
	for at := 0; at < len(data); at += piece {
		c.write(int64(at), data[at:at+piece])
	}
	c.flush()
	look := func(what string, least int64) {
		t.Helper()
		if !bytes.Equal(dial(t, v.socket).read(0, len(data)), data) {
			t.Errorf("%s: other data than was written", what)
		}
		cache := v.status().DiskCache
		if cache == nil || cache.Failed != "" || cache.Hits < uint64(least) || least == 0 && cache.Hits > 0 {
			t.Errorf("%s: %+v", what, cache)
		}
	}
	d.stop() // writes what waits for the disk
	v.wipeState()
	d = v.start()
	look("the next daemon", 16*mib/blockSize/2)
	d.kill()

	damageCache(t, filepath.Join(v.config["cache.path"].(string), "cache"))
	d = v.start()
	look("a damaged cache", 0)
	d.stop()
}

// damageCache changes bytes in every block of a disk cache and in every other of
// its tables (docs/FORMAT.md).
func damageCache(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const page, tablePages, blocks = 4096, 2, 340
	table := make([]byte, tablePages*page)
	used := 0
	for set := int64(page); ; set += (tablePages + blocks) * page {
		if n, _ := f.ReadAt(table, set); n < len(table) {
			break
		}
		if bytes.Equal(table, make([]byte, len(table))) {
			continue
		}
		used++
		for i := range int64(tablePages + blocks) {
			if i < tablePages && used%2 == 0 {
				continue
			}
			if _, err := f.WriteAt([]byte("damage"), set+i*page+100); err != nil {
				t.Fatal(err)
			}
		}
	}
	if used == 0 {
		t.Fatal("the cache is empty")
	}
}

// If the disk has no room for log and cache, the daemon says so and does without:
// flushes then wait for the store.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("bs3-test", disk, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	v := newVolume(t, onDir).inMode(localLog).with("cache.path", filepath.Join(disk, "cache"))
	d := v.start()
	data := randomBytes(2 * mib)
	c := dial(t, v.socket)
	c.write(0, data)
	c.flush()
	s := v.status()
	if s.Mode != durable || s.LocalLog == nil || !strings.Contains(s.LocalLog.Failed, "no space") || s.DiskCache != nil {
		t.Errorf("%+v, log %+v, cache %+v", s, s.LocalLog, s.DiskCache)
	}
	for _, text := range []string{"local log has failed", "going on without the disk cache"} {
		if len(d.logged(text)) != 1 {
			t.Errorf("the daemon does not log once that %q", text)
		}
	}
	d.kill()
	v.wipeState()
	v.with("cache.path", "")
	d = v.start()
	if !bytes.Equal(dial(t, v.socket).read(0, len(data)), data) {
		t.Error("other data than was written")
	}
	d.stop()
}

// A local log belongs to its volume, and to the daemon that has it open.
func TestLocalLogRefusals(t *testing.T) {
	v := newVolume(t, onDir).inMode(localLog)
	d := v.start()
	c := dial(t, v.socket)
	c.write(0, randomBytes(mib))
	c.flush()
	if s := v.status(); s.Mode != localLog || s.LocalLog == nil || s.LocalLog.Failed != "" {
		t.Errorf("%+v, log %+v", s, s.LocalLog)
	}
	second := &volume{t: t, dir: t.TempDir(), config: map[string]any{}}
	try := func(what string, want int, says string, set map[string]any, args ...string) {
		t.Helper()
		for key, value := range v.config {
			second.config[key] = value
		}
		second.with("nbd.listen", "unix:"+filepath.Join(second.dir, "nbd.sock"))
		for key, value := range set {
			second.config[key] = value
		}
		code, _, errs := run(t, second.command(args...))
		if code != want || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d, stderr %s", what, code, errs)
		}
	}
	otherState := filepath.Join(second.dir, "state")
	try("the log of a live daemon", exitOther, "in use", map[string]any{"state.path": otherState}, "--takeover")
	d.kill()
	try("without the log", exitRefused, "--forget-local-log", map[string]any{"cache.path": filepath.Join(second.dir, "cache")}, "--takeover")
	try("without any", exitRefused, "no cache.path", map[string]any{"cache.path": ""}, "--takeover")
	try("another volume", exitRefused, "there is no volume in the store", map[string]any{"state.path": otherState, "dir.path": filepath.Join(second.dir, "store")})
	d = v.start()
	d.stop()
}
