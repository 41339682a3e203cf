package ublk

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// realRing makes a ring of this kernel, on this thread.
func realRing(t *testing.T, depth int) *queueRing {
	t.Helper()
	runtime.LockOSThread()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	r, err := (&charFile{fd: int(null.Fd())}).ring(depth)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skip("no io_uring here: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r.(*queueRing)
}

// What /dev/null makes of a command does not matter here, but that each comes
// back, with its tag, in rings that go round several times.
func TestRingGivesEveryTagBack(t *testing.T) {
	const depth = 5
	r := realRing(t, depth)
	for round := range 100 {
		count := 1 + round%depth
		for tag := range count {
			r.command(encode(ioFetchReq), ioCmd{tag: uint16(tag)})
		}
		seen := make(map[uint16]bool)
		for len(seen) < count {
			if err := r.wait(); err != nil {
				t.Fatal(err)
			}
			for {
				tag, res, ok := r.next()
				if !ok {
					break
				}
				if res > 0 || seen[tag] || int(tag) >= count {
					t.Fatalf("round %d: tag %d with result %d, seen before: %v", round, tag, res, seen[tag])
				}
				seen[tag] = true
			}
		}
	}
}

func TestRingWakes(t *testing.T) {
	r := realRing(t, 1)
	for range 100 {
		var sent atomic.Bool
		go func() {
			sent.Store(true)
			r.wake()
		}()
		for done := false; !done; done = sent.Load() {
			if err := r.wait(); err != nil {
				t.Fatal(err)
			}
			if _, _, ok := r.next(); ok {
				t.Fatal("a wake looks like a completion")
			}
		}
	}
}

func TestRingWaitsNoLongerThanAsked(t *testing.T) {
	r := realRing(t, 1)
	if err := r.u.enter(1, 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.u.next(); ok {
		t.Error("a completion out of nothing")
	}
}
