package bs3

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/rcache"
	"bs3/internal/bs3/reader"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/writer"
)

// Open opens the volume in the store for writing, after making it if there is
// none: it brings the map up to the end of the log, judges what is to be replayed,
// claims the next epoch, fences the writers before, and replays chunk memory. When
// it returns, the volume serves everything that was acknowledged and can still be
// there.
//
// Errors: volume.ErrRefused (nothing was changed), volume.ErrFenced (another writer
// was faster), volume.ErrStore, wlog.ErrLocked.
func Open(ctx context.Context, opts Options) (*Engine, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	o := &opening{opts: opts, log: opts.Log, nonce: layout.NewNonce(), places: new(places)}
	if opts.ReadCache > 0 {
		var err error
		if o.cache, err = rcache.New(opts.ReadCache, opts.BlockSize, o.places.where); err != nil {
			return nil, err
		}
	}
	e, err := o.open(ctx)
	if err != nil && o.owner != nil {
		err = fmt.Errorf("after the claim: %w", notRefused{err})
	}
	switch {
	case err == nil:
		return e, nil
	case e != nil:
		return nil, errors.Join(err, e.stop(ctx, false))
	}
	if o.cache != nil {
		err = errors.Join(err, o.cache.Close())
	}
	if o.files != nil {
		err = errors.Join(err, o.files.close())
	}
	return nil, err
}

// notRefused is an error of one who has claimed the volume: whatever it is, it is
// no refusal, for that changes nothing.
type notRefused struct{ err error }

func (e notRefused) Error() string { return e.err.Error() }

// Is hides volume.ErrRefused.
func (e notRefused) Is(target error) bool {
	return target != volume.ErrRefused && errors.Is(e.err, target)
}

// opening is what exists only while a volume is opened.
type opening struct {
	opts   Options
	log    zerolog.Logger
	nonce  layout.Nonce
	places *places       // what the caches ask
	cache  *rcache.Cache // nil without one
	files  *files

	store objproxy.Store // of opts, with limited patience if nothing is lost by giving up

	// As judged against the record that a claim replaces:
	writersHere map[layout.Nonce]bool // whose chunk memory and local log are ours
	others      others
	notWhole    string // why the engine is not Whole; empty: it is
	left        leftover
	found       *recovered // the log, as far as it was read
	last        layout.Writer

	owner *volume.Owner // once claimed
}

// open is the order of an open, which is what makes it safe: load, roll forward
// and judge; claim what was judged; roll forward what came since, fence, verify,
// replay. An engine that comes with an error is to be stopped.
func (o *opening) open(ctx context.Context) (e *Engine, err error) {
	if o.files, err = openFiles(&o.opts); err != nil {
		return nil, err
	}
	v, err := o.takeOver(ctx)
	if err != nil {
		return nil, err
	}
	above, err := o.lookAbove(ctx, v)
	if err != nil {
		return nil, err
	}
	e = o.engine(ctx, o.found)
	if err := o.replay(ctx, e.log, o.found.Seq); err != nil {
		return e, err
	}
	o.tellLost(v, above, e.log.Now().Seq)
	if err := o.readyLog(ctx, e, v.LocalLog); err != nil {
		return e, err
	}
	if !e.whole && o.opts.NotWhole != nil {
		if err := o.opts.NotWhole(ctx, e.owner.UUID.String()); err != nil {
			return e, err
		}
	}
	// From here on the device may be shown.
	if err := o.readyMemory(e); err != nil {
		return e, err
	}
	e.start()
	return e, nil
}

