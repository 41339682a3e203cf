package daemon

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/device"
	"bs3/internal/device/nbd"
	"bs3/internal/null"
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
			CallGC: func(ctx context.Context) (any, error) {
				close(waiting)
				<-ctx.Done()
				return nil, context.Cause(ctx)
			},
		}}, nil)
		answer := make(chan error, 1)
		go func() { answer <- control.Call(t.Context(), c.Control.Socket, CallGC, nil) }()
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
