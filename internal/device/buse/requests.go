package buse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/device"
)

// requests serves the calls of the library.
//
// A request cannot be refused. If the callback of a failed request returned, a
// chunk that is in no store would count as written and its flush as done, or a
// buffer as what was read. So what the volume refuses is tried again and again: a
// missing object may be restored, and the rest of the device works meanwhile.
//
// A request fails for good when the volume has stopped or its chunk is damaged.
// Its callback then stays where it is as long as the process lives. The first such
// failure makes Run return its error, so that the daemon says why and ends; to its
// users the device is a disk whose cable was pulled. The module is not told to
// stop the device: it would wait for these requests in a system call that no
// signal ends.
type requests struct {
	log      zerolog.Logger
	errLog   zerolog.Logger // for what would be logged again and again
	hang     func()         // does not return
	vol      device.Volume
	geometry device.Geometry
	format   format
	ctx      context.Context
	newest   *sequences
	failed   chan struct{} // closed by the first failure

	mu     sync.Mutex
	err    error // the first failure
	active int   // requests that may use the volume
	closed bool  // no more requests may begin
	idle   chan struct{}
}

// start prepares r for a new start of a device. Its requests end with ctx.
func (r *requests) start(ctx context.Context, vol device.Volume, opts Options, hang func()) {
	r.geometry = vol.Geometry()
	r.log, r.hang = opts.Log, hang
	r.errLog = opts.Log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Minute})
	r.ctx, r.vol = ctx, vol
	r.format = newFormat(r.geometry, opts.CollisionArea)
	r.newest = newSequences(r.format)
	r.failed, r.idle = make(chan struct{}), make(chan struct{})
}

// fail records a failure; the first counts.
func (r *requests) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.err = err
	close(r.failed)
	r.log.Error().Err(err).Msg("a BUSE request failed for good and cannot be refused: giving up the device, which hangs")
}

// failure returns the first failure, or nil.
func (r *requests) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// end returns when no request uses the volume and none will.
func (r *requests) end() {
	r.mu.Lock()
	r.closed = true
	if r.active == 0 {
		close(r.idle)
	}
	r.mu.Unlock()
	<-r.idle
}

// begin counts a request if it may still use the volume, and reports whether it may.
func (r *requests) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.active++
	}
	return !r.closed
}

// done ends the count of a request.
func (r *requests) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active--
	if r.closed && r.active == 0 {
		close(r.idle)
	}
}

// do returns only when f has succeeded.
func (r *requests) do(f func() error) {
	if !r.begin() {
		r.hang()
	}
	err := f()
	if err != nil {
		r.fail(err)
	}
	r.done()
	if err != nil {
		r.hang()
	}
}

// Pauses between tries of what the volume refuses; they double.
const (
	firstRetry = 100 * time.Millisecond
	mostRetry  = 10 * time.Second
)

// insist repeats f until it succeeds, the volume has stopped, or r ends.
func (r *requests) insist(f func() error) error {
	for pause := firstRetry; ; pause = min(2*pause, mostRetry) {
		err := f()
		if err == nil || errors.Is(err, device.ErrStopped) || r.ctx.Err() != nil {
			return err
		}
		r.errLog.Error().Err(err).Dur("again_in", pause).Msg("a BUSE request failed and cannot be refused: trying again")
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-r.ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// write writes a chunk of n records and flushes.
func (r *requests) write(n int64, chunk []byte) error {
	records, err := r.format.parse(n, chunk)
	if err != nil {
		return err
	}
	for _, rec := range records {
		if err := r.take(rec); err != nil {
			return fmt.Errorf("%d blocks from %d: %w", rec.blocks, rec.first, err)
		}
	}
	if err := r.insist(func() error { return r.vol.Flush(r.ctx) }); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// take passes what is new in rec to the volume.
func (r *requests) take(rec record) error {
	a, err := r.newest.enter(r.ctx, rec.first)
	if err != nil {
		return err
	}
	defer a.leave()
	base := rec.first - rec.first%r.format.areaBlocks
	i, end := rec.first-base, rec.first-base+rec.blocks
	for i < end {
		skip, n := a.newer(i, end, rec.number)
		i += skip
		if n == 0 {
			break
		}
		if err := r.apply(rec, base+i, n); err != nil {
			return err
		}
		a.note(i, i+n, rec.number)
		i += n
	}
	return nil
}

// apply does what rec asks for to n of its blocks, from first.
func (r *requests) apply(rec record, first, n int64) error {
	bs := r.format.blockSize
	off, length := first*bs, n*bs
	drop := r.vol.Discard
	switch rec.op {
	case opWrite:
		at := (first - rec.first) * bs
		return r.insist(func() error { return r.vol.WriteAt(r.ctx, rec.data[at:at+length], off) })
	case opWriteZeroes:
		drop = r.vol.WriteZeroes
	}
	return r.geometry.Pieces(off, length, func(off, n int64) error {
		return r.insist(func() error { return drop(r.ctx, off, n) })
	})
}

// read reads blocks into p, from where the module takes them.
func (r *requests) read(first, blocks int64, p []byte) error {
	bs := r.format.blockSize
	if first < 0 || blocks <= 0 || first > r.format.blocks || blocks > r.format.blocks-first || int64(len(p)) < blocks*bs {
		return fmt.Errorf("read of %d blocks from %d into %d bytes, of a device of %d blocks", blocks, first, len(p), r.format.blocks)
	}
	err := r.insist(func() error { return r.vol.ReadAt(r.ctx, p[:blocks*bs], first*bs) })
	if err != nil {
		return fmt.Errorf("read %d blocks from %d: %w", blocks, first, err)
	}
	return nil
}

// callbacks is what the library calls, from many goroutines at a time.
type callbacks struct{ requests *requests }

// BuseWrite writes a chunk and flushes.
func (c *callbacks) BuseWrite(writes int64, chunk []byte) error {
	c.requests.do(func() error {
		if err := c.requests.write(writes, chunk); err != nil {
			return fmt.Errorf("chunk of %d writes: %w", writes, err)
		}
		return nil
	})
	return nil
}

// BuseRead reads into chunk. Here the library counts in blocks.
func (c *callbacks) BuseRead(sector, length int64, chunk []byte) error {
	c.requests.do(func() error { return c.requests.read(sector, length, chunk) })
	return nil
}

// BusePreRun is called before the queues are opened, which is when the module
// shows the block device.
func (c *callbacks) BusePreRun() {
	c.requests.log.Debug().Msg("opening the queues of the BUSE device")
}

// BusePostRemove is called when the device is gone.
func (c *callbacks) BusePostRemove() {
	c.requests.log.Debug().Msg("the BUSE device was removed")
}
