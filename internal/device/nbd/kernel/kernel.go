// Package kernel attaches the NBD client of Linux (drivers/block/nbd.c) to an
// NBD server of this process, which makes the volume a block device /dev/nbdN.
//
// The client gets one end of a pair of unix sockets and the server the other;
// there is no handshake. There is one connection, and no time-out for requests:
// with several connections, or with a time-out, Linux considers a connection dead
// whose request waits for the store.
//
// A device outlives a server that was killed: new requests wait, for as long as
// deadTimeout says, until another server gives the device a new socket; then
// those that the dead server had not answered are sent again. That server must
// have everything the dead one acknowledged, see Options.Recover. A clean stop
// disconnects the device.
//
// Linux shows a string with each device, its backend. Ours names the volume and
// the run of the device. The run is needed because a device that was disconnected
// while a file system is mounted on it looks like one that waits, and Linux
// reconnected it as if nothing were lost before it learnt to refuse that (6.12
// does, 5.16 by its source does not). So whoever disconnects a device first
// forgets its run.
package kernel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/blockdev"
)

// Server is an NBD server like that of package nbd.
type Server interface {
	// Flags returns the transmission flags for a client without a handshake.
	Flags() uint16
	// Serve serves such a client until it disconnects (nil) or the connection
	// breaks.
	Serve(ctx context.Context, nc net.Conn) error
}

// Options of a Device.
type Options struct {
	Index int // N of /dev/nbdN

	// Volume names the volume among others. It is printable and has no colon.
	Volume string

	// Recover makes Run take over the device that a killed server of this volume
	// left. Set it only if the volume holds everything that server acknowledged.
	// Otherwise such a device is disconnected, and its users get I/O errors rather
	// than a disk that has lost something.
	Recover bool

	// Run is the path of the file that keeps the run of the device, in a
	// directory that outlives the process. Without it no device is taken over.
	Run string

	Log zerolog.Logger

	// Attached, if set, is called once, with the path of the block device, as soon
	// as it can be used.
	Attached func(path string)
}

const (
	// deadTimeout is how long a device without a server makes its users wait:
	// practically for ever. No write to it should fail because its daemon is
	// away, and a user who does not want to wait can disconnect it.
	deadTimeout = 365 * 24 * time.Hour
	// stuckAfter is the age at which Linux checks a request that has no answer: it
	// sends it again if the socket has changed, and otherwise logs that it waits.
	// Its default of 30 s makes a file system wait that long for a daemon that
	// came back much earlier.
	stuckAfter = 10 * time.Second
	// deathWait bounds how long Linux may take to notice that a server is dead.
	deathWait = 30 * time.Second
	// holdWait bounds how long the users of a disconnected device may take to
	// let go of it.
	holdWait = 5 * time.Second
)

// Errors of Run and Vacant, which wrap them.
var (
	// ErrNoDriver: this kernel has no NBD client, or its module is not loaded.
	ErrNoDriver = errors.New("no NBD client in the kernel, try modprobe nbd")
	// ErrInUse: the device is connected, and not ours.
	ErrInUse = errors.New("kernel NBD device is in use")
	// ErrHeld: the device is of this volume and was disconnected, but somebody has
	// it open. It becomes free when it is closed.
	ErrHeld = errors.New("it was disconnected, but is still open, perhaps because of a mounted file system: unmount it")
	// ErrDisconnected: somebody else disconnected the device while it was served.
	ErrDisconnected = errors.New("kernel NBD device was disconnected by someone else")
)

// Device is a block device of the kernel's client. Make it with New; call Run
// once.
type Device struct {
	geometry device.Geometry
	server   Server
	opts     Options
	driver   driver
	hold     time.Duration // holdWait
}

// New returns a device for what server serves, a volume of geometry g.
func New(g device.Geometry, server Server, opts Options) *Device {
	return &Device{geometry: g, server: server, opts: opts, driver: linux(), hold: holdWait}
}

// Run attaches the device and keeps it until ctx is cancelled, and then returns
// nil. It stops in this order: it has the kernel write back what file systems and
// the page cache hold for the device, without a time limit, since giving up would
// lose what was written; then it disconnects the device, whose users get errors
// from then on. The server has to live longer than Run.
//
// If the connection breaks, Run returns the error and leaves the device waiting
// for the next server.
func (d *Device) Run(ctx context.Context) error {
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("kernel NBD device %s: %w", d.path(), err)
	}
	return nil
}

func (d *Device) path() string { return blockPath(d.opts.Index) }

func (d *Device) run(ctx context.Context) error {
	if err := d.driver.available(); err != nil {
		return err
	}
	backend, err := d.claim(ctx)
	if err != nil {
		return err
	}
	nc, taken, err := d.attach(ctx, backend)
	if err != nil {
		return err
	}
	log := d.opts.Log.With().Str("device", d.path()).Logger()
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(context.WithoutCancel(ctx), nc) }()
	if err := d.driver.stuckAfter(d.opts.Index, stuckAfter); err != nil {
		log.Warn().Err(err).Msg("requests of a daemon that is killed will wait for the next one longer than necessary")
	}
	log.Info().Bool("taken_over", taken).Msg("the block device is there")
	if d.opts.Attached != nil {
		d.opts.Attached(d.path())
	}
	select {
	case err := <-served:
		return d.ended(err)
	case <-ctx.Done():
	}
	log.Info().Msg("writing back what the kernel holds for the block device")
	written := make(chan error, 1)
	go func() { written <- d.driver.writeBack(d.opts.Index) }()
	select {
	case err := <-written:
		if err != nil {
			log.Warn().Err(err).Msg("not everything could be written back")
		}
	case err := <-served: // the write-back waits for the next server
		return d.ended(err)
	}
	log.Info().Msg("disconnecting the block device")
	// Without its run the device belongs to nobody from here on.
	err = errors.Join(d.forget(), d.driver.disconnect(d.opts.Index))
	if err != nil {
		_ = nc.Close() // the kernel may not close its end, which Serve waits for
	}
	return errors.Join(err, <-served)
}

