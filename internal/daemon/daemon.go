// Package daemon is what runs: it opens a volume, shows it to Linux by one of
// the transports, answers calls on the control socket, and tells the service
// manager how that goes. Here engine, store and transport meet. It knows
// neither the command line nor signals: whoever calls Run ends it by its ctx.
//
// Users of the device, callers on the control socket, the service manager and
// the engine's own work run beside each other. Run returns when all have ended.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/device/blockdev"
)

// Options are what Run needs besides the configuration.
type Options struct {
	Log zerolog.Logger
	// Collect asks for a garbage collection with each value; nil = nobody asks.
	Collect <-chan struct{}
	// Serving, if set, is called once, when users can reach the volume.
	Serving func(Transport)
}

// Run opens the volume that c describes, or the snapshot of it that c names, serves
// it until ctx ends or the volume fails, and closes it. How long the closing takes
// depends on the store and has no limit. Run may be called once in a process, whose
// threads it makes I/O flushers. An end of ctx before there was anything to serve is
// no error.
//
// Errors: *config.Error and those of bs3.Open, bs3.OpenSnapshot and Engine.Close,
// among others.
func Run(ctx context.Context, c config.Config, o Options) error {
	if c.Profiler {
		stop, err := startProfiler(ctx, c.ProfilerPort, o.Log)
		if err != nil {
			return err
		}
		defer stop()
	}
	if c.Snapshot == "" { // otherwise nothing is ever written to the device
		becomeIOFlusher(o.Log)
	}
	defer keepHeapSmall(ctx)()
	h, end := newHealth(ctx, o.Log)
	err := serve(ctx, c, h, transports(), o)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		o.Log.Info().Msg("stopped while opening the volume")
		err = nil
	}
	end(err)
	return err
}

// errStopping is the cause by which calls under way end when the daemon stops.
var errStopping = errors.New("the daemon is stopping")

// removalWait is how long a transport may take away its device after the volume
// was closed.
const removalWait = 10 * time.Second

// serve is Run without what the whole process needs, by one of the transports known.
func serve(ctx context.Context, c config.Config, h *health, known table, o Options) error {
	if err := refuseOwnDevice(c, blockdev.Below, known.own); err != nil {
		return err
	}
	t, err := known.choose(ctx, c, o.Log)
	if err != nil {
		return err
	}
	v, err := openVolume(ctx, c, h, known, t, o.Log)
	if err != nil {
		return err
	}
	unused := make(chan struct{})
	s := service{volume: v, config: c, log: o.Log, unused: func() { close(unused) }, ready: func(shown Transport) {
		shown.Name = t.name
		event := v.announce(o.Log.Info()).Str("transport", shown.Name)
		if shown.Device != "" {
			event = event.Str("device", shown.Device)
		}
		if shown.NBD != "" {
			event = event.Str("nbd", shown.NBD)
		}
		if v.shown != nil {
			v.shown(shown)
		}
		event.Msg("serving")
		h.serving(shown, v.Geometry().Size/config.GB)
		if o.Serving != nil {
			o.Serving(shown)
		}
	}}
	var removal <-chan error // how t.serve ends, if it goes on although v is unused
	err = serveVolume(ctx, v, c, o, func(ctx context.Context) error {
		if err := known.removeLeft(ctx, v, t, o.Log); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- t.serve(ctx, s) }()
		select {
		case err := <-ended:
			return err
		case <-unused:
			removal = ended
			return nil
		}
	})
	o.Log.Info().Msg("closing the volume")
	h.stopping()
	// A clean stop has no time limit: a user in a hurry signals again.
	err = errors.Join(err, v.close(context.WithoutCancel(ctx)))
	if removal != nil {
		err = errors.Join(err, awaitRemoval(removal, removalWait))
	}
	if err == nil {
		o.Log.Info().Msg("stopped")
	}
	return err
}

// awaitRemoval returns how the removal of the device has ended, or an error if it
// has not after limit: it may hang in the kernel for good, and the volume is closed.
func awaitRemoval(removal <-chan error, limit time.Duration) error {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case err := <-removal:
		return err
	case <-timeout.C:
		return fmt.Errorf("the volume is closed, but %v later its block device is still there: "+
			"if its removal hangs in the kernel, only a reboot ends that", limit)
	}
}

// serveVolume runs show, which shows v to Linux, until ctx ends or v fails, and
// beside it what else a daemon does. When it returns, everything that uses v
// has ended, and what clients have sent is finished.
func serveVolume(ctx context.Context, v *served, c config.Config, o Options, show func(context.Context) error) error {
	serving, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { cancel(errStopping) })()
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel(errStopping)
	if v.calls != nil {
		if err := os.MkdirAll(filepath.Dir(c.Control.Socket), 0o700); err != nil {
			return fmt.Errorf("directory of the control socket: %w", err)
		}
		server, err := control.Listen(ctx, c.Control.Socket, v.calls, o.Log)
		if err != nil {
			return err
		}
		beside.Go(func() {
			if err := server.Run(serving); err != nil {
				o.Log.Error().Err(err).Msg("the control socket is lost; the device is still served")
			}
		})
	}
	beside.Go(func() {
		select {
		case <-v.failed:
			cancel(errStopping)
		case <-serving.Done():
		}
	})
	beside.Go(func() {
		for {
			select {
			case <-o.Collect:
				v.collect(serving)
			case <-serving.Done():
				return
			}
		}
	})
	return show(serving)
}
