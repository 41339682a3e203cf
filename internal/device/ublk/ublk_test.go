package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

const identity = 0xb53

func smallVolume() *devtest.Memory {
	return devtest.NewMemory(device.Geometry{Size: 8 << 20, BlockSize: 4096})
}

// served is a Server that runs over a fakeDriver.
type served struct {
	t        testing.TB
	disk     shownDisk
	attached chan *fakeDevice
	cancel   context.CancelFunc
	ended    chan error
}

// start starts a server.
func start(t testing.TB, f *fakeDriver, vol device.Volume, opts Options) *served {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{t: t, cancel: cancel, ended: make(chan error, 1), attached: make(chan *fakeDevice, 1)}
	s.disk.g = vol.Geometry()
	opts.Log = zerolog.New(zerolog.NewTestWriter(t))
	opts.Attached = func(path string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for id, d := range f.devs {
			if blockPath(id) == path {
				s.attached <- d
			}
		}
	}
	server := New(vol, opts)
	server.driver = f
	go func() { s.ended <- server.Run(ctx) }()
	return s
}

// serve starts a server and waits for its block device.
func serve(t testing.TB, f *fakeDriver, vol device.Volume, opts Options) *served {
	t.Helper()
	s := start(t, f, vol, opts)
	select {
	case s.disk.d = <-s.attached:
	case err := <-s.ended:
		t.Fatalf("server ended: %v", err)
	}
	return s
}

// stop stops the server cleanly.
func (s *served) stop() {
	s.t.Helper()
	s.cancel()
	if err := <-s.ended; err != nil {
		s.t.Errorf("stop: %v", err)
	}
	f := s.disk.d.fakeDriver
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.disk.d.started {
		s.t.Error("the block device is still there")
	}
	if s.disk.d.users == 0 && f.devs[int(s.disk.d.info.id)] != nil {
		s.t.Error("the device was not removed")
	}
}

// kill ends the server as kill -9 does.
func (s *served) kill() {
	s.t.Helper()
	s.disk.d.kill()
	if err := <-s.ended; err == nil {
		s.t.Error("the server does not notice that it is dead")
	}
}

// refused starts a server that is to fail with want.
func refused(t *testing.T, f *fakeDriver, vol device.Volume, opts Options, want error, words ...string) {
	t.Helper()
	s := start(t, f, vol, opts)
	select {
	case <-s.attached:
		t.Error("there is a block device")
		s.cancel()
		t.Log(<-s.ended)
	case err := <-s.ended:
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		for _, word := range words {
			if !strings.Contains(fmt.Sprint(err), word) {
				t.Errorf("%q does not speak of %q", err, word)
			}
		}
	}
}

func pattern(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func (s *served) write(p []byte, off int64) {
	s.t.Helper()
	if err := s.disk.WriteAt(context.Background(), p, off); err != nil {
		s.t.Errorf("write at %d: %v", off, err)
	}
}

func (s *served) want(p []byte, off int64) {
	s.t.Helper()
	got := make([]byte, len(p))
	if err := s.disk.ReadAt(context.Background(), got, off); err != nil {
		s.t.Errorf("read at %d: %v", off, err)
	}
	if !bytes.Equal(got, p) {
		s.t.Errorf("at %d there is something else than was written", off)
	}
}

// kinds are the drivers that Linux has had, and volumes with and without Fast.
func kinds() map[string]struct {
	driver func(*fakeDriver)
	slow   bool
} {
	type kind = struct {
		driver func(*fakeDriver)
		slow   bool
	}
	old := func(f *fakeDriver) {
		f.encoded, f.asyncDel, f.features = false, false, f.features&^flagUserCopy
	}
	return map[string]kind{
		"user copy":       {func(*fakeDriver) {}, false},
		"get data":        {func(f *fakeDriver) { f.features &^= flagUserCopy }, false},
		"old":             {old, false},
		"user copy, slow": {func(*fakeDriver) {}, true},
		"old, slow":       {old, true},
	}
}

// onlyVolume hides what else a volume can do.
type onlyVolume struct{ device.Volume }

func TestContract(t *testing.T) {
	for name, kind := range kinds() {
		t.Run(name, func(t *testing.T) {
			devtest.Run(t, func(t *testing.T) device.Volume {
				f := newFakeDriver(t)
				kind.driver(f)
				vol := device.Volume(smallVolume())
				if kind.slow {
					vol = onlyVolume{vol}
				}
				s := serve(t, f, vol, Options{ID: -1, Queues: 3, QueueDepth: 5})
				t.Cleanup(s.stop)
				return s.disk
			})
		})
	}
}

// What waits for the volume does not hold up what is behind it, on the same
// queue.
func TestSlowRequestsAreOvertaken(t *testing.T) {
	for name, kind := range kinds() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				kind.driver(f)
				vol := smallVolume()
				s := serve(t, f, vol, Options{Queues: 1, QueueDepth: 4})
				s.write(pattern(1, 4096), 0)
				release := vol.Block(devtest.Read, devtest.Flush, devtest.Discard)
				results := make(chan error, 3)
				go func() { results <- s.disk.ReadAt(t.Context(), make([]byte, 4096), 0) }()
				go func() { results <- s.disk.Flush(t.Context()) }()
				go func() { results <- s.disk.Discard(t.Context(), 1<<20, 4096) }()
				if err := vol.AwaitBlocked(t.Context(), 3); err != nil {
					t.Fatal(err)
				}
				s.write(pattern(2, 8192), 4096)
				if len(results) != 0 {
					t.Error("a request that is blocked has ended")
				}
				release()
				for range 3 {
					if err := <-results; err != nil {
						t.Error(err)
					}
				}
				s.want(append(pattern(1, 4096), pattern(2, 8192)...), 0)
				s.stop()
			})
		})
	}
}