// takeOver claims the volume and reads its log, up to and with our fence. If
// nothing waits for it in chunk memory or a local log, it gives up on a store
// that does not answer. It returns the record as it was claimed.
func (o *opening) takeOver(ctx context.Context) (_ *layout.Volume, err error) {
	o.store = o.opts.Store
	if !o.files.holdRecords() {
		// A log that takes longer to read than that is no reason to give up.
		limit := o.opts.OpenFor
		var release func()
		ctx, o.store, release = objproxy.Patience(ctx, o.opts.Store, limit, fmt.Errorf("%w: no proper answer for %v", volume.ErrStore, limit))
		defer release()
		defer func() {
			if cause := context.Cause(ctx); err != nil && errors.Is(cause, volume.ErrStore) && !errors.Is(err, volume.ErrStore) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
		}()
	}
	v, err := o.claim(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.files.noteID(); err != nil {
		return nil, err
	}
	o.log.Info().Uint64("epoch", o.owner.Epoch).Stringer("volume", o.owner.UUID).Msg("claimed the volume; fencing the writers before")
	if err := o.fence(ctx, volume.Reach(v)); err != nil {
		// What we miss may have been removed by a successor.
		if _, _, own := o.owner.Read(ctx); errors.Is(own, volume.ErrFenced) {
			return nil, own
		}
		return nil, err
	}
	// The fence is stored: from here on nobody with a lower epoch can add to the
	// log. Had a higher one come meanwhile, it might not have seen our fence. Its own
	// lies above ours then, and shows that it came even if the record is lost.
	o.owner.LogFrom(func() key.Key { return o.found.Last + 1 })
	if _, _, err := o.owner.Read(ctx); err != nil {
		return nil, fmt.Errorf("after storing our fence: %w", err)
	}
	o.found.Map.AddObject(layout.ObjectInfo{Key: o.found.Last, Epoch: o.owner.Epoch, Fence: true})
	return v, nil
}

// engine puts the parts together, on the log that was found. It stores what is
// sealed, and does nothing else yet.
func (o *opening) engine(ctx context.Context, r *recovered) *Engine {
	opts := o.opts
	e := &Engine{
		opts: opts, whole: o.notWhole == "", files: o.files,
		owner: o.owner.On(opts.Store), // as patient as the volume needs it
		life:  life.New(ctx, o.log),
	}
	e.idle, e.stopIdle = context.WithCancel(e.life.Context())
	logPath := ""
	if !opts.Durable {
		logPath = opts.CachePath
	}
	c := writer.Config{
		Store: opts.Store, Owner: e.owner, Life: e.life, Log: o.log,
		BlockSize: opts.BlockSize, ChunkBlocks: opts.chunkBlocks(), Slots: opts.slots(),
		Durable: opts.Durable, LocalLog: logPath, Linger: opts.Linger, Uploaders: opts.Uploaders,
		Grew: func(g volume.Growth) { e.keeper.Grew(g) },
	}
	disk := o.openDisk()
	if o.cache != nil || disk != nil {
		c.Keep = func(loc layout.Location, blocks []uint64, stored []byte, epoch uint64, lend bool) {
			e.reader.Keep(loc, blocks, stored, epoch, lend)
		}
		c.Lend = func(loc layout.Location, blocks []uint64, stored []byte, epoch uint64, back func()) func() bool {
			return e.reader.Lend(loc, blocks, stored, epoch, back)
		}
	}
	e.log = writer.New(c, r.Recovered)
	o.places.View = e.log.View()
	e.owner.LogFrom(func() key.Key { return e.log.Now().Durable + 1 })
	e.reader = reader.New(reader.Config{
		Store: opts.Store, UUID: e.owner.UUID, Map: o.places.View, Memory: e.log, Life: e.life, Log: o.log,
		BlockSize: opts.BlockSize, Size: opts.Size, ChunkSize: opts.ChunkSize,
		Cache: o.cache, Disk: disk,
		Readahead: opts.Readahead, CacheSize: opts.ReadCache, Downloaders: opts.Downloaders,
		WholeObjects: opts.WholeObjects,
		Gathered:     func(block, blocks uint64, requests int) { e.collector.Gathered(block, blocks, requests) },
	})
	e.keeper = checkpoint.New(checkpoint.Config{
		Store: opts.Store, Owner: e.owner, Log: e.log, Logger: o.log,
		BlockSize: opts.BlockSize, Blocks: opts.blocks(),
		Interval: opts.CheckpointInterval, Skip: opts.SkipCheckpoint,
		Outcome: e.outcome,
	}, r.kept, r.base)
	var cached func(layout.Location, []byte) bool
	if o.cache != nil {
		cached = o.cache.Peek
	}
	e.collector = gc.New(gc.Config{
		Options: opts.GC, Store: opts.Store, UUID: e.owner.UUID, Log: e.log, Map: o.places.View,
		Checkpoints: e.keeper, Fetches: e.reader.Fetches(), Misses: e.reader.Misses, Cached: cached, Life: e.life, Logger: o.log,
		BlockSize: opts.BlockSize, ChunkBlocks: opts.chunkBlocks(),
		Outcome: e.outcome,
	})
	e.log.Start()
	return e
}

// places is what the caches know of the map. It has a View once there is an engine:
// before that they are empty.
type places struct{ mapproxy.View }

// where is an rcache.Where.
func (p *places) where(block uint64) layout.Location {
	if block >= p.Blocks() { // the file of the disk cache may name any
		return 0
	}
	return p.Get(block)
}

const diskCacheFile = "cache"

// openDisk opens the read cache on the disk; nil without one. Without one that
// works reads are slower, and nothing else.
func (o *opening) openDisk() *rcache.Disk {
	if o.files.cache == nil || o.opts.DiskCache <= 0 {
		return nil
	}
	log, path := o.log, filepath.Join(o.files.cache.Path(), diskCacheFile)
	disk, err := rcache.OpenDisk(path, o.owner.UUID, o.opts.BlockSize, o.opts.DiskCache, o.places.where, func(err error) {
		switch {
		case err == nil:
			log.Info().Msg("the disk of the cache answers again: the disk cache is used again")
		case errors.Is(err, rcache.ErrHangs):
			log.Warn().Msg("the disk of the cache does not answer: going on without the disk cache until it does")
		default:
			log.Error().Err(err).Msg("the disk cache has failed: going on without it")
		}
	})
	if err != nil {
		o.log.Error().Err(err).Msg("going on without the disk cache")
	}
	return disk
}

// readyLog makes the local log empty and ours, in the mode that has one, when
// nothing of what it held is needed any more, and sees to it that the volume
// record, which says recorded, says so. Without a log that works flushes wait
// for the store.
func (o *opening) readyLog(ctx context.Context, e *Engine, recorded *layout.LocalLog) error {
	f, opts := o.files, &o.opts
	if f.cache == nil {
		e.log.UseLocalLog(nil, f.failed)
		return o.recordLog(ctx, e, recorded, nil)
	}
	if opts.Durable {
		if err := o.recordLog(ctx, e, recorded, nil); err != nil {
			return err
		}
		f.closeLog()
		return f.cache.RemoveLog()
	}
	if recorded != nil && (f.local == nil || f.local.Header().Size != opts.LogSize) {
		// It is made anew, which takes a while. Who dies meanwhile leaves none, and
		// nothing is missing: the store has what the old one held.
		if err := o.recordLog(ctx, e, recorded, nil); err != nil {
			return err
		}
		recorded = nil
	}
	log, err := f.ownLog(ctx, opts.LogSize, e.owner, opts)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		o.log.Error().Err(err).Msg("the local log has failed: every flush waits for the store")
		e.log.UseLocalLog(nil, err)
		return o.recordLog(ctx, e, recorded, nil)
	}
	if f.cache.InMemory() {
		o.log.Warn().Str("directory", opts.CachePath).
			Msg("cache.path is in memory: what is flushed survives the daemon, but not the machine; after a crash of that the volume opens only with --forget-local-log")
	}
	e.log.UseLocalLog(log, nil)
	return o.recordLog(ctx, e, recorded, &layout.LocalLog{Host: opts.Host.ID, Hostname: opts.Host.Name, Path: opts.CachePath})
}

