package daemon

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/volume"
	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/device"
	"bs3/internal/device/nbd"
	"bs3/internal/null"
	"bs3/internal/stores"
)

// serveNull serves a volume that does nothing, with calls on the control socket
// that c names, until stop is called, which returns how serving ended.
func serveNull(t *testing.T, c config.Config, v *served, collect <-chan struct{}) (stop func() error) {
	t.Helper()
	v.Volume = null.New(device.Geometry{Size: 1 << 20, BlockSize: 4096})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	listening, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- serveVolume(ctx, v, c, Options{Log: zerolog.Nop(), Collect: collect}, nbd.New(v.Volume, nbd.Options{
			Network: "unix", Address: filepath.Join(t.TempDir(), "nbd.sock"), Log: zerolog.Nop(),
			Listening: func(net.Addr) { close(listening) },
		}).Run)
	}()
	select {
	case <-listening:
	case err := <-ended:
		t.Fatalf("it does not serve: %v", err)
	}
	return func() error {
		cancel()
		return <-ended
	}
}

func controlled(t *testing.T) config.Config {
	t.Helper()
	c := config.Default()
	c.Control.Socket = filepath.Join(t.TempDir(), "made", "control.sock")
	return c
}

// A call that waits when the daemon stops is told so, and a volume that fails
// ends the service.
func TestStoppingEndsCalls(t *testing.T) {
	for _, fails := range []bool{false, true} {
		c := controlled(t)
		waiting, failed := make(chan struct{}), make(chan struct{})
		stop := serveNull(t, c, &served{failed: failed, calls: control.Calls{
			CallGC: func(ctx context.Context, _ control.Argument) (any, error) {
				close(waiting)
				<-ctx.Done()
				return nil, context.Cause(ctx)
			},
		}}, nil)
		answer := make(chan error, 1)
		go func() { answer <- control.Call(t.Context(), c.Control.Socket, CallGC, nil, nil) }()
		<-waiting
		var err error
		if fails {
			close(failed)
		} else {
			err = stop()
		}
		if err := <-answer; err == nil || !strings.Contains(err.Error(), errStopping.Error()) {
			t.Errorf("fails %v: the call ended with %v", fails, err)
		}
		if fails {
			err = stop() // it has ended, or is about to
		}
		if err != nil {
			t.Errorf("fails %v: serving ended with %v", fails, err)
		}
	}
}

// Requested collections run one at a time, and one more is remembered.
func TestOneCollectionAtATime(t *testing.T) {
	wishes, began, goOn := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	stop := serveNull(t, controlled(t), &served{collect: func(ctx context.Context) {
		began <- struct{}{}
		select {
		case <-goOn:
		case <-ctx.Done():
		}
	}}, wishes)
	wishes <- struct{}{}
	<-began
	wishes <- struct{}{} // remembered
	select {
	case wishes <- struct{}{}:
		t.Error("a third wish is taken while one runs and one waits")
	case <-began:
		t.Error("two collections run at a time")
	case <-time.After(50 * time.Millisecond):
	}
	goOn <- struct{}{}
	<-began
	if err := stop(); err != nil { // ends the second one
		t.Error(err)
	}
}

// stored is a configuration of a small volume in a directory, and a transport that
// shows it to nobody.
func stored(t *testing.T) (config.Config, *transport) {
	t.Helper()
	dir := t.TempDir()
	c := config.Default()
	c.Store, c.Dir.Path, c.State.Path = config.StoreDir, filepath.Join(dir, "store"), filepath.Join(dir, "state")
	c.Control.Socket = filepath.Join(dir, "state", "control.sock")
	c.Size, c.Write.Memory, c.Transport = 1, 16, "test"
	return c, &transport{
		name:      "test",
		available: func(context.Context, config.Config) error { return nil },
		serve:     func(context.Context, service) error { return nil },
	}
}

// files lists what is below dir, with contents, but not what a directory store has
// for itself.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	list := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == ".bs3" {
			return filepath.SkipDir
		}
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		list[path] = string(text)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

// A number that is in use is found out before the volume is opened: neither is a
// volume made for it, nor does the one that is there take an epoch.
func TestNumberInUseCostsNothing(t *testing.T) {
	c, x := stored(t)
	run := func() error {
		h, end := newHealth(t.Context(), zerolog.Nop())
		err := serve(t.Context(), c, h, table{x}, Options{Log: zerolog.Nop()})
		end(err)
		return err
	}
	free := *x
	var known []string
	for name, refuse := range map[string]func(x *transport){
		"when the transport is chosen": func(x *transport) {
			x.available = func(_ context.Context, c config.Config) error { return c.Refuse("major", "is in use") }
		},
		"when the volume is known": func(x *transport) {
			x.vacant = func(_ context.Context, c config.Config, v *served, _ zerolog.Logger) error {
				known = append(known, v.id)
				if v.state != c.State.Path {
					t.Errorf("its state is in %s", v.state)
				}
				return c.Refuse("ublk.id", "is in use")
			}
		},
	} {
		for range 2 {
			before := files(t, c.Dir.Path)
			refuse(x)
			for range 3 {
				err := run()
				if refused := (*config.Error)(nil); !errors.As(err, &refused) || !strings.Contains(err.Error(), "is in use") {
					t.Errorf("%s: %v", name, err)
				}
			}
			if after := files(t, c.Dir.Path); !maps.Equal(after, before) {
				t.Errorf("%s: there were %d objects and are %d, or they have changed", name, len(before), len(after))
			}
			*x = free
			if err := run(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(known) == 0 {
		t.Error("nobody asked")
	}
}

// The kernel may never end the removal of a device. The volume is closed and
// released all the same.
func TestVolumeIsReleasedBeforeItsDeviceIsGone(t *testing.T) {
	c, x := stored(t)
	gone := make(chan struct{})
	removed := errors.New("removed at last")
	x.serve = func(ctx context.Context, s service) error {
		if err := s.volume.WriteAt(ctx, make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
		s.ready(Transport{})
		<-ctx.Done()
		s.unused()
		<-gone
		return removed
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	h, end := newHealth(t.Context(), zerolog.Nop())
	go func() {
		err := serve(ctx, c, h, table{x}, Options{Log: zerolog.Nop(), Serving: func(Transport) { cancel() }})
		end(err)
		ended <- err
	}()
	store, err := stores.OpenToServe(t.Context(), c, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	for released := false; !released; {
		select {
		case err := <-ended:
			t.Fatalf("it has ended before its device was gone: %v", err)
		case <-time.After(time.Millisecond):
		}
		info, err := volume.ReadInfo(t.Context(), store)
		released = err == nil && info.Epoch > 0 && info.Writer.Released
	}
	close(gone)
	if err := <-ended; !errors.Is(err, removed) {
		t.Errorf("it has ended with %v", err)
	}
}

func TestRemovalIsNotAwaitedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := awaitRemoval(make(chan error), removalWait)
		if err == nil || !strings.Contains(err.Error(), "the volume is closed") || time.Since(start) != removalWait {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