// A FUA write is acknowledged after a flush that began after it.
func TestFUA(t *testing.T) {
	for name, hide := range map[string]func(*devtest.Memory) device.Volume{
		"fast": func(m *devtest.Memory) device.Volume { return m },
		"slow": func(m *devtest.Memory) device.Volume { return onlyVolume{m} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				vol := smallVolume()
				s := serve(t, newFakeDriver(t), hide(vol), Options{})
				release := vol.Block(devtest.Flush)
				acknowledged := make(chan error, 1)
				go func() { acknowledged <- s.disk.d.do(opWrite|ioFlagFUA, 4096, 4096, pattern(7, 4096)) }()
				if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				s.want(pattern(7, 4096), 4096)
				synctest.Wait()
				if len(acknowledged) != 0 {
					t.Error("acknowledged before it was flushed")
				}
				release()
				if err := <-acknowledged; err != nil {
					t.Error(err)
				}
				s.write(pattern(8, 4096), 0)
				if got := vol.Calls(devtest.Flush); got != 1 {
					t.Errorf("%d flushes for one FUA write and one without", got)
				}
				broken := errors.New("broken")
				vol.Fail(broken, devtest.Flush)
				if err := s.disk.d.do(opWrite|ioFlagFUA, 4096, 4096, pattern(9, 4096)); !errors.Is(err, unix.EIO) {
					t.Errorf("with a flush that fails: %v, want EIO", err)
				}
				s.stop()
			})
		})
	}
}

func TestErrorsOfTheVolume(t *testing.T) {
	for name, kind := range kinds() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				kind.driver(f)
				vol := smallVolume()
				s := serve(t, f, vol, Options{QueueDepth: 2})
				s.write(pattern(1, 4096), 0)
				for _, what := range []error{errors.New("broken"), fmt.Errorf("closed: %w", device.ErrStopped)} {
					vol.Fail(what, devtest.Read, devtest.Write, devtest.Flush, devtest.Discard, devtest.WriteZeroes)
					for i := range 5 { // more than there are tags: none is lost
						for name, err := range map[string]error{
							"read":         s.disk.ReadAt(t.Context(), make([]byte, 4096), 0),
							"write":        s.disk.WriteAt(t.Context(), pattern(2, 4096), 0),
							"flush":        s.disk.Flush(t.Context()),
							"discard":      s.disk.Discard(t.Context(), 0, 4096),
							"write zeroes": s.disk.WriteZeroes(t.Context(), 0, 4096),
						} {
							if !errors.Is(err, unix.EIO) {
								t.Errorf("%s %d: %v, want EIO", name, i, err)
							}
						}
					}
				}
				vol.Fail(nil, devtest.Read, devtest.Write, devtest.Flush, devtest.Discard, devtest.WriteZeroes)
				s.want(pattern(1, 4096), 0)
				s.stop()
			})
		})
	}
}

// Memory refuses what breaks the contract of a Volume, and counts what it gets:
// such a request fails without reaching it.
func TestRequestsThatTheKernelShouldNotSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vol := devtest.NewMemory(device.Geometry{Size: 8 << 20, BlockSize: 4096, MaxDiscard: 1 << 20})
		s := serve(t, newFakeDriver(t), vol, Options{})
		for _, c := range []struct {
			name   string
			op     uint32
			off, n int64
			want   error
		}{
			{"unaligned", opWrite, 512, 4096, unix.EIO},
			{"unaligned length", opWrite, 4096, 512, unix.EIO},
			{"nothing", opRead, 4096, 0, unix.EIO},
			{"beyond the end", opRead, 8 << 20, 4096, unix.EIO},
			{"over the end", opWrite, 8<<20 - 4096, 8192, unix.EIO},
			{"far beyond", opDiscard, -4096 << sectorShift, 4096, unix.EIO},
			{"too long", opWrite, 0, 2 << 20, unix.EIO},
			{"discard too long", opDiscard, 0, 2 << 20, unix.EIO},
			{"zone append", 7, 0, 4096, unix.EOPNOTSUPP},
		} {
			if err := s.disk.d.do(c.op, c.off, c.n, make([]byte, c.n)); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
		for op := devtest.Read; op <= devtest.WriteZeroes; op++ {
			if n := vol.Calls(op); n != 0 {
				t.Errorf("operation %d reached the volume %d times", op, n)
			}
		}
		s.stop()
	})
}

func TestReadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vol := devtest.NewMemory(device.Geometry{Size: 8 << 20, BlockSize: 4096, ReadOnly: true})
		s := serve(t, newFakeDriver(t), vol, Options{})
		s.want(make([]byte, 8192), 0)
		if err := s.disk.d.do(opWrite, 0, 4096, make([]byte, 4096)); !errors.Is(err, unix.EIO) {
			t.Errorf("write: %v", err)
		}
		s.stop()
	})
}

// A stop waits for the requests in flight, however long they take.
func TestStopFinishesRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vol := smallVolume()
		s := serve(t, f, vol, Options{Queues: 2})
		release := vol.Block(devtest.Write)
		written := make(chan error, 1)
		go func() { written <- s.disk.WriteAt(t.Context(), pattern(3, 4096), 0) }()
		if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		s.cancel()
		synctest.Wait()
		select {
		case err := <-s.ended:
			t.Fatalf("ended with a write under way: %v", err)
		default:
		}
		release()
		if err := <-written; err != nil {
			t.Errorf("the write under way: %v", err)
		}
		s.stop()
		if f.writeBacks != 1 {
			t.Errorf("the kernel was asked %d times to write back what it holds", f.writeBacks)
		}
		if err := s.disk.Flush(t.Context()); !errors.Is(err, errNoDevice) {
			t.Errorf("after the stop: %v", err)
		}
	})
}

// A stop while the first reads of a new device wait does not wait for them.
func TestStopWhileStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		vol := smallVolume()
		vol.Block(devtest.Read)
		f.partitions = true
		s := start(t, f, vol, Options{})
		if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		s.cancel()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
		if len(f.devs) != 0 {
			t.Error("the device was not removed")
		}
	})
}

func TestNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		a := serve(t, f, smallVolume(), Options{ID: 3, Queues: 9, QueueDepth: 9})
		b := serve(t, f, smallVolume(), Options{ID: -1})
		if a, b := a.disk.d.info.id, b.disk.d.info.id; a != 3 || b != 0 {
			t.Errorf("numbers %d and %d, want 3 and 0", a, b)
		}
		if i := a.disk.d.info; i.queues != 4 || i.depth != 9 { // the fake has 4 CPUs
			t.Errorf("%d queues of %d requests", i.queues, i.depth)
		}
		refused(t, f, smallVolume(), Options{ID: 3}, ErrInUse, "/dev/ublkb3")
		a.stop()
		b.stop()
	})
}

// Whatever step of making a block device fails, nothing of it stays.
func TestFailuresOfTheStart(t *testing.T) {
	broken := errors.New("broken")
	for name, breakIt := range map[string]func(*fakeDriver){
		"no module":  func(f *fakeDriver) { f.missing = fs.ErrNotExist },
		"add":        func(f *fakeDriver) { f.fail[cmdAddDev] = broken },
		"parameters": func(f *fakeDriver) { f.fail[cmdSetParams] = broken },
		"start":      func(f *fakeDriver) { f.fail[cmdStartDev] = broken },
		"open":       func(f *fakeDriver) { f.failOpen = broken },
		"ring":       func(f *fakeDriver) { f.failRing = broken },
		"fetch":      func(f *fakeDriver) { f.failSubmit = broken },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDriver(t)
				breakIt(f)
				want := broken
				switch name {
				case "no module":
					want = ErrNoDriver
				case "fetch":
					want = unix.EBUSY
				}
				refused(t, f, smallVolume(), Options{Queues: 2, QueueDepth: 2}, want)
				if len(f.devs) != 0 {
					t.Error("a device stays")
				}
			})
		})
	}
}

func TestStoppedBySomeoneElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeDriver(t)
		s := serve(t, f, smallVolume(), Options{Queues: 2})
		f.mu.Lock()
		s.disk.d.stop()
		f.mu.Unlock()
		if err := <-s.ended; !errors.Is(err, ErrRemoved) {
			t.Errorf("%v, want ErrRemoved", err)
		}
		if len(f.devs) != 0 {
			t.Error("the device stays")
		}
	})
}