// recordLog says in the volume record where a local log may hold what the store
// does not have, if it does not say so already.
func (o *opening) recordLog(ctx context.Context, e *Engine, recorded, here *layout.LocalLog) error {
	if recorded == here || recorded != nil && here != nil && *recorded == *here {
		return nil
	}
	if err := e.owner.Change(ctx, func(v *layout.Volume) error { v.LocalLog = here; return nil }); err != nil {
		return fmt.Errorf("record where the local log is: %w", err)
	}
	return nil
}

// readyMemory makes the chunk memory empty and ours, when nothing of what it
// held is needed any more, and forgets the intents.
func (o *opening) readyMemory(e *Engine) error {
	memory, err := o.files.ownMemory(o.memoryHeader(e.owner.UUID))
	if err != nil {
		return err
	}
	e.log.AddSlots(memory.Slots())
	return o.files.dropIntents()
}

// memoryHeader is that of chunk memory of our own.
func (o *opening) memoryHeader(uuid layout.UUID) *layout.MemoryHeader {
	return &layout.MemoryHeader{
		UUID: uuid, BootID: o.opts.Host.Boot,
		BlockSize: uint32(o.opts.BlockSize), ChunkBlocks: uint32(o.opts.chunkBlocks()), Slots: uint32(o.opts.slots()),
	}
}

// progress tells who waits for the open how it gets on.
func (o *opening) progress(stage string, done, total int) {
	if o.opts.Progress != nil {
		o.opts.Progress(OpenProgress{stage, done, total})
	}
}
