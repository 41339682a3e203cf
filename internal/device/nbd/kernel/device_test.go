package kernel

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
	"bs3/internal/device/nbd"
)

// served is a Device that runs, with its server.
type served struct {
	path   chan string
	cancel context.CancelFunc
	ended  chan error
}

func geometry() device.Geometry { return device.Geometry{Size: 1 << 20, BlockSize: 4096} }

// startServer runs an NBD server of vol for the length of the test.
func startServer(t *testing.T, vol device.Volume) *nbd.Server {
	t.Helper()
	listening, ended := make(chan struct{}), make(chan error, 1)
	server := nbd.New(vol, nbd.Options{
		Network: "unix", Address: filepath.Join(t.TempDir(), "s"), Log: zerolog.Nop(),
		Listening: func(net.Addr) { close(listening) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-listening
	return server
}

// begin runs a device of vol on d, as another process would.
func begin(t *testing.T, d driver, vol device.Volume, opts Options) *served {
	t.Helper()
	s := &served{path: make(chan string, 1), ended: make(chan error, 1)}
	opts.Log = zerolog.New(zerolog.NewTestWriter(t))
	opts.Attached = func(path string) { s.path <- path }
	if opts.Volume == "" {
		opts.Volume = "vol"
	}
	dev := New(vol.Geometry(), startServer(t, vol), opts)
	dev.driver, dev.hold = d, time.Second
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	t.Cleanup(s.cancel)
	go func() { s.ended <- dev.Run(ctx) }()
	return s
}

func (s *served) attached(t *testing.T) string {
	t.Helper()
	select {
	case path := <-s.path:
		return path
	case err := <-s.ended:
		t.Fatalf("it is not attached: %v", err)
		return ""
	}
}

func (s *served) stop(t *testing.T) {
	t.Helper()
	s.cancel()
	if err := <-s.ended; err != nil {
		t.Fatal(err)
	}
}

// filled returns a volume whose blocks hold b.
func filled(t *testing.T, b byte) *devtest.Memory {
	t.Helper()
	vol := devtest.NewMemory(geometry())
	if err := vol.WriteAt(t.Context(), bytes.Repeat([]byte{b}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	return vol
}

func TestAttachAndStop(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	s := begin(t, f, filled(t, 1), Options{Index: 3, Run: run})
	if path := s.attached(t); path != "/dev/nbd3" {
		t.Errorf("it is %s", path)
	}
	d, _ := f.see(3)
	if d.size != 1<<20 || d.blockSize != 4096 || d.flags&1 == 0 || d.deadTimeout < 24*time.Hour || !strings.HasPrefix(d.backend, "bs3:vol:") {
		t.Errorf("the kernel was told %+v", d.connection)
	}
	if got := f.read(t, 3, 4096); got[0] != 1 {
		t.Errorf("read %d", got[0])
	}
	if text, err := os.ReadFile(run); err != nil || string(text) != d.backend {
		t.Errorf("remembered %q, %v", text, err)
	}
	s.stop(t)
	if want := []string{"connect 3", "stuckAfter 3", "writeBack 3", "disconnect 3"}; !slices.Equal(f.called(), want) {
		t.Errorf("calls %v, want %v", f.called(), want)
	}
	if _, err := os.Stat(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remembered after the stop: %v", err)
	}
}

// A device that cannot be written back or tuned is no reason to end.
func TestWarnings(t *testing.T) {
	f := newFake()
	f.fail["writeBack"], f.fail["stuckAfter"] = unix.EIO, unix.EACCES
	s := begin(t, f, filled(t, 1), Options{})
	s.attached(t)
	s.stop(t)
	if _, ok := f.see(0); ok {
		t.Error("the device stays")
	}
}

func TestNoDriver(t *testing.T) {
	f := newFake()
	f.missing = true
	err := <-begin(t, f, filled(t, 1), Options{}).ended
	if !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "modprobe nbd") || !strings.Contains(err.Error(), "/dev/nbd0") {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	for _, call := range []string{"connect", "backend", "devices"} {
		f := newFake()
		f.fail[call] = unix.EIO
		if err := <-begin(t, f, filled(t, 1), Options{}).ended; !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v", call, err)
		}
	}
	f := newFake()
	run := filepath.Join(t.TempDir(), "no", "such")
	if err := <-begin(t, f, filled(t, 1), Options{Run: run}).ended; !errors.Is(err, os.ErrNotExist) || len(f.called()) != 0 {
		t.Errorf("connected without remembering it: %v, %v", err, f.called())
	}
	f = newFake()
	s := begin(t, f, filled(t, 1), Options{})
	s.attached(t)
	f.mu.Lock()
	f.fail["disconnect"] = unix.EPERM
	f.mu.Unlock()
	s.cancel()
	if err := <-s.ended; !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
}

// dead leaves a device as a killed daemon does.
func dead(t *testing.T, f *fake, index int, opts Options) {
	t.Helper()
	opts.Index = index
	s := begin(t, f, filled(t, 1), opts)
	s.attached(t)
	f.die(index)
	if err := <-s.ended; err == nil || errors.Is(err, ErrDisconnected) {
		t.Fatalf("a connection that breaks: %v", err)
	}
}

// A connection breaks during a stop: the write-back waits for the next server, so
// this one does not wait for the write-back.
func TestBreaksWhileWritingBack(t *testing.T) {
	f := newFake()
	f.writingBack = make(chan struct{})
	defer close(f.writingBack)
	run := filepath.Join(t.TempDir(), "run")
	s := begin(t, f, filled(t, 1), Options{Run: run})
	s.attached(t)
	s.cancel()
	<-f.writingBack
	f.die(0)
	if err := <-s.ended; err == nil || errors.Is(err, ErrDisconnected) {
		t.Errorf("a connection that breaks: %v", err)
	}
	d, _ := f.see(0)
	if text, err := os.ReadFile(run); err != nil || string(text) != d.backend || !d.connected {
		t.Errorf("the next one cannot go on: %v", err)
	}
}

func TestGoesOnAfterDeath(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	dead(t, f, 0, Options{Run: run})
	before, _ := f.see(0)
	f.mu.Lock()
	f.deviceOf[0].slow = 3 // the kernel needs a moment to see it
	f.mu.Unlock()
	s := begin(t, f, filled(t, 2), Options{Run: run, Recover: true})
	s.attached(t)
	if got := f.read(t, 0, 0); got[0] != 2 {
		t.Errorf("read %d", got[0])
	}
	if after, _ := f.see(0); after.backend != before.backend {
		t.Errorf("it was %s and is %s", before.backend, after.backend)
	}
	if calls := f.called(); slices.Contains(calls, "disconnect 0") {
		t.Errorf("calls %v", calls)
	}
	s.stop(t)
}

// A device is taken over only if nothing is lost, with the same number, and in the
// same run. Otherwise it is gone before anything is served.
func TestDoesNotGoOn(t *testing.T) {
	for name, change := range map[string]func(run string, o *Options){
		"something is lost": func(_ string, o *Options) { o.Recover = false },
		"state is lost":     func(run string, _ *Options) { _ = os.Remove(run) },
		"another run":       func(run string, _ *Options) { _ = os.WriteFile(run, []byte("bs3:vol:OTHER"), 0o600) },
		"another number":    func(_ string, o *Options) { o.Index = 5 },
		"no state":          func(_ string, o *Options) { o.Run = "" },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			run := filepath.Join(t.TempDir(), "run")
			dead(t, f, 0, Options{Run: run})
			first, _ := f.see(0)
			o := Options{Run: run, Recover: true}
			change(run, &o)
			s := begin(t, f, filled(t, 2), o)
			s.attached(t)
			calls := f.called()
			if at := slices.Index(calls, "disconnect 0"); at < 0 || at > slices.Index(calls, "connect "+strings.TrimPrefix(blockPath(o.Index), "/dev/nbd")) && o.Index != 0 {
				t.Errorf("calls %v", calls)
			}
			if now, ok := f.see(0); ok && now.backend == first.backend {
				t.Error("the device goes on")
			}
			s.stop(t)
		})
	}
}

// A device that was disconnected while somebody held it open must never be taken over,
// although the kernel would allow it.
func TestHeldDeviceIsNotRevived(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	dead(t, f, 0, Options{Run: run})
	f.hold(0, true)
	err := <-begin(t, f, filled(t, 2), Options{Run: run}).ended
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "unmount") {
		t.Errorf("a device that is held: %v", err)
	}
	// The volume is whole again, as far as the next daemon is concerned.
	err = <-begin(t, f, filled(t, 2), Options{Run: run, Recover: true}).ended
	if !errors.Is(err, ErrInUse) || slices.Contains(f.called(), "reconnect 0") {
		t.Errorf("it goes on: %v, %v", err, f.called())
	}
	f.hold(0, false)
	s := begin(t, f, filled(t, 2), Options{Run: run, Recover: true})
	s.attached(t)
	s.stop(t)
}

// Nor one that was disconnected because the volume was served in another way.
func TestHeldDeviceThatWasLeftIsNotRevived(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	dead(t, f, 0, Options{Run: run})
	f.hold(0, true)
	if err := disconnectLeft(f, "vol", run, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	s := begin(t, f, filled(t, 2), Options{Run: run, Recover: true})
	select {
	case err := <-s.ended:
		if !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
	case <-s.path:
		t.Errorf("it goes on: %v", f.called())
		s.stop(t)
	}
}

// Whether a device can be had is known before there is anything to serve.
func TestVacant(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	vacant := func(index int) error {
		d := New(geometry(), nil, Options{Index: index, Volume: "vol", Run: run, Recover: true, Log: zerolog.Nop()})
		d.driver, d.hold = f, 50*time.Millisecond
		return d.vacant(t.Context())
	}
	if err := vacant(0); err != nil {
		t.Errorf("a free device: %v", err)
	}
	dead(t, f, 1, Options{Volume: "other"})
	if err := vacant(1); !errors.Is(err, ErrInUse) || errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "bs3:other:") {
		t.Errorf("another volume's device: %v", err)
	}
	f.mu.Lock()
	f.deviceOf[2] = &fakeDevice{connected: true} // by a client that names no backend
	f.mu.Unlock()
	if err := vacant(2); !errors.Is(err, ErrInUse) {
		t.Errorf("a foreign device: %v", err)
	}
	dead(t, f, 0, Options{Run: run})
	if err := vacant(0); err != nil || slices.Contains(f.called(), "disconnect 0") {
		t.Errorf("a device to be taken over: %v, calls %v", err, f.called())
	}

	// One that must not be taken over makes way, when nobody has it open.
	if err := os.Remove(run); err != nil {
		t.Fatal(err)
	}
	f.hold(0, true)
	if err := vacant(0); !errors.Is(err, ErrInUse) || !errors.Is(err, ErrHeld) {
		t.Errorf("a held device: %v", err)
	}
	f.hold(0, false)
	dead(t, f, 0, Options{})
	if err := vacant(0); err != nil {
		t.Errorf("a lost device: %v", err)
	}
	if _, there := f.see(0); there {
		t.Error("it is still there")
	}
	for _, call := range []string{"backend", "disconnect"} {
		if call == "disconnect" {
			dead(t, f, 0, Options{})
		}
		f.mu.Lock()
		f.fail[call] = unix.EIO
		f.mu.Unlock()
		if err := vacant(0); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v", call, err)
		}
		f.mu.Lock()
		delete(f.fail, call)
		f.mu.Unlock()
	}
	f.missing = true
	if err := vacant(0); !errors.Is(err, ErrNoDriver) {
		t.Errorf("no driver: %v", err)
	}
}

