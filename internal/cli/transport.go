package cli

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"bs3/internal/config"
	"bs3/internal/device/blockdev"
	"bs3/internal/device/buse"
	"bs3/internal/device/nbd"
	"bs3/internal/device/nbd/kernel"
	"bs3/internal/device/ublk"
	"bs3/internal/listen"
)

// door shows a volume to Linux until ctx ends, and takes it away then.
type door func(ctx context.Context) error

// shown is where users find a volume: one of them, or both.
type shown struct {
	device string   // path of the block device
	nbd    net.Addr // of the NBD server
}

// machine says what this machine has of each transport: nil, or why not.
type machine struct{ buse, ublk, kernelNBD func() error }

func thisMachine() machine {
	return machine{buse: buse.Available, ublk: ublk.Available, kernelNBD: kernel.Available}
}

// chooseTransport gives the transport that c asks for, never TransportAuto, and
// logs why. Nothing was touched if it fails: because the machine has not what
// is asked for, or with a *config.Error.
func chooseTransport(c config.Config, m machine, log zerolog.Logger) (string, error) {
	transport, why := c.Transport, "transport = \""+c.Transport+"\""
	var lacks error
	switch transport {
	case config.TransportAuto:
		transport, why = m.best(c)
	case config.TransportBUSE:
		lacks = m.buse()
	case config.TransportUblk:
		lacks = m.ublk()
	}
	if transport == config.TransportNBD && c.NBD.Device != "" {
		lacks = m.kernelNBD()
	}
	if lacks != nil {
		return "", fmt.Errorf("transport %s (%s): %w", transport, why, lacks)
	}
	if err := c.CheckTransport(transport); err != nil {
		return "", err
	}
	event := log.Info().Str("transport", transport).Str("why", why)
	if c.NBD.Device != "" && transport != config.TransportNBD {
		event = event.Str("unused", "nbd.device")
	}
	event.Msg("transport chosen")
	return transport, nil
}

// best chooses for TransportAuto.
func (m machine) best(c config.Config) (transport, why string) {
	if m.buse() == nil {
		return config.TransportBUSE, "auto: the module BUSE is loaded"
	}
	lacks := m.ublk()
	if lacks == nil {
		return config.TransportUblk, "auto: no BUSE; the ublk driver can be used"
	}
	why = "auto: no BUSE; no ublk: " + lacks.Error()
	if c.NBD.Device == "" {
		return config.TransportNBD, why + "; nbd.device is empty: no block device"
	}
	return config.TransportNBD, why + "; nbd.device is set"
}

// newDoor gives the door of a transport. ready is called when users can come.
func newDoor(transport string, v *volume, c config.Config, log zerolog.Logger, ready func(shown)) (door, error) {
	switch transport {
	case config.TransportBUSE:
		return buseDoor(v, c, log, ready), nil
	case config.TransportUblk:
		return ublkDoor(v, c, log, ready), nil
	default:
		return nbdDoor(v, c, log, ready)
	}
}

func buseDoor(v *volume, c config.Config, log zerolog.Logger, ready func(shown)) door {
	return func(ctx context.Context) error {
		if err := v.removeLeft(ctx, config.TransportBUSE, log); err != nil {
			return err
		}
		o := buseOptions(c)
		o.Log, o.Ready = log, func(path string) { ready(shown{device: path}) }
		return buse.New(v.Volume, o).Run(ctx)
	}
}

func buseOptions(c config.Config) buse.Options {
	return buse.Options{
		Major: c.Major, Threads: c.Threads, CPUsPerNode: c.CPUsPerNode, QueueDepth: c.QueueDepth, Scheduler: c.Scheduler,
		WriteBuffer: int64(c.Write.BufSize) * config.MB, ReadBuffer: int64(c.Read.BufSize) * config.MB,
		ChunkSize: int64(c.Write.ChunkSize) * config.MB, CollisionArea: int64(c.Write.CollisionSize) * config.MB,
	}
}

func ublkDoor(v *volume, c config.Config, log zerolog.Logger, ready func(shown)) door {
	return func(ctx context.Context) error {
		if err := v.removeLeft(ctx, config.TransportUblk, log); err != nil {
			return err
		}
		o := ublk.Options{
			ID: c.Ublk.ID, Identity: v.identity(), Recover: v.whole,
			Queues: c.Threads, QueueDepth: c.QueueDepth, Log: log,
			Attached: func(path string) {
				setScheduler(path, c.Scheduler, log)
				ready(shown{device: path})
			},
		}
		if v.state != "" {
			o.Marker = filepath.Join(v.state, "ublk-takeover")
		}
		return ublk.New(v.Volume, o).Run(ctx)
	}
}

