package ublk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// The next server serves the requests that a killed server had, and those that came
// after its death.
func TestRecover(t *testing.T) {
	for name, kind := range kinds() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				kind.driver(f)
				vol := smallVolume()
				opts := Options{ID: -1, Identity: identity, Queues: 2, QueueDepth: 3, Recover: true}
				s := serve(t, f, vol, opts)
				s.write(pattern(1, 4096), 0)
				release := vol.Block(devtest.Write)
				results := make(chan error, 10)
				for i := range int64(10) { // more than there are tags
					go func() {
						results <- s.disk.WriteAt(t.Context(), pattern(byte(10+i), 4096), (1+i)*4096)
					}()
				}
				if err := vol.AwaitBlocked(t.Context(), 6); err != nil {
					t.Fatal(err)
				}
				s.kill()
				release()
				if len(results) != 0 {
					t.Fatal("requests of the dead server have ended")
				}
				opts.Queues, opts.QueueDepth = 1, 99 // the device keeps what it has
				next := serve(t, f, vol, opts)
				if next.disk.d != s.disk.d {
					t.Fatal("it is another device")
				}
				for range 10 {
					if err := <-results; err != nil {
						t.Error(err)
					}
				}
				next.want(pattern(1, 4096), 0)
				for i := range int64(10) {
					next.want(pattern(byte(10+i), 4096), (1+i)*4096)
				}
				next.stop()
			})
		})
	}
}

// If not everything is there, the waiting requests fail and there is a new device.
func TestWithoutRecoverTheDeviceGoes(t *testing.T) {
	for name, change := range map[string]func(*Options, *device.Geometry){
		"not whole":   func(o *Options, _ *device.Geometry) { o.Recover = false },
		"other shape": func(_ *Options, g *device.Geometry) { g.Size *= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				g := device.Geometry{Size: 8 << 20, BlockSize: 4096}
				vol := devtest.NewMemory(g)
				opts := Options{ID: 0, Identity: identity, Recover: true}
				s := serve(t, f, vol, opts)
				vol.Block(devtest.Read)
				result := make(chan error, 1)
				go func() { result <- s.disk.ReadAt(t.Context(), make([]byte, 4096), 0) }()
				if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				s.kill()
				change(&opts, &g)
				next := serve(t, f, devtest.NewMemory(g), opts)
				if err := <-result; !errors.Is(err, unix.EIO) {
					t.Errorf("the waiting read: %v, want EIO", err)
				}
				if next.disk.d == s.disk.d || !s.disk.d.removed {
					t.Error("the old device goes on")
				}
				if next.disk.d.info.id != 0 {
					t.Errorf("number %d, want 0", next.disk.d.info.id)
				}
				next.stop()
			})
		})
	}
}

func TestDevicesOfOthersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		for _, theirs := range []uint64{0, 0xa57} {
			other := serve(t, f, smallVolume(), Options{ID: 2, Identity: theirs})
			other.kill()
			for _, ours := range []uint64{0, identity} {
				refused(t, f, smallVolume(), Options{ID: 2, Identity: ours, Recover: true}, ErrInUse, "/dev/ublkb2", "waiting for a server")
				s := serve(t, f, smallVolume(), Options{ID: -1, Identity: ours, Recover: true})
				if s.disk.d == other.disk.d {
					t.Errorf("took a device of %#x over for %#x", theirs, ours)
				}
				s.stop()
			}
			f.mu.Lock()
			other.disk.d.remove()
			f.mu.Unlock()
		}
	})
}

// A live server is not disturbed.
func TestServedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		s := serve(t, f, smallVolume(), Options{ID: -1, Identity: identity})
		begin := time.Now()
		refused(t, f, smallVolume(), Options{ID: -1, Identity: identity, Recover: true}, ErrInUse, "/dev/ublkb0", "process")
		if took := time.Since(begin); took > 2*deathWait {
			t.Errorf("it took %v to say so", took)
		}
		s.write(pattern(1, 4096), 0)
		s.stop()
	})
}

// The kernel needs some time to notice that a server is dead.
func TestDyingServerIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vol := smallVolume()
		opts := Options{ID: -1, Identity: identity, Recover: true}
		s := serve(t, f, vol, opts)
		next := start(t, f, vol, opts)
		time.Sleep(deathWait / 2)
		s.disk.d.kill()
		f.mu.Lock()
		s.disk.d.opened = true // still
		f.mu.Unlock()
		t.Log(<-s.ended)
		f.mu.Lock()
		s.disk.d.opened = true
		f.mu.Unlock()
		time.Sleep(deathWait / 2)
		f.mu.Lock()
		s.disk.d.opened = false
		f.mu.Unlock()
		select {
		case next.disk.d = <-next.attached:
		case err := <-next.ended:
			t.Fatal(err)
		}
		if next.disk.d != s.disk.d {
			t.Error("it is another device")
		}
		next.stop()
	})
}

// A waiting device may have another number than the one now configured; it is not
// lost.
func TestWaitsUnderAnotherNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vol := smallVolume()
		s := serve(t, f, vol, Options{ID: 4, Identity: identity})
		s.kill()
		refused(t, f, vol, Options{ID: 5, Identity: identity, Recover: true}, ErrInUse, "/dev/ublkb4", "/dev/ublkb5")
		next := serve(t, f, vol, Options{ID: 4, Identity: identity, Recover: true})
		next.stop()
	})
}