// The users of a stopped device have some time to let go of it.
func TestHeldForAMoment(t *testing.T) {
	f := newFake()
	s := begin(t, f, filled(t, 1), Options{})
	s.attached(t)
	f.hold(0, true)
	s.stop(t)
	s = begin(t, f, filled(t, 1), Options{})
	time.AfterFunc(300*time.Millisecond, func() { f.hold(0, false) })
	s.attached(t)
	s.stop(t)
}

func TestDevicesOfOthersStay(t *testing.T) {
	f := newFake()
	dead(t, f, 0, Options{Volume: "other"})
	dead(t, f, 1, Options{Volume: "vol2"})
	err := <-begin(t, f, filled(t, 1), Options{}).ended
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "bs3:other:") {
		t.Errorf("another volume's device: %v", err)
	}
	s := begin(t, f, filled(t, 1), Options{Index: 2})
	s.attached(t)
	s.stop(t)
	if slices.Contains(f.called(), "disconnect 0") || slices.Contains(f.called(), "disconnect 1") {
		t.Errorf("calls %v", f.called())
	}
}

// A daemon that shows the volume in another way leaves no device of it that a later
// daemon would take over.
func TestDisconnectAll(t *testing.T) {
	f := newFake()
	dead(t, f, 0, Options{})
	dead(t, f, 1, Options{Volume: "other"})
	dead(t, f, 2, Options{})
	if err := disconnectAll(f, "vol", "", zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	_, zero := f.see(0)
	_, one := f.see(1)
	_, two := f.see(2)
	if zero || !one || two {
		t.Errorf("there are 0 %v, 1 %v, 2 %v", zero, one, two)
	}
	dead(t, f, 0, Options{})
	f.fail["disconnect"] = unix.EPERM
	if err := disconnectAll(f, "vol", "", zerolog.Nop()); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "/dev/nbd0") {
		t.Error(err)
	}
}

func TestDisconnectedBySomeoneElse(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	s := begin(t, f, filled(t, 1), Options{Run: run})
	s.attached(t)
	if err := f.disconnect(0); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; !errors.Is(err, ErrDisconnected) {
		t.Error(err)
	}
	if _, err := os.Stat(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still remembered: %v", err)
	}
}

// A stop while the last server does not let go.
func TestStopWhileWaiting(t *testing.T) {
	f := newFake()
	run := filepath.Join(t.TempDir(), "run")
	s := begin(t, f, filled(t, 1), Options{Run: run})
	s.attached(t)
	next := begin(t, f, filled(t, 2), Options{Run: run, Recover: true})
	for !slices.Contains(f.called(), "reconnect 0") {
		time.Sleep(time.Millisecond)
	}
	next.cancel()
	if err := <-next.ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := f.read(t, 0, 0); got[0] != 1 {
		t.Errorf("read %d", got[0])
	}
	s.stop(t)
}
