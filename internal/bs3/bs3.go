package bs3

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/rcache"
	"bs3/internal/bs3/wlog"
	"bs3/internal/device"
)

// What Open, and the requests of a volume, may answer. They come wrapped.
var (
	// ErrFenced: another writer has taken the volume over. This one is done for
	// good; what it acknowledged and did not store is lost to the volume.
	ErrFenced = errors.New("fenced")
	// ErrRefused: the volume, or what lies where it should, does not fit what
	// was asked for. Nothing was changed; a person has to decide.
	ErrRefused = errors.New("refused")
	// ErrStore: the store could not be used within the time that Open gives it.
	ErrStore = errors.New("the store can not be used")
	// ErrNoVolume: there is no volume record.
	ErrNoVolume = errors.New("no volume here")
)

// Options are what Open needs to know.
type Options struct {
	// Store keeps the volume. It must retry what may succeed later, for as long
	// as ctx lasts (objproxy.NewRetry).
	Store objproxy.Store
	Log   zerolog.Logger
	Host  Host

	Size      int64 // bytes, a multiple of BlockSize
	BlockSize int   // bytes, 512 or 4096
	ChunkSize int   // bytes, a multiple of BlockSize
	IOMin     int   // bytes, for device.Geometry
	IOOpt     int   // bytes, for device.Geometry

	Durable bool          // a flush waits for the store
	Linger  time.Duration // how long a chunk stays open after its first write; 0 = until it is full or flushed
	Memory  int64         // bytes of chunk memory

	Uploaders   int // objects uploaded at a time
	Downloaders int // requests for objects that Store makes at a time, of which half may read ahead; 0 = enough

	ReadCache int64 // bytes of memory for what was read or written lately; 0 = none
	Readahead int64 // bytes, the most that is read ahead of a sequential stream into the read cache; 0 = nothing

	StatePath string // directory for the chunk memory; empty = on the heap, it dies with the process

	// CachePath is a directory on a disk of this machine; empty = none. Unless
	// Durable is set it keeps the local log, and a flush waits for that.
	CachePath string
	LogSize   int64 // bytes of the local log
	DiskCache int64 // bytes there for what was read or written lately; 0 = none
	// ForgetLocalLog opens a volume also if a local log may hold what was flushed
	// and that log is not here, or damaged: it is lost then.
	ForgetLocalLog bool
	openLog        wlog.OpenLogFile // in tests

	CheckpointInterval time.Duration // 0 = none by time
	SkipCheckpoint     bool          // write none
	GC                 GCOptions

	// Takeover opens a volume that a writer on another host did not release. That
	// writer, if it lives, is fenced; what it acknowledged and did not store is lost.
	Takeover bool

	// UnsafeNoFencing makes a volume also in a store without conditional puts:
	// then the administrator alone keeps a second writer away.
	UnsafeNoFencing bool

	// NotWhole, if set, is called by Open with the UUID of a volume that is not
	// Whole, before anything is kept by which a later open would find it so. It
	// takes away the devices that outlived a writer; an error ends the open.
	NotWhole func(ctx context.Context, volume string) error

	// Progress, if set, is told how Open gets on, from its goroutine.
	Progress func(OpenProgress)

	// OpenFor bounds how long Open asks a store that does not answer while no
	// chunk memory waits for it; 0 = five minutes.
	OpenFor time.Duration
}

// heapChunks bounds the chunks built outside the pool.
const heapChunks = 8

