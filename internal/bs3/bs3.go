package bs3

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/reader"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/writer"
	"bs3/internal/device"
)

// Engine is an open volume. It implements device.Volume, device.Fast and
// device.Allocator, and is safe for concurrent use.
type Engine struct {
	opts  Options
	owner *volume.Owner
	life  *life.Life
	whole bool // see Whole
	files *files

	log       *writer.Log
	reader    *reader.Reader
	keeper    *checkpoint.Keeper
	collector *gc.Collector

	// The background work (keeper, collector, watch, reading ahead) ends first:
	// what it still began while the volume is released would never be stored.
	idle       context.Context // ends with the life, or when the volume is being closed
	stopIdle   context.CancelFunc
	background sync.WaitGroup

	closing  sync.Once
	closeErr error
}

// Geometry implements device.Volume.
func (e *Engine) Geometry() device.Geometry {
	return device.Geometry{Size: e.opts.Size, BlockSize: e.opts.BlockSize, IOMin: e.opts.IOMin, IOOpt: e.opts.IOOpt}
}

// UUID names the volume.
func (e *Engine) UUID() layout.UUID { return e.owner.UUID }

// Epoch is the number of this writer.
func (e *Engine) Epoch() uint64 { return e.owner.Epoch }

// Whole reports whether everything that the last writer acknowledged is here:
// it ran on this machine, with this state directory, since it booted. Only then
// may a device that outlived that writer go on.
func (e *Engine) Whole() bool { return e.whole }

// Done is closed when the volume has failed for good; Err then says why.
func (e *Engine) Done() <-chan struct{} { return e.life.Done() }

// Err returns why the volume serves no more requests, or nil.
func (e *Engine) Err() error { return e.life.Err() }

// check refuses a request that is not made of whole blocks of the volume.
func (e *Engine) check(off, n int64) error { return check(off, n, e.opts.Size, e.opts.BlockSize) }

// check refuses a request that is not made of whole blocks of a volume.
func check(off, n, size int64, blockSize int) error {
	if bs := int64(blockSize); off < 0 || n < 0 || off%bs != 0 || n%bs != 0 || off > size || n > size-off {
		return fmt.Errorf("request of %d bytes at %d is not whole blocks of %d bytes in a volume of %d", n, off, bs, size)
	}
	return nil
}

// ReadAt implements device.Volume. Bytes that are in the store are waited for
// as long as ctx allows.
func (e *Engine) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := e.check(off, int64(len(p))); err != nil {
		return err
	}
	return e.reader.Read(ctx, p, off)
}

// TryReadAt implements device.Fast. It returns true when all of it is unmapped,
// in chunk memory or in the memory cache; otherwise the contents of p are
// undefined.
func (e *Engine) TryReadAt(p []byte, off int64) bool {
	return e.check(off, int64(len(p))) == nil && e.reader.TryRead(p, off)
}

// Allocation implements device.Allocator.
func (e *Engine) Allocation(_ context.Context, off, n int64) ([]device.Extent, error) {
	if err := e.check(off, n); err != nil {
		return nil, err
	}
	return e.reader.Allocation(off, n), nil
}

// WriteAt implements device.Volume. A write larger than a chunk becomes
// several, in order; any other is one record.
func (e *Engine) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := e.check(off, int64(len(p))); err != nil {
		return err
	}
	return e.log.Write(ctx, p, off)
}

// TryWriteAt implements device.Fast: false when the write has to wait for
// chunk memory.
func (e *Engine) TryWriteAt(p []byte, off int64) bool {
	return e.check(off, int64(len(p))) == nil && e.log.TryWrite(p, off)
}

// Discard implements device.Volume.
func (e *Engine) Discard(ctx context.Context, off, n int64) error { return e.zero(ctx, off, n) }

// WriteZeroes implements device.Volume.
func (e *Engine) WriteZeroes(ctx context.Context, off, n int64) error { return e.zero(ctx, off, n) }