// A server that dies while it takes over leaves the device to the next one.
func TestDeathDuringRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vol := smallVolume()
		opts := Options{ID: -1, Identity: identity, Recover: true}
		s := serve(t, f, vol, opts)
		s.kill()
		broken := errors.New("broken")
		f.fail[cmdEndUserRecovery] = broken
		refused(t, f, vol, opts, broken)
		delete(f.fail, cmdEndUserRecovery)
		next := serve(t, f, vol, opts)
		if next.disk.d != s.disk.d {
			t.Error("it is another device")
		}
		next.stop()
	})
}

// A server that fails before any queue asks for requests does no harm. One that fails
// when some have asked does: the device must not be taken over again.
func TestFailureWhileTakingOver(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name    string
		breakIt func(f *fakeDriver, err error)
		want    error
		goesOn  bool
	}{
		{"ring", func(f *fakeDriver, err error) { f.failRing = err }, broken, true},
		{"open", func(f *fakeDriver, err error) { f.failOpen = err }, broken, true},
		{"fetch", func(f *fakeDriver, err error) { f.failSubmit = err }, unix.EBUSY, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			marker := filepath.Join(t.TempDir(), "marker")
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				vol := smallVolume()
				opts := Options{ID: -1, Identity: identity, Queues: 2, QueueDepth: 2, Recover: true, Marker: marker}
				s := serve(t, f, vol, opts)
				vol.Block(devtest.Write)
				written := make(chan error, 1)
				go func() { written <- s.disk.WriteAt(t.Context(), pattern(1, 4096), 0) }()
				if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				s.kill()
				c.breakIt(f, broken)
				refused(t, f, smallVolume(), opts, c.want)
				c.breakIt(f, nil)
				next := serve(t, f, smallVolume(), opts)
				if err := <-written; (err == nil) != c.goesOn {
					t.Errorf("the write that waited: %v", err)
				}
				if (next.disk.d == s.disk.d) != c.goesOn {
					t.Errorf("it is the same device: %v", !c.goesOn)
				}
				if _, err := os.Stat(marker); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the marker stays: %v", err)
				}
				next.stop()
			})
		})
	}
}

// A marker of a device that is gone, perhaps with the machine, means nothing.
func TestOldMarker(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "marker")
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vol := smallVolume()
		opts := Options{ID: -1, Identity: identity, Recover: true, Marker: marker}
		s := serve(t, f, vol, opts)
		s.kill()
		next := serve(t, f, vol, opts)
		if next.disk.d != s.disk.d {
			t.Error("it is another device")
		}
		next.stop()
	})
}

// Somebody holds a removed device open.
func TestHeldDevices(t *testing.T) {
	for name, driver := range map[string]func(*fakeDriver){
		"asynchronous": func(*fakeDriver) {},
		"synchronous":  func(f *fakeDriver) { f.asyncDel = false },
		"old":          func(f *fakeDriver) { f.encoded, f.asyncDel = false, false },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				driver(f)
				s := serve(t, f, smallVolume(), Options{ID: 1, Identity: identity})
				s.disk.d.users = 1
				s.stop() // ends all the same
				refused(t, f, smallVolume(), Options{ID: 1, Identity: identity}, ErrHeld, "/dev/ublkb1")
				next := serve(t, f, smallVolume(), Options{ID: -1, Identity: identity})
				if next.disk.d.info.id == 1 {
					t.Error("there are two devices 1")
				}
				next.stop()
			})
		})
	}
}

// Waits reports devices that wait for a server, and no others.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		expect := func(name string, want bool) {
			t.Helper()
			if got, err := waits(f, name); err != nil || got != want {
				t.Errorf("%s waits: %v, %v; want %v", name, got, err, want)
			}
		}
		opts := Options{ID: 3, Identity: identity, Recover: true}
		s := serve(t, f, smallVolume(), opts)
		expect("ublkb3", false)
		s.kill()
		expect("ublkb3", true)
		for _, name := range []string{"vda", "ublkb", "ublkb3p1", "nbd3", "ublkc3", "ublkb4"} {
			expect(name, false)
		}
		next := serve(t, f, smallVolume(), opts)
		expect("ublkb3", false)
		f.mu.Lock()
		next.disk.d.info.pid = 1 << 30 // no process has this number
		f.mu.Unlock()
		expect("ublkb3", true)
		next.stop()
		f.missing = fs.ErrNotExist
		if _, err := waits(f, "ublkb3"); !errors.Is(err, ErrNoDriver) {
			t.Errorf("without a driver: %v", err)
		}
	})
}

// A server that breaks while it stops does not wait for what only the next one
// can write back.
func TestBreaksWhileWritingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		wait := make(chan struct{})
		f.writingBack = wait
		opts := Options{ID: 0, Identity: identity, Queues: 2, Recover: true}
		s := serve(t, f, smallVolume(), opts)
		s.cancel()
		<-wait
		s.kill()
		close(wait)
		next := serve(t, f, smallVolume(), opts)
		if next.disk.d != s.disk.d {
			t.Error("it is another device")
		}
		next.stop()
	})
}
