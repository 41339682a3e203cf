// Package ublk serves a device.Volume as a Linux block device, /dev/ublkbN,
// through the userspace block driver ublk_drv (Documentation/block/ublk.rst and
// linux/ublk_cmd.h of Linux; 6.0 or later, CAP_SYS_ADMIN).
//
// The driver passes requests to its server as completions of io_uring commands on
// /dev/ublkcN, and takes their results with further commands. Each hardware queue
// has a thread, the only one that does so. Reads and writes that device.Fast can
// serve at once are served right there; a request that may wait gets a goroutine.
// The server copies data with pread and pwrite on /dev/ublkcN
// (UBLK_F_USER_COPY); before Linux 6.5 the kernel copies it to and from buffers
// that it asks for (UBLK_F_NEED_GET_DATA).
//
// A device outlives a server that was killed (UBLK_F_USER_RECOVERY): its requests
// wait, including those that the server had taken, until the next server takes the
// device over. That server must have everything the dead one acknowledged, see
// Options.Recover. A clean stop removes the device.
//
// # Memory pressure
//
// The kernel frees memory by writing pages to this device, so serving a write must
// not wait for memory to be freed. A process that runs a Server should set
// PR_SET_IO_FLUSHER before it starts threads, and lock its memory (mlockall);
// neither its own files nor its swap space may be on the device. This package
// keeps the data of requests in mapped buffers that it reuses, at most
// queues * depth of them; the kernel's part preallocates requests.
package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
)

// Options of a Server.
type Options struct {
	// ID is the N of /dev/ublkbN. If it is negative, the kernel chooses, unless a
	// device of the volume waits for a new server.
	ID int

	// Identity distinguishes the devices of this volume from others. The kernel
	// keeps it with the device. Without one (0) no existing device is taken over
	// or removed.
	Identity uint64

	// Recover makes Run take over the device that a killed server of this volume
	// left. Set it only if the volume holds everything that server acknowledged.
	// Otherwise such a device is removed, and its users get I/O errors rather than
	// a disk that has lost something.
	Recover bool

	// Marker, if set, is the path of a file that exists while some queues of a
	// device that is being taken over may have this server and others none; best
	// in a directory that is empty after a reboot. A server that finds it removes
	// the device instead: the previous server died half-way, and trying again
	// crashes Linux (seen with 6.12, where START_USER_RECOVERY follows a null
	// pointer if some queues have a server and others do not).
	Marker string

	// Queues is the number of hardware queues, each with a thread; 0 = one for
	// each CPU, but at most 4. The kernel makes at most one for each CPU. A device
	// that is taken over keeps its number.
	Queues int

	// QueueDepth is the largest number of requests in flight in a queue, at most
	// 4096; 0 = 128. A device that is taken over keeps its depth.
	QueueDepth int

	Log zerolog.Logger

	// Attached, if set, is called once, with the path of the block device, as soon
	// as it can be used.
	Attached func(path string)
}

const (
	defaultQueues = 4 // at most, if nothing was asked for
	defaultDepth  = 128
)

// Errors of Run and Vacant, which wrap them.
var (
	// ErrNoDriver: this kernel has no ublk, or its module is not loaded.
	ErrNoDriver = errors.New("no ublk driver in the kernel, try modprobe ublk_drv")
	// ErrInUse: the device exists, and is not ours.
	ErrInUse = errors.New("ublk device is in use")
	// ErrHeld: a device was removed, but somebody has it open. Its number becomes
	// free when it is closed.
	ErrHeld = errors.New("the device is still open, perhaps because of a mounted file system")
	// ErrRemoved: somebody else stopped the device while it was served.
	ErrRemoved = errors.New("ublk device was stopped by someone else")
)

// Server serves one volume. Make it with New; call Run once.
type Server struct {
	vol    device.Volume
	opts   Options
	driver driver
}

// New returns a server of vol.
func New(vol device.Volume, opts Options) *Server {
	if opts.Queues <= 0 {
		opts.Queues = min(runtime.NumCPU(), defaultQueues)
	}
	if opts.QueueDepth <= 0 {
		opts.QueueDepth = defaultDepth
	}
	opts.Queues, opts.QueueDepth = min(opts.Queues, maxQueues), min(opts.QueueDepth, maxQueueDepth)
	return &Server{vol: vol, opts: opts, driver: linux{}}
}

// Run makes the block device and serves it until ctx is cancelled, and then returns
// nil. It stops in this order: it has the kernel write back what file systems and
// the page cache hold for the device, stops the device, which waits for the
// requests in flight, and removes it. That has no time limit, since giving up
// would lose what was written. Users of the device get errors from then on.
//
// If something fails between server and kernel, Run returns the error and leaves
// the device waiting for the next server.
func (s *Server) Run(ctx context.Context) error {
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("ublk: %w", err)
	}
	return nil
}

func (s *Server) run(ctx context.Context) error {
	ctl, err := openControl(s.driver)
	if err != nil {
		return err
	}
	m := newManager(ctl)
	info, taken, err := s.obtain(ctx, m)
	if err == nil {
		var remove bool
		remove, err = s.attend(ctx, m, info, taken)
		if remove {
			// ctx is usually cancelled by now.
			err = errors.Join(err, s.discard(context.WithoutCancel(ctx), m, info.id))
		}
	}
	return errors.Join(err, ctl.close())
}

