package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/device/blockdev"
	"bs3/internal/device/ublk"
)

// run is the daemon.
func (a *app) run(cmd *cobra.Command, _ []string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if a.takeover {
		c.Takeover = config.TakeoverAuto
	}
	c.ForgetLocalLog = a.forget
	outliveOutput()
	log := newLogger(os.Stderr, c.Log, isTerminal(os.Stderr))
	for _, name := range config.UnknownVariables(os.Environ()) { //nolint:forbidigo // only their names, to warn of misspelt ones
		log.Warn().Str("variable", name).Msg("this variable sets nothing")
	}
	collect := make(chan struct{}, 1)
	ctx, stop := watchSignals(cmd.Context(), log, collect, func() {
		log.Warn().Str("state", c.State.Path).
			Msg("second signal: exit now; writes that are not in the store stay in the chunk memory for the next start")
		os.Exit(exitOther) //nolint:forbidigo // the user will not wait
	})
	defer stop()
	if c.Profiler {
		stop, err := startProfiler(ctx, c.ProfilerPort, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	var hints io.Writer
	if a.local {
		hints = cmd.OutOrStdout()
	}
	becomeIOFlusher(log)
	h, end := newHealth(ctx, log)
	err = serve(ctx, c, h, log, collect, hints)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		// Stopped before there was anything to serve.
		log.Info().Msg("stopped while opening the volume")
		err = nil
	}
	end(err)
	return err
}

// errStopping is what calls under way hear when the daemon stops.
var errStopping = errors.New("the daemon is stopping")

// serve opens the volume and serves it until ctx ends or the volume fails. It
// collects garbage when collect says so. What to try is written to hints,
// unless it is nil, as soon as clients can connect.
func serve(ctx context.Context, c config.Config, h *health, log zerolog.Logger, collect <-chan struct{}, hints io.Writer) error {
	if err := (ground{blockdev.Below, ublk.Waits}).refuseOwnDevice(c); err != nil {
		return err
	}
	transport, err := chooseTransport(c, thisMachine(), log)
	if err != nil {
		return err
	}
	if transport == config.TransportNBD {
		if err := canListen(ctx, c.NBD); err != nil {
			return err
		}
	}
	v, err := openVolume(ctx, c, h, log)
	if err != nil {
		return err
	}
	show, err := newDoor(transport, v, c, log, func(s shown) {
		t := transportStatus{Name: transport, Device: s.device}
		event := v.announce(log.Info()).Str("transport", transport)
		if s.device != "" {
			event = event.Str("device", s.device)
		}
		if s.nbd != nil {
			t.NBD = uri(s.nbd)
			event = event.Str("nbd", t.NBD)
		}
		if v.shown != nil {
			v.shown(t)
		}
		event.Msg("serving")
		h.serving(v, s)
		if hints != nil && s.nbd != nil {
			printHints(hints, s.nbd, c.Size)
		}
	})
	if err == nil {
		err = serveVolume(ctx, v, c, log, collect, show)
	}
	log.Info().Msg("closing the volume")
	h.stopping()
	// The clean stop has no time limit: who is in a hurry signals again.
	err = errors.Join(err, v.close(context.WithoutCancel(ctx)))
	if err == nil {
		log.Info().Msg("stopped")
	}
	return err
}

// serveVolume shows v until ctx ends or v fails. When it returns, everything
// that uses v has ended; what clients have sent is finished.
func serveVolume(ctx context.Context, v *volume, c config.Config, log zerolog.Logger, collect <-chan struct{}, show door) error {
	serving, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { cancel(errStopping) })()
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel(errStopping)
	if v.calls != nil {
		if err := os.MkdirAll(filepath.Dir(c.Control.Socket), 0o700); err != nil {
			return fmt.Errorf("directory of the control socket: %w", err)
		}
		server, err := control.Listen(ctx, c.Control.Socket, v.calls, log)
		if err != nil {
			return err
		}
		beside.Go(func() {
			if err := server.Run(serving); err != nil {
				log.Error().Err(err).Msg("the daemon can not be spoken to any more; the device is served on")
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
			case <-collect:
				v.collect(serving)
			case <-serving.Done():
				return
			}
		}
	})
	return show(serving)
}

// isTerminal says whether f is a character device, which is near enough to
// choose colours by.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// uri is addr as clients of NBD like it.
func uri(addr net.Addr) string {
	if addr.Network() != "unix" {
		return "nbd://" + addr.String()
	}
	path, err := filepath.Abs(addr.String())
	if err != nil {
		path = addr.String()
	}
	// A space is %20 there: clients take a + for itself.
	return "nbd+unix:///?socket=" + strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(path))
}

// printHints says what can be done with a volume that has just been shown.
func printHints(w io.Writer, addr net.Addr, size int64) {
	u := uri(addr)
	fmt.Fprintf(w, `
%d GB are being served. Ctrl-C stops; the data stays in .bs3/store. In another terminal:

  nbdinfo '%[2]s'
  nbdcopy --progress SOME-IMAGE '%[2]s'

or a file system, as root (libnbd-bin, fuse3):

  mkdir -p /tmp/bs3 /mnt/bs3 && nbdfuse /tmp/bs3 '%[2]s' &
  mkfs.ext4 /tmp/bs3/nbd                  # the first time
  mount -o loop /tmp/bs3/nbd /mnt/bs3

and to end that, before Ctrl-C here: umount /mnt/bs3 && fusermount3 -u /tmp/bs3

`, size, u)
}
