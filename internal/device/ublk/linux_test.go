package ublk

import (
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The queues of a device begin together. A mapping that is forgotten keeps the
// device, and its number, until the process ends.
func TestNoMappingIsForgotten(t *testing.T) {
	const (
		name   = "bs3-test-queues"
		queues = 8
		depth  = 128
	)
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, 8<<20); err != nil {
		t.Fatal(err)
	}
	f := &charFile{fd: fd}
	var wg sync.WaitGroup
	for q := range uint16(queues) {
		wg.Go(func() {
			if _, err := f.descriptors(q, depth); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := mappings(t, name); n != queues {
		t.Errorf("%d mappings of %d queues", n, queues)
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
	if n := mappings(t, name); n != 0 {
		t.Errorf("%d mappings after close", n)
	}
}

// mappings counts those of a file in this process.
func mappings(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), name)
}