// ended returns the error of a device whose connection ended with err before we
// disconnected it.
func (d *Device) ended(err error) error {
	if err == nil { // it must not be taken over
		return errors.Join(ErrDisconnected, d.forget())
	}
	return err
}

// claim returns the backend of the device to take over, or "" if the device is
// free. It disconnects all other devices of the volume.
func (d *Device) claim(ctx context.Context) (string, error) {
	keep, err := d.remembered()
	if err != nil {
		return "", err
	}
	backend, connected, err := d.driver.backend(d.opts.Index)
	if err != nil {
		return "", err
	}
	if !connected || backend != keep {
		keep = ""
	}
	if keep == "" {
		if err := d.forget(); err != nil {
			return "", err
		}
	}
	if err := disconnectAll(d.driver, d.opts.Volume, keep, d.opts.Log); err != nil || keep != "" {
		return keep, err
	}
	return "", d.awaitFree(ctx)
}

// awaitFree returns nil when the device is not connected. The users of one that was
// disconnected need a moment to let go of it. Errors: ErrInUse, with or without
// ErrHeld.
func (d *Device) awaitFree(ctx context.Context) error {
	var backend string
	free, err := blockdev.Await(ctx, d.hold, func() (_ bool, err error) {
		var connected bool
		backend, connected, err = d.driver.backend(d.opts.Index)
		return !connected, err
	})
	switch {
	case err != nil || free:
		return err
	case isOf(backend, d.opts.Volume):
		return fmt.Errorf("%w: %w", ErrInUse, ErrHeld)
	default:
		return fmt.Errorf("%w: by another server (%q); nbd-client -d %s disconnects it", ErrInUse, backend, d.path())
	}
}

// attach gives the kernel a connection and returns our end of it. backend is that
// of a device to take over, or "".
func (d *Device) attach(ctx context.Context, backend string) (nc net.Conn, taken bool, err error) {
	c := connection{
		index: d.opts.Index, size: d.geometry.Size, blockSize: d.geometry.BlockSize,
		flags: d.server.Flags(), deadTimeout: deadTimeout, backend: backend,
	}
	if backend == "" {
		c.backend = prefix(d.opts.Volume) + rand.Text()
		if err := d.remember(c.backend); err != nil {
			return nil, false, err
		}
		nc, err = d.handOver(c, d.driver.connect)
		if err != nil {
			return nil, false, fmt.Errorf("connect: %w", err)
		}
		return nc, false, nil
	}
	d.opts.Log.Info().Str("device", d.path()).Msg("taking the block device over")
	// Linux takes a new socket only after it has noticed that the old one is dead,
	// and reports nothing if it has not.
	taken, err = blockdev.Await(ctx, deathWait, func() (bool, error) {
		if nc, err = d.handOver(c, d.driver.reconnect); err != nil {
			return false, fmt.Errorf("reconnect: %w", err)
		}
		if closed, err := hungUp(nc); closed || err != nil {
			return false, errors.Join(err, nc.Close())
		}
		return true, nil
	})
	if err == nil && !taken {
		err = fmt.Errorf("%w: its last server is still connected", ErrInUse)
	}
	return nc, taken, err
}

// handOver makes a pair of sockets, passes one end to the kernel with connect, and
// returns the other.
func (d *Device) handOver(c connection, connect func(connection) error) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "nbd")
	nc, err := net.FileConn(ours)
	_ = ours.Close() // nc has a copy
	if err == nil {
		c.socket = fds[1]
		if err = connect(c); err != nil {
			_ = nc.Close() // nothing was sent on it
		}
	}
	// The kernel now has its own reference, or needs none.
	return nc, errors.Join(err, os.NewSyscallError("close", unix.Close(fds[1])))
}

// hungUp reports whether the other side of nc is closed.
func hungUp(nc net.Conn) (bool, error) {
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false, err
	}
	fds := []unix.PollFd{{Events: unix.POLLRDHUP}}
	var polled error
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, polled = unix.Poll(fds, 0)
	})
	return fds[0].Revents != 0, errors.Join(err, polled)
}

// remembered returns the backend of the device that may be taken over, or "".
func (d *Device) remembered() (string, error) {
	if !d.opts.Recover || d.opts.Run == "" {
		return "", nil
	}
	text, err := os.ReadFile(d.opts.Run)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

func (d *Device) remember(backend string) error {
	if d.opts.Run == "" {
		return nil
	}
	return os.WriteFile(d.opts.Run, []byte(backend), 0o600)
}

func (d *Device) forget() error {
	if d.opts.Run == "" {
		return nil
	}
	if err := os.Remove(d.opts.Run); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
