package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"bs3/internal/config"
	"bs3/internal/device/nbd"
	"bs3/internal/device/nbd/kernel"
	"bs3/internal/listen"
)

// nbdTransport is the NBD server alone.
func nbdTransport() *transport {
	return &transport{
		name:      config.TransportNBD,
		why:       "nbd.device is empty: no block device",
		fits:      func(c config.Config) bool { return c.NBD.Device == "" },
		available: func(ctx context.Context, c config.Config) error { return canListen(ctx, c.NBD) },
		serve: func(ctx context.Context, s service) error {
			return serveNBD(ctx, s, func(_ context.Context, _ *nbd.Server, addr net.Addr) error {
				s.ready(Transport{NBD: uri(addr)})
				return nil
			})
		},
	}
}

// kernelNBDTransport is the NBD server with the kernel's client of it.
func kernelNBDTransport() *transport {
	return &transport{
		name: config.TransportNBD,
		why:  "nbd.device is set",
		fits: func(c config.Config) bool { return c.NBD.Device != "" },
		available: func(ctx context.Context, c config.Config) error {
			if err := kernel.Available(); err != nil {
				return err
			}
			return canListen(ctx, c.NBD)
		},
		own: func(c config.Config, device string) (bool, error) {
			return device == filepath.Base(c.NBD.Device), nil
		},
		vacant: func(ctx context.Context, c config.Config, v *served, log zerolog.Logger) error {
			index, err := c.NBD.Index()
			if err != nil {
				return fmt.Errorf("nbd.device: %w", err)
			}
			err = kernel.Vacant(ctx, index, v.id, nbdRun(v), log)
			if errors.Is(err, kernel.ErrInUse) && !errors.Is(err, kernel.ErrHeld) {
				return c.Refuse("nbd.device", "must be a device that is not connected, or the volume's own: %v", err)
			}
			return err
		},
		removeLeft: func(_ context.Context, v *served, log zerolog.Logger) error {
			return kernel.DisconnectLeft(v.id, nbdRun(v), log)
		},
		serve: func(ctx context.Context, s service) error {
			index, err := s.config.NBD.Index()
			if err != nil {
				return fmt.Errorf("nbd.device: %w", err)
			}
			return serveNBD(ctx, s, func(ctx context.Context, server *nbd.Server, addr net.Addr) error {
				return kernel.New(s.volume.Geometry(), server, kernel.Options{
					Index: index, Volume: s.volume.id, Run: nbdRun(s.volume), Recover: s.volume.whole, Log: s.log,
					Attached: func(path string) {
						setScheduler(path, s.config.Scheduler, s.log)
						s.ready(Transport{Device: path, NBD: uri(addr)})
					},
				}).Run(ctx)
			})
		},
	}
}

// nbdRun is where a kernel NBD device is remembered, or "".
func nbdRun(v *served) string {
	if v.state == "" {
		return ""
	}
	return filepath.Join(v.state, "nbd-device")
}

// canListen returns an error if a TCP address cannot be listened on: it is in
// use, or not yet one of this machine's, which is still booting. That is found
// out before the volume is opened, because every open leaves a fence in the
// store for ever, and a service manager tries again every second.
func canListen(ctx context.Context, c config.NBD) error {
	network, address, err := c.Address()
	if err != nil {
		return fmt.Errorf("nbd.listen: %w", err)
	}
	if network != "tcp" {
		return nil // a socket usually lies in state.path, which comes with the volume
	}
	l, release, err := listen.Listen(ctx, network, address)
	if err != nil {
		return fmt.Errorf("listen for NBD on %s: %w", c.Listen, err)
	}
	release()
	return l.Close()
}

// serveNBD serves s by NBD, and runs attach when clients can connect.
func serveNBD(ctx context.Context, s service, attach func(context.Context, *nbd.Server, net.Addr) error) error {
	network, address, err := s.config.NBD.Address()
	if err != nil {
		return fmt.Errorf("nbd.listen: %w", err)
	}
	if network == "unix" {
		// By default the socket lies in a directory that a reboot removes.
		if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
			return fmt.Errorf("directory of the NBD socket: %w", err)
		}
	}
	listening := make(chan net.Addr, 1)
	server := nbd.New(s.volume.Volume, nbd.Options{
		Network: network, Address: address, ExportName: s.config.Name, Log: s.log,
		Memory:    int64(s.config.NBD.Memory) * config.MB,
		Listening: func(addr net.Addr) { listening <- addr },
	})
	return runNBD(ctx, server, listening, func(ctx context.Context, addr net.Addr) error {
		return attach(ctx, server, addr)
	})
}

// runNBD runs server, and attach when clients can connect. The server outlives
// the connection that attach makes.
func runNBD(ctx context.Context, server *nbd.Server, listening <-chan net.Addr, attach func(context.Context, net.Addr) error) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(ctx)
	ended := make(chan struct{})
	group.Go(func() error {
		defer close(ended)
		return server.Run(serving)
	})
	group.Go(func() error {
		select {
		case addr := <-listening:
			if err := attach(failed, addr); err != nil {
				stop()
				return err
			}
		case <-ended:
			return nil
		}
		<-failed.Done()
		stop()
		return nil
	})
	return group.Wait()
}

// uri is addr in the form that NBD clients take.
func uri(addr net.Addr) string {
	if addr.Network() != "unix" {
		return "nbd://" + addr.String()
	}
	path, err := filepath.Abs(addr.String())
	if err != nil {
		path = addr.String()
	}
	// Clients take a + literally, so a space must be %20.
	return "nbd+unix:///?socket=" + strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(path))
}