// Engine is an open volume. It implements device.Volume, device.Fast and
// device.Allocator, and is safe for concurrent use.
type Engine struct {
	opts        Options
	log         zerolog.Logger
	store       objproxy.Store
	blockSize   int
	chunkBlocks int

	uuid  layout.UUID
	epoch uint64
	nonce layout.Nonce
	whole bool // see Whole

	writersHere map[layout.Nonce]bool // whose chunk memory and local log are ours; while opening

	cacheDir *wlog.Dir // nil without a cache path
	leftLog  *wlog.Log // the local log that was found, or made; while opening and closing

	dir     *wlog.Dir    // nil without a state path
	memory  *wlog.Memory // the pool
	maps    *mapproxy.Proxy
	eras    eras // readers of chunk memory
	misses  atomic.Uint64
	flights flights
	ahead   *readahead // nil if nothing is read ahead
	// fetches are readers from look-up to the last byte from the store: what they
	// may still ask for is not deleted.
	fetches eras
	ring    ring
	cache   *rcache.Cache // nil without one
	disk    *rcache.Disk  // nil without one

	// mu is the chunk lock; see the package comment. What follows is under it.
	mu              sync.Mutex
	cur             *chunk // the open chunk, or nil
	keys            key.Allocator
	seq             uint64 // of the next record
	free            []*wlog.Slot
	writers         queue
	probed          chan struct{} // who was first of the writers at the last Probe, and could go on
	heapFree        int           // chunks that may still be built on the heap
	heapWait        chan struct{} // closed when one more may; nil if nobody waits
	durable         key.Key
	progress        chan struct{} // closed when durable moves on, and replaced
	closed          error         // why nothing is taken any more; nil while serving
	sinceCheckpoint logLength
	checkpointTimed bool // the checkpointer looks by itself whether one is due
	flushes         gathering
	logging         localLog
	written         int64    // bytes of data that were written, see Status
	collected       GCReport // of all collections

	inMemory sync.WaitGroup // chunks whose slots are in use
	bodies   atomic.Int64   // readers of uploads that are not closed
	uploads  *uploads
	changing chan struct{} // holds one token while the volume record is changed

	gcRequests chan chan gcAnswer
	unmovable  map[key.Key]bool // objects that could not be compacted; the collector's own

	checkpointing  chan struct{} // holds one token while a checkpoint is written
	checkpointWish chan struct{} // wakes the checkpointer
	// Under checkpointing:
	kept     []kept   // the checkpoints the record names and that verify, oldest first
	leaves   []leafAt // where the last of them has its leaves
	leavesAt uint32   // the freeze it was made from; 0 = it was loaded
	counter  uint32   // of checkpoint and pack names in this epoch

	ctx    context.Context // ends when the engine stops or fails
	cancel context.CancelCauseFunc
	failed chan struct{} // closed when the engine failed or stopped
	wg     sync.WaitGroup

	// The background work (checkpointer, collector, watch) ends first: what it
	// still began while the volume is released would never be stored.
	idle     context.Context // ends with ctx, or when the volume is being closed
	stopIdle context.CancelFunc
	idleWG   sync.WaitGroup
}

// logLength is how much log roll-forward has to read.
type logLength struct {
	objects int
	bytes   int64
}

// Geometry implements device.Volume.
func (e *Engine) Geometry() device.Geometry {
	return device.Geometry{Size: e.opts.Size, BlockSize: e.blockSize, IOMin: e.opts.IOMin, IOOpt: e.opts.IOOpt}
}

// UUID names the volume.
func (e *Engine) UUID() layout.UUID { return e.uuid }

// Epoch is the number of this writer.
func (e *Engine) Epoch() uint64 { return e.epoch }

// Whole says whether everything that the last writer acknowledged is here: it
// ran on this machine, with this state directory, since it booted. Only then
// may a device that outlived that writer go on.
func (e *Engine) Whole() bool { return e.whole }

// Done is closed when the volume has failed for good; Err then says why.
func (e *Engine) Done() <-chan struct{} { return e.failed }

// Err is why the volume serves no more requests, or nil.
func (e *Engine) Err() error { return e.stopped() }

func (e *Engine) stopped() error {
	select {
	case <-e.failed:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.closed
	default:
		return nil
	}
}

// fail stops the volume for good: every request, waiting or to come, gets err.
func (e *Engine) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed != nil {
		return
	}
	e.closed = fmt.Errorf("%w: %w", device.ErrStopped, err)
	e.log.Error().Err(err).Msg("the volume has failed")
	close(e.failed)
	e.cancel(e.closed)
}

