package ublk

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device/devtest"
)

// The devices of a volume that is served in another way are removed, with the
// requests that wait for a server, and no others.
func TestRemoveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		other := serve(t, f, smallVolume(), Options{ID: 0, Identity: 0xa57})
		other.kill()
		vol := smallVolume()
		s := serve(t, f, vol, Options{ID: -1, Identity: identity})
		vol.Block(devtest.Read)
		result := make(chan error, 1)
		go func() { result <- s.disk.ReadAt(t.Context(), make([]byte, 4096), 0) }()
		if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		s.kill()
		if err := removeLeft(t.Context(), f, identity, zerolog.Nop()); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, unix.EIO) || !s.disk.d.removed {
			t.Errorf("the waiting read: %v, want EIO; removed: %v", err, s.disk.d.removed)
		}
		if other.disk.d.removed {
			t.Error("somebody else's device is removed, too")
		}
		// No later server has a device to take over.
		next := serve(t, f, smallVolume(), Options{ID: -1, Identity: identity, Recover: true})
		if next.disk.d == s.disk.d {
			t.Error("it is the same device")
		}
		next.stop()
	})
}

// A live daemon's device stays, and the daemon that would serve the volume in another
// way does not start.
func TestRemoveLeftFromALiveServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		s := serve(t, f, smallVolume(), Options{ID: -1, Identity: identity})
		if err := removeLeft(t.Context(), f, identity, zerolog.Nop()); !errors.Is(err, ErrInUse) {
			t.Errorf("%v, want ErrInUse", err)
		}
		s.write(pattern(1, 4096), 0)
		s.stop()
	})
}

// Whether a number can be had is known before there is anything to serve. Devices
// that can be taken over are left alone.
func TestVacant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vacancy := func(id int, want error, words ...string) {
			t.Helper()
			err := vacant(t.Context(), f, id, identity)
			if !errors.Is(err, want) {
				t.Errorf("number %d: %v, want %v", id, err, want)
			}
			for _, word := range words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("number %d: %v, which does not say %q", id, err, word)
				}
			}
		}
		other := serve(t, f, smallVolume(), Options{ID: 0, Identity: 0xa57})
		vacancy(0, ErrInUse, "/dev/ublkb0", "not of this volume", "live")
		other.kill()
		vacancy(0, ErrInUse, "/dev/ublkb0", "waiting for a server")
		vacancy(1, nil)
		vacancy(-1, nil)

		own := serve(t, f, smallVolume(), Options{ID: 1, Identity: identity})
		vacancy(1, nil)
		own.kill()
		vacancy(1, nil)
		vacancy(2, ErrInUse, "/dev/ublkb1", "this one is to serve /dev/ublkb2")
		next := serve(t, f, smallVolume(), Options{ID: 1, Identity: identity, Recover: true})
		if next.disk.d != own.disk.d {
			t.Error("the device was not left alone")
		}
		next.disk.d.users = 1
		next.stop()
		vacancy(1, ErrHeld, "/dev/ublkb1")
		f.mu.Lock()
		delete(f.devs, 1) // it was closed
		f.mu.Unlock()
		vacancy(1, nil)

		f.mu.Lock()
		f.fail[cmdGetDevInfo] = unix.EIO
		f.mu.Unlock()
		vacancy(0, unix.EIO)
		f.missing = fs.ErrNotExist
		vacancy(0, ErrNoDriver)
	})
}

// A device of the volume that was stopped and not removed makes way.
func TestVacantRemovesWhatWasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		s := serve(t, f, smallVolume(), Options{ID: 1, Identity: identity})
		s.kill()
		f.mu.Lock()
		s.disk.d.stop()
		f.mu.Unlock()
		if err := vacant(t.Context(), f, 1, identity); err != nil {
			t.Error(err)
		}
		if !s.disk.d.removed {
			t.Error("it is still there")
		}
	})
}

func TestRemoveLeftWithoutDriver(t *testing.T) {
	for missing, want := range map[error]error{fs.ErrNotExist: nil, fs.ErrPermission: nil, unix.EIO: unix.EIO} {
		f := newFakeDriver(t)
		f.missing = missing
		if err := removeLeft(t.Context(), f, identity, zerolog.Nop()); !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", missing, err, want)
		}
		if err := available(f); !errors.Is(err, missing) || errors.Is(err, ErrNoDriver) != errors.Is(missing, fs.ErrNotExist) {
			t.Errorf("available without: %v", err)
		}
	}
	if err := available(newFakeDriver(t)); err != nil {
		t.Error(err)
	}
}
