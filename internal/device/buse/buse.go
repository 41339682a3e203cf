// Package buse shows a device.Volume as /dev/buseN, by the kernel module BUSE
// of asch/buse and its Go library.
//
// The module copies each write into a chunk of memory that it shares with this
// process, and acknowledges it at once: its chunks are the volatile cache of the
// device. It hands over a chunk when that is full, when the device is flushed, or
// when one of its blocks is read; the library calls BuseWrite for it, on a new
// goroutine. There is a queue for each thread, each with its own chunks. Nothing
// orders the chunks of different queues, nor the goroutines of one queue. The
// order of writes comes from the number that the module gives each; see
// sequence.go.
//
// The module sends a flush down every queue behind the chunks that were filled
// before it. The library answers it, without a call, when the chunks before it in
// its queue are done; the module's flush is done when all queues have answered.
// Hence BuseWrite returns only when its chunk has been written and then flushed:
// that makes a flush of the device one of the volume, whatever the volume's mode
// means by that, and keeps what is written after a flush behind what was written
// before it. (The library can also answer flushes at once. A chunk from before the
// flush may then be written after one from behind it, so this package never asks
// for that: if the volume's flush only keeps the order, it costs nothing but the
// wait for memory.)
//
// A request cannot be reported as failed: when a callback returns, with an error
// or without, the library tells the module that the request was done. So a
// callback that failed does not return; see requests.go.
//
// The numbers start again at 1 with every start of a device, and so does all that
// this package keeps of them. A killed daemon leaves its device behind with the
// requests in it. The module would hand them over again, but only to a process
// that still knows the earlier numbers; none does, so a device that already exists
// is refused.
//
// The module counts in sectors of 512 bytes, whatever the block size. Such
// variables are called sectors512.
package buse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lib "github.com/asch/buse/lib/go/buse"

	"bs3/internal/device"
)

// shownPoll is the time between two looks for the block device.
const shownPoll = 20 * time.Millisecond

// ErrStopped is returned (wrapped) by Run when somebody else has stopped the
// device.
var ErrStopped = errors.New("the device was stopped by another process")

// Device is one BUSE device. Make it with New; call Run once.
type Device struct {
	vol      device.Volume
	geometry device.Geometry
	opts     Options
	sys      system
	requests requests
}

// New returns a device of vol.
func New(vol device.Volume, opts Options) *Device {
	return newDevice(vol, opts, linux())
}

func newDevice(vol device.Volume, opts Options, sys system) *Device {
	opts.fill()
	return &Device{vol: vol, geometry: vol.Geometry(), opts: opts, sys: sys}
}

// Path returns the path of the block device.
func (d *Device) Path() string { return d.sys.blockDevice(d.opts.Major) }

// Run makes the device and serves it until ctx is cancelled, and then returns nil
// if the volume has taken all that the kernel had. It stops in this order: it has
// the kernel write back what file systems and the page cache hold for the device,
// stops the device, which hands over what the module has, calls Options.Unused, and
// removes the device. That takes as long as the volume makes it wait, without a
// limit, since giving up would lose what was written. The removal waits for the
// kernel alone, and hangs for good if a flush has come too late for the module to
// answer it.
//
// If a request fails for good, because the volume has stopped or the module sent
// something malformed, Run returns an error and leaves the device behind, since
// removing it would tell its users that their requests were done. The process then
// has to end: goroutines of the library stay, though none of them uses the volume
// again.
func (d *Device) Run(ctx context.Context) error {
	if err := d.opts.Validate(d.geometry); err != nil {
		return fmt.Errorf("BUSE device %s: %w", d.Path(), err)
	}
	if err := d.sys.check(d.opts, 0); err != nil {
		return err
	}
	// What the module has acknowledged must be taken even after ctx ends.
	serving, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	d.requests.start(serving, d.vol, d.opts, d.sys.hang)

	dev, err := d.sys.create(&callbacks{requests: &d.requests}, d.library())
	if err != nil {
		return d.sys.explain(d.opts.Major, err)
	}
	if err := d.sys.complete(d.opts.Major, dev.queueCount()); err != nil {
		// The library would panic. Nothing was served yet.
		return errors.Join(err, dev.StopDevice(), dev.RemoveDevice())
	}

	var watch sync.WaitGroup
	watching, unwatch := context.WithCancel(ctx)
	watch.Go(func() { d.announce(watching) })
	defer watch.Wait()
	defer unwatch()

	ended := make(chan struct{})
	go func() {
		dev.Run()
		close(ended)
	}()
	clean, err := d.stop(ctx, dev, ended)
	if !clean {
		abandon()
		d.requests.end()
		return d.sys.left(d.opts.Major, err)
	}
	if d.opts.Unused != nil {
		d.opts.Unused()
	}
	d.opts.Log.Info().Str("device", d.Path()).Msg("removing the block device")
	if removed := dev.RemoveDevice(); removed != nil {
		err = errors.Join(err, fmt.Errorf("remove BUSE device %s: %w", d.Path(), removed))
	}
	return err
}