func (e *Engine) zero(ctx context.Context, off, n int64) error {
	if err := e.check(off, n); err != nil {
		return err
	}
	return e.log.Zero(ctx, off, n)
}

// Flush implements device.Volume. In durable mode it waits for the store, in
// the mode of the local log for that, in barrier mode for nothing.
func (e *Engine) Flush(ctx context.Context) error { return e.log.Flush(ctx) }

// Checkpoint stores the map as it is now and commits it in the volume record,
// also if the log has not grown since the last one. It stops no I/O. Errors:
// those of checkpoint.Keeper.Write.
func (e *Engine) Checkpoint(ctx context.Context) error { return e.keep(ctx, e.keeper.Write) }

// Snapshot keeps the volume as it is now, with all that was acknowledged, under a
// name. It stops no I/O. Errors: those of checkpoint.Keeper.Snapshot.
func (e *Engine) Snapshot(ctx context.Context, name string) (s layout.Snapshot, err error) {
	err = e.keep(ctx, func(ctx context.Context) (err error) {
		s, err = e.keeper.Snapshot(ctx, name)
		return err
	})
	return s, err
}

// RemoveSnapshot removes the snapshot of that name. Errors: those of
// checkpoint.Keeper.RemoveSnapshot.
func (e *Engine) RemoveSnapshot(ctx context.Context, name string) error {
	return e.keep(ctx, func(ctx context.Context) error { return e.keeper.RemoveSnapshot(ctx, name) })
}

// Snapshots returns the snapshots of the volume, as they are known: others may have
// added and removed some since this writer has last looked at the record.
func (e *Engine) Snapshots() []layout.Snapshot { return e.owner.Snapshots() }

// keep calls f, which changes the volume record, behind all requests of users.
func (e *Engine) keep(ctx context.Context, f func(context.Context) error) error {
	if err := e.life.Err(); err != nil {
		return err
	}
	ctx, release := e.life.Limit(ctx)
	defer release()
	err := f(objproxy.Background(ctx))
	if errors.Is(err, volume.ErrFenced) {
		e.life.Fail(err)
	}
	return err
}

// GC compacts thinly used objects, writes the checkpoints needed, and deletes
// what is dead. One collection runs at a time; the others wait for their turn.
// Errors: those of gc.Collector.Collect.
func (e *Engine) GC(ctx context.Context) (gc.Report, error) { return e.collector.Collect(ctx) }

// PlanGC returns what GC would do now, and changes nothing; see
// gc.Collector.Plan.
func (e *Engine) PlanGC(ctx context.Context) (gc.Report, error) { return e.collector.Plan(ctx) }

// Defrag is GC, and puts all live blocks in the order of the volume first, so that
// they can be read with few requests. Errors: those of GC.
func (e *Engine) Defrag(ctx context.Context) (gc.Report, error) {
	return e.collector.CollectInOrder(ctx)
}

// PlanDefrag returns what Defrag would do now, and changes nothing; see
// gc.Collector.PlanDefrag.
func (e *Engine) PlanDefrag(ctx context.Context) (gc.DefragPlan, error) {
	return e.collector.PlanDefrag(ctx)
}

// Spread looks how the live blocks are spread over objects. It sends no request, but
// walks over the whole map. Errors: those of gc.Collector.Look.
func (e *Engine) Spread(ctx context.Context) (gc.Spread, error) { return e.collector.Look(ctx) }

// Probe returns nil when the volume has shown that it moves: that the chunk
// lock can be had, blocks can be looked up, readers of chunk memory leave, and
// writers do not wait for nothing. It does not return while the chunk lock
// cannot be had. How the store is doing does not matter. One probe runs at a
// time.
func (e *Engine) Probe(ctx context.Context) error { return e.log.Probe(ctx, e.reader.Peek) }