// nbdDoor is the NBD server, and the kernel's client of it if nbd.device names
// one.
func nbdDoor(v *volume, c config.Config, log zerolog.Logger, ready func(shown)) (door, error) {
	network, address, err := c.NBD.Address()
	if err != nil {
		return nil, fmt.Errorf("nbd.listen: %w", err)
	}
	if network == "unix" {
		// By default the socket lies in a directory that a reboot removes.
		if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
			return nil, fmt.Errorf("directory of the NBD socket: %w", err)
		}
	}
	listening := make(chan net.Addr, 1)
	server := nbd.New(v.Volume, nbd.Options{
		Network: network, Address: address, ExportName: c.Name, Log: log,
		Listening: func(addr net.Addr) { listening <- addr },
	})
	attach := func(_ context.Context, addr net.Addr) error {
		ready(shown{nbd: addr})
		return nil
	}
	transport := config.TransportNBD
	if c.NBD.Device != "" {
		index, err := c.NBD.Index()
		if err != nil {
			return nil, fmt.Errorf("nbd.device: %w", err)
		}
		transport = kernelNBD
		attach = func(ctx context.Context, addr net.Addr) error {
			o := kernel.Options{
				Index: index, Volume: v.id, Recover: v.whole, Log: log,
				Attached: func(path string) {
					setScheduler(path, c.Scheduler, log)
					ready(shown{device: path, nbd: addr})
				},
			}
			o.Run = v.nbdRun()
			return kernel.New(v.Geometry(), server, o).Run(ctx)
		}
	}
	return func(ctx context.Context) error {
		if err := v.removeLeft(ctx, transport, log); err != nil {
			return err
		}
		return serveNBD(ctx, server, listening, attach)
	}, nil
}

// canListen fails if a TCP address can not be listened on: it is in use, or not
// yet one of this machine's while that boots. It comes before the volume is
// opened, since every open leaves a fence in the store for ever, and a service
// manager tries again every second.
func canListen(ctx context.Context, c config.NBD) error {
	network, address, err := c.Address()
	if err != nil {
		return fmt.Errorf("nbd.listen: %w", err)
	}
	if network != "tcp" {
		return nil // what lies beside it in state.path is judged with that
	}
	l, release, err := listen.Listen(ctx, network, address)
	if err != nil {
		return fmt.Errorf("listen for NBD on %s: %w", c.Listen, err)
	}
	release()
	return l.Close()
}

// serveNBD runs server, and attach when clients can connect, whose connection
// the server outlives.
func serveNBD(ctx context.Context, server *nbd.Server, listening <-chan net.Addr, attach func(context.Context, net.Addr) error) error {
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

// kernelNBD is TransportNBD with a device of the kernel.
const kernelNBD = "kernel-nbd"

// removeLeft removes the block devices that killed daemons have left of the
// volume, but for those of the given transport, which looks after its own. They
// must not be gone on with after anything else has served the volume, nor if the
// volume is not whole: then all are removed while it is opened, with transport "".
func (v *volume) removeLeft(ctx context.Context, transport string, log zerolog.Logger) error {
	var errs []error
	if transport != config.TransportUblk {
		errs = append(errs, ublk.RemoveLeft(ctx, v.identity(), log))
	}
	if transport != kernelNBD {
		errs = append(errs, kernel.DisconnectLeft(v.id, v.nbdRun(), log))
	}
	return errors.Join(errs...)
}

// nbdRun is where a kernel NBD device is remembered, or "".
func (v *volume) nbdRun() string {
	if v.state == "" {
		return ""
	}
	return filepath.Join(v.state, "nbd-device")
}

// identity is id as a number that is not 0.
func (v *volume) identity() uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(v.id)) // never fails (hash.Hash)
	return h.Sum64() | 1
}

// setScheduler does what the key scheduler says, for devices whose driver does
// not ask for it.
func setScheduler(path string, on bool, log zerolog.Logger) {
	if err := blockdev.SetScheduler(path, on); err != nil {
		log.Warn().Err(err).Str("device", path).Msg("the I/O scheduler stays as it is")
	}
}
