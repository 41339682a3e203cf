package ublk

import (
	"errors"
	"io/fs"
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