// outcome takes how background work went: being fenced fails the volume,
// anything else leaves what was there before in charge.
func (e *Engine) outcome(what string, err error) {
	switch {
	case err == nil || e.idle.Err() != nil:
	case errors.Is(err, volume.ErrFenced):
		e.life.Fail(err)
	default:
		e.opts.Log.Error().Err(err).Msg(what + " failed; what was there before stays in charge")
	}
}

// watchEvery is how often a writer that writes makes sure that nobody has taken
// over, and that the record is there. Correctness needs neither: it ends a
// takeover sooner, and a time in which nobody else could open the volume. A
// writer that does not write sends no requests.
const watchEvery = 10 * time.Second

// watch reads the volume record now and then while the log grows. No flush
// waits for it.
func (e *Engine) watch(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var last uint64
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		seq, _ := e.log.Activity()
		if seq == last {
			continue
		}
		last = seq
		_, _, err := e.owner.Read(ctx)
		e.outcome("reading the volume record", err)
	}
}

// start begins the background work.
func (e *Engine) start() {
	for _, work := range []func(context.Context){e.keeper.Run, e.keeper.RunSweeps, e.collector.Run, e.watch, e.reader.Run} {
		e.background.Go(func() { work(e.idle) })
	}
}

// Close stores everything that was acknowledged, in every mode, writes a
// checkpoint, and releases the volume. The transport must have stopped. It
// waits for the store for as long as ctx allows, but not for deletes; what it
// could not store stays in chunk memory for the next open. On a failed volume it only cleans up.
// Every later call returns what the first did. Errors: why the volume failed
// (device.ErrStopped), volume.ErrFenced, that of ctx, those of the store. It is
// safe for concurrent use.
func (e *Engine) Close(ctx context.Context) error {
	e.closing.Do(func() { e.closeErr = e.close(ctx) })
	return e.closeErr
}

func (e *Engine) close(ctx context.Context) error {
	e.stopIdle()
	e.background.Wait()
	err := e.life.Err()
	if err == nil {
		err = e.release(ctx)
		if failed := e.life.Err(); err != nil && failed != nil {
			err = failed // what stopped it says more than what it interrupted
		}
		if err != nil {
			err = notRefused{err}
		}
	}
	return errors.Join(err, e.stop(ctx, err == nil))
}

// release brings the volume to rest in the store.
func (e *Engine) release(ctx context.Context) error {
	ctx, release := e.life.Limit(ctx)
	defer release()
	if err := e.log.FlushToStore(ctx); err != nil {
		return fmt.Errorf("flush at close: %w", err)
	}
	if err := e.keeper.WriteLast(ctx); err != nil {
		return fmt.Errorf("checkpoint at close: %w", err)
	}
	if err := e.owner.Change(ctx, func(v *layout.Volume) error { v.Writer.Released, v.LocalLog = true, nil; return nil }); err != nil {
		return fmt.Errorf("release the volume: %w", err)
	}
	e.sweep(ctx)
	return nil
}

// sweepAtClose bounds the time for which a close tries to remove old checkpoints.
const sweepAtClose = 2 * time.Second

// sweep removes the checkpoints that the last one has replaced, if the store does
// that at once. What it leaves, the next writer's first checkpoint takes along.
func (e *Engine) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepAtClose)
	defer cancel()
	if err := e.keeper.Sweep(ctx); err != nil {
		e.opts.Log.Warn().Err(err).Msg("old checkpoints were not removed: the next writer will try again")
	}
}

// stop ends the life of the volume, and closes what is open. If it was not clean
// the chunk memory stays mapped where a request that was given up may still read
// it; the process is about to end then.
func (e *Engine) stop(ctx context.Context, clean bool) error {
	e.stopIdle()
	e.life.End()
	e.log.Close()
	_ = e.log.Gone(context.WithoutCancel(ctx)) // a Probe that had begun
	if clean {
		e.log.Drained()
		e.files.disownLog(e.owner.UUID, e.opts.BlockSize)
	}
	if e.log.Reading() && !clean {
		e.files.memory = nil
	}
	return errors.Join(e.reader.Close(), e.files.close())
}
