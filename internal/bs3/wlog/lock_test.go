package wlog

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/layout"
)

// locked reports whether the mapping of path in this process is locked in memory.
func locked(t *testing.T, path string) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, ours, found := bytes.Cut(maps, []byte(path))
	if !found {
		t.Fatalf("%s is not mapped", path)
	}
	_, flags, _ := bytes.Cut(ours, []byte("VmFlags:"))
	flags, _, _ = bytes.Cut(flags, []byte("\n"))
	return strings.Contains(string(flags)+" ", " lo ")
}

func TestLockMemory(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	d, err := LockDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	head := &layout.MemoryHeader{UUID: layout.NewUUID(), BlockSize: 512, ChunkBlocks: 8, Slots: 2}
	m, err := d.CreateMemory(head)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "memory")
	if locked(t, path) {
		t.Fatal("it is locked without being asked for")
	}
	if err := m.Lock(); err != nil {
		t.Skipf("this process may lock %d bytes: %v", limit.Cur, err)
	}
	if !locked(t, path) {
		t.Error("it is not locked")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := NewHeapMemory(head).Lock(); err != nil {
		t.Errorf("on the heap: %v", err)
	}
}