// attend serves a device that was made or taken over. It reports whether to remove
// it then; otherwise the device waits for the next server.
func (s *Server) attend(ctx context.Context, m *manager, info devInfo, taken bool) (remove bool, err error) {
	path := blockPath(int(info.id))
	log := s.opts.Log.With().Str("device", path).Logger()
	dev, err := s.driver.open(int(info.id))
	if err != nil {
		return !taken, err
	}
	// Requests outlive ctx: the stop waits for them.
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := s.crew(dev, info, m.legacy, cancel)
	defer func() {
		err = errors.Join(err, c.leave(), dev.close())
	}()
	mark := func() error { return nil }
	if taken {
		mark = s.mark
	}
	if err := c.start(requests, mark); err != nil {
		return !taken, fmt.Errorf("cannot serve %s: %w", path, err)
	}
	if taken {
		if err = s.unmark(); err == nil {
			err = m.endRecovery(info.id, os.Getpid())
		}
	} else {
		// This reads, to find partitions. Nothing is lost if that is cancelled.
		unwatch := context.AfterFunc(ctx, cancel)
		err = m.start(info.id, os.Getpid())
		unwatch()
	}
	if err != nil {
		return !taken, fmt.Errorf("start %s: %w", path, err)
	}
	log.Info().Uint16("queues", info.queues).Uint16("depth", info.depth).Bool("taken_over", taken).
		Bool("user_copy", c.userCopy).Bool("legacy", c.legacy).Msg("the block device is there")
	if s.opts.Attached != nil {
		s.opts.Attached(path)
	}
	select {
	case <-c.ended:
		if c.leave() == nil {
			return true, fmt.Errorf("%w: %s", ErrRemoved, path)
		}
		return false, fmt.Errorf("cannot serve %s any longer", path)
	case <-ctx.Done():
	}
	log.Info().Msg("writing back what the kernel holds for the block device")
	written := make(chan error, 1)
	go func() { written <- s.driver.writeBack(int(info.id)) }()
	select {
	case err := <-written:
		if err != nil {
			log.Warn().Err(err).Msg("not everything could be written back")
		}
	case <-c.ended: // the write-back waits for the next server
		if c.leave() != nil {
			return false, fmt.Errorf("cannot serve %s any longer", path)
		}
	}
	log.Info().Msg("stopping the block device")
	if err := m.stop(info.id); err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("stop %s: %w", path, err)
	}
	return true, c.wait()
}

// discard removes a device, which stops it if that was not done.
func (s *Server) discard(ctx context.Context, m *manager, id uint32) error {
	err := m.remove(ctx, id)
	if errors.Is(err, ErrHeld) {
		s.opts.Log.Warn().Err(err).Str("device", blockPath(int(id))).Msg("the block device is stopped; its number becomes free when it is closed")
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", blockPath(int(id)), err)
	}
	return nil
}

// crew runs the queues of a device.
type crew struct {
	*shown
	queues []*queue
	cancel context.CancelFunc // of all requests
	group  *errgroup.Group
	ended  <-chan struct{} // closed when a queue has ended

	begin chan struct{} // closed when the queues may ask for requests
	begun bool          // begin is closed
}

func (s *Server) crew(dev charDevice, info devInfo, legacy bool, cancel context.CancelFunc) *crew {
	d := &shown{
		vol: s.vol, geometry: s.vol.Geometry(), dev: dev,
		depth: int(info.depth), maxIO: int(info.maxIOBytes), userCopy: info.flags&flagUserCopy != 0, legacy: legacy,
		buffers: &buffers{},
		errLog:  s.opts.Log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Minute}),
	}
	d.fast, _ = s.vol.(device.Fast)
	c := &crew{shown: d, cancel: cancel, begin: make(chan struct{})}
	for id := range info.queues {
		c.queues = append(c.queues, &queue{shown: d, id: id})
	}
	group, ctx := errgroup.WithContext(context.Background())
	c.group, c.ended = group, ctx.Done()
	return c
}

// errQueue: a queue has ended with the error that leave returns.
var errQueue = errors.New("a queue has failed")

// start starts the queues. It calls mark before the first of them asks for
// requests, and returns nil when all of them have asked.
func (c *crew) start(requests context.Context, mark func() error) error {
	steps := make(chan struct{}, len(c.queues))
	step := func() { steps <- struct{}{} }
	for _, q := range c.queues {
		c.group.Go(func() error {
			return q.run(requests, c.cancel, stages{prepared: step, begin: c.begin, fetching: step})
		})
	}
	if !c.all(steps) {
		return errQueue
	}
	if err := mark(); err != nil {
		return err
	}
	c.begun = true
	close(c.begin)
	if !c.all(steps) {
		return errQueue
	}
	return nil
}

// all waits for a step of each queue. It returns false if a queue ends instead.
func (c *crew) all(steps <-chan struct{}) bool {
	for range c.queues {
		select {
		case <-steps:
		case <-c.ended:
			return false
		}
	}
	return true
}

// wait waits for all queues, whose device was stopped. The error is that of the
// first that ended for another reason.
func (c *crew) wait() error {
	err := c.group.Wait()
	c.buffers.release()
	if errors.Is(err, errAborted) {
		return nil
	}
	return err
}

// leave ends the queues, whether the device is stopped or not, and waits for them.
// It may be called again.
func (c *crew) leave() error {
	c.cancel()
	for _, q := range c.queues {
		q.abandon()
	}
	if !c.begun {
		c.begun = true
		close(c.begin)
	}
	return c.wait()
}