// watchEvery is how often a writer that writes makes sure that nobody has taken
// over. Correctness does not need it: it only ends a takeover sooner.
const watchEvery = 10 * time.Second

// watch reads the volume record now and then while the log grows.
func (e *Engine) watch() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var last uint64
	for {
		select {
		case <-t.C:
		case <-e.idle.Done():
			return
		}
		e.mu.Lock()
		seq := e.seq
		e.mu.Unlock()
		if seq == last {
			continue
		}
		last = seq
		_, _, err := e.ownVolume(e.idle)
		e.background("reading the volume record", err)
	}
}

// check refuses a request that is not made of whole blocks of the volume.
func (e *Engine) check(off, n int64) error {
	if bs := int64(e.blockSize); off < 0 || n < 0 || off%bs != 0 || n%bs != 0 || off > e.opts.Size || n > e.opts.Size-off {
		return fmt.Errorf("request of %d bytes at %d is not whole blocks of %d bytes in a volume of %d", n, off, e.blockSize, e.opts.Size)
	}
	return nil
}

// whileServing gives a ctx that also ends when the engine does.
func (e *Engine) whileServing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(context.Cause(e.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// Close stores everything that was acknowledged, in every mode, writes a
// checkpoint, and releases the volume. The transport must have stopped. It
// waits for the store for as long as ctx allows; what it could not store stays
// in chunk memory for the next open. On a failed volume it only cleans up.
func (e *Engine) Close(ctx context.Context) error {
	e.stopIdle()
	e.idleWG.Wait()
	err := e.stopped()
	if err == nil {
		err = e.release(ctx)
		if failed := e.stopped(); err != nil && failed != nil {
			err = failed // what stopped it says more than what it interrupted
		}
	}
	e.mu.Lock()
	if e.closed == nil {
		e.closed = fmt.Errorf("%w: closed", device.ErrStopped)
		close(e.failed)
	}
	if e.cur != nil {
		e.cur.stopTimers()
	}
	e.mu.Unlock()
	e.cancel(device.ErrStopped)
	e.uploads.close()
	e.wg.Wait()
	_ = e.eras.gone(context.WithoutCancel(ctx)) // a Probe that had begun
	return errors.Join(err, e.closeFiles(err == nil))
}

// release brings the volume to rest in the store.
func (e *Engine) release(ctx context.Context) error {
	ctx, cancel := e.whileServing(ctx)
	defer cancel()
	if err := e.flushToStore(ctx); err != nil {
		return fmt.Errorf("flush at close: %w", err)
	}
	if err := e.checkpointIfLonger(ctx); err != nil {
		return fmt.Errorf("checkpoint at close: %w", err)
	}
	if _, err := e.changeVolume(ctx, func(v *layout.Volume) { v.Writer.Released, v.LocalLog = true, nil }); err != nil {
		return fmt.Errorf("release the volume: %w", err)
	}
	return nil
}

// closeFiles unmaps what is mapped and gives the state directory back. After a
// stop that was not clean the chunk memory stays mapped if a request that was
// given up may still read it; the process is about to end then.
func (e *Engine) closeFiles(clean bool) error {
	var err error
	if clean {
		e.inMemory.Wait()
	}
	if e.memory != nil && (clean || e.bodies.Load() == 0) {
		err = e.memory.Close()
	}
	if e.cache != nil {
		err = errors.Join(err, e.cache.Close())
	}
	if e.disk != nil {
		err = errors.Join(err, e.disk.Close())
	}
	if e.leftLog != nil {
		if clean {
			// Only so that nobody takes it for something that was lost.
			if err := e.leftLog.Own(e.uuid, layout.Nonce{}, e.blockSize); err != nil {
				e.log.Warn().Err(err).Msg("the local log, of which nothing is needed, can not be marked as such")
			}
		}
		err = errors.Join(err, e.leftLog.Close())
	}
	for _, d := range e.dirs() {
		err = errors.Join(err, d.Close())
	}
	return err
}