// stop waits for the end of ctx and then stops the device. It returns when the
// library has ended (clean), or when it will not because a request has failed or
// the device cannot be stopped.
func (d *Device) stop(ctx context.Context, dev kernelDevice, ended <-chan struct{}) (clean bool, err error) {
	select {
	case <-ended:
		return true, fmt.Errorf("BUSE device %s: %w", d.Path(), ErrStopped)
	case <-d.requests.failed:
		return false, d.requests.failure()
	case <-ctx.Done():
	}
	log := d.opts.Log.With().Str("device", d.Path()).Logger()
	if d.sys.shown(d.opts.Major) {
		log.Info().Msg("writing back what the kernel holds for the block device")
		written := make(chan error, 1)
		go func() { written <- d.sys.writeBack(d.Path()) }()
		select {
		case err := <-written:
			if err != nil {
				log.Warn().Err(err).Msg("not everything could be written back")
			}
		case <-d.requests.failed: // nothing answers the write-back
			return false, d.requests.failure()
		case <-ended:
			return true, fmt.Errorf("BUSE device %s: %w", d.Path(), ErrStopped)
		}
	}
	log.Info().Msg("stopping the block device")
	stopped := make(chan error, 1)
	go func() { stopped <- dev.StopDevice() }()
	// The module answers when it has handed over what it had, which takes as long
	// as the volume makes it wait.
	select {
	case <-d.requests.failed:
		return false, d.requests.failure()
	case err = <-stopped:
	case <-ended:
		err = <-stopped
	}
	if err != nil {
		return false, fmt.Errorf("stop BUSE device %s: %w", d.Path(), err)
	}
	select {
	case <-d.requests.failed:
		return false, d.requests.failure()
	case <-ended:
		return true, nil
	}
}

// announce sets the scheduler and calls Options.Ready when the block device has
// appeared.
func (d *Device) announce(ctx context.Context) {
	look := time.NewTicker(shownPoll)
	defer look.Stop()
	for !d.sys.shown(d.opts.Major) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
	// The library only has the kernel offer schedulers, or none. The change waits
	// for the requests under way, which end with the device at the latest, or never
	// if one of them has failed for good.
	set := make(chan error, 1)
	go func() { set <- d.sys.setScheduler(d.Path(), d.opts.Scheduler) }()
	select {
	case err := <-set:
		if err != nil {
			d.opts.Log.Warn().Err(err).Str("device", d.Path()).Msg("the I/O scheduler stays as it is")
		}
	case <-ctx.Done():
		return
	}
	if d.opts.Ready != nil {
		d.opts.Ready(d.Path())
	}
}

// library returns the options for the library.
func (d *Device) library() lib.Options {
	o, g := d.opts, d.geometry
	return lib.Options{
		Durable:        true, // see the package comment
		WriteChunkSize: o.ChunkSize,
		BlockSize:      int64(g.BlockSize),
		IOMin:          int64(g.IOMin),
		IOOpt:          int64(g.IOOpt),
		Threads:        o.Threads,
		Major:          int64(o.Major),
		WriteShmSize:   o.WriteBuffer,
		ReadShmSize:    o.ReadBuffer,
		Size:           g.Size,
		CollisionArea:  o.CollisionArea,
		QueueDepth:     int64(o.QueueDepth),
		Scheduler:      o.Scheduler,
		CPUsPerNode:    o.CPUsPerNode,
	}
}
