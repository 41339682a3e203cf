package bs3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/rcache"
	"bs3/internal/bs3/wlog"
)

// openFor is how long an open asks a store that does not answer.
const openFor = 5 * time.Minute

// Open opens the volume in the store for writing, after making it if there is
// none: it claims the next epoch, brings the map up to the end of the log,
// fences the writers before, and replays chunk memory. When it returns, the
// volume serves everything that was acknowledged and can still be there.
//
// Errors: ErrRefused, ErrFenced (another writer was faster), ErrStore, wlog.ErrLocked.
func Open(ctx context.Context, opts Options) (*Engine, error) {
	e := &Engine{
		opts: opts, log: opts.Log, store: opts.Store,
		blockSize: opts.BlockSize, chunkBlocks: opts.ChunkSize / opts.BlockSize,
		nonce:          layout.NewNonce(),
		heapFree:       heapChunks,
		progress:       make(chan struct{}),
		uploads:        newUploads(),
		gcRequests:     make(chan chan gcAnswer),
		unmovable:      make(map[key.Key]bool),
		changing:       make(chan struct{}, 1),
		checkpointing:  make(chan struct{}, 1),
		checkpointWish: make(chan struct{}, 1),
		failed:         make(chan struct{}),
	}
	if opts.UnsafeNoFencing {
		e.opts.Store = unfenced{opts.Store}
		e.store = e.opts.Store
	}
	if e.opts.GC.Step <= 0 {
		e.opts.GC.Step = 1024
	}
	if n := e.slots(); n < 2 || n > layout.MaxSlots {
		return nil, fmt.Errorf("%w: %d bytes of chunk memory hold %d chunks of %d bytes, not 2 to %d", ErrRefused, opts.Memory, n, opts.ChunkSize, layout.MaxSlots)
	}
	if opts.CachePath != "" && !opts.Durable && opts.LogSize < layout.LogAlign {
		return nil, fmt.Errorf("%w: a local log of %d bytes", ErrRefused, opts.LogSize)
	}
	e.maps = mapproxy.New(uint64(opts.Size) / uint64(opts.BlockSize))
	if opts.ReadCache > 0 {
		var err error
		if e.cache, err = rcache.New(opts.ReadCache, opts.BlockSize); err != nil {
			return nil, err
		}
	}
	if e.cache != nil && opts.Readahead > 0 {
		e.ahead = newReadahead(opts.Downloaders)
	}
	e.ring = newRing(e.slots() + heapChunks)
	e.ctx, e.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	e.idle, e.stopIdle = context.WithCancel(e.ctx)
	if err := e.open(ctx); err != nil {
		e.cancel(err)
		e.uploads.close()
		e.wg.Wait()
		return nil, errors.Join(err, e.closeFiles(false))
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context) error {
	if err := e.openState(); err != nil {
		return err
	}
	if err := e.openCache(); err != nil {
		return err
	}
	v, err := e.takeOver(ctx)
	if err != nil {
		return err
	}
	e.openDisk()
	for range e.opts.Uploaders {
		e.wg.Go(e.uploader)
	}
	if err := e.replay(ctx); err != nil {
		return err
	}
	if err := e.readyLog(ctx, v.LocalLog); err != nil {
		return err
	}
	if !e.whole && e.opts.NotWhole != nil {
		if err := e.opts.NotWhole(ctx, e.uuid.String()); err != nil {
			return err
		}
	}
	if err := e.readyState(); err != nil {
		return err
	}
	e.idleWG.Go(e.checkpointer)
	e.idleWG.Go(e.collector)
	e.idleWG.Go(e.watch)
	if e.ahead != nil {
		e.idleWG.Go(e.aheadReader)
	}
	return nil
}

// takeOver claims the volume and reads its log, up to and with our fence. If
// nothing waits for it in chunk memory or a local log, it gives up on a store
// that does not answer. It returns the record as it was claimed.
func (e *Engine) takeOver(ctx context.Context) (v *layout.Volume, err error) {
	if !e.holdsRecords() {
		var end func()
		ctx, end = e.limitPatience(ctx)
		defer end()
		defer func() {
			if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrStore) && !errors.Is(err, ErrStore) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
		}()
	}
	v, err = e.claim(ctx)
	if err != nil {
		return nil, err
	}
	e.log.Info().Uint64("epoch", e.epoch).Stringer("volume", e.uuid).Msg("claimed the volume; reading the log")
	e.opening("reading the checkpoint", 0, 0)
	fence, err := e.readLog(ctx, v)
	if err != nil {
		// What we miss may have been removed by a successor.
		if _, _, own := e.ownVolume(ctx); errors.Is(own, ErrFenced) {
			return nil, own
		}
		return nil, err
	}
	e.maps.AddObject(layout.ObjectInfo{Key: fence, Epoch: e.epoch, Fence: true})
	e.durable = fence
	e.keys = key.NewAllocator(fence + 1)
	return v, nil
}

// readLog brings the map up to the end of the log and puts our fence there,
// whose key it returns.
func (e *Engine) readLog(ctx context.Context, v *layout.Volume) (key.Key, error) {
	last, err := e.loadCheckpoint(ctx, v)
	if err != nil {
		return 0, err
	}
	fence, err := e.rollForward(ctx, last, reach(v))
	if err != nil {
		return 0, err
	}
	// The fence is stored: from here on nobody with a lower epoch can add to the
	// log. Had a higher one come meanwhile, it might not have seen our fence.
	if _, _, err := e.ownVolume(ctx); err != nil {
		return 0, fmt.Errorf("after storing our fence: %w", err)
	}
	return fence, nil
}

// slots is how many chunks the configured memory holds.
func (e *Engine) slots() int { return int(e.opts.Memory / int64(e.opts.ChunkSize)) }

// openState locks the state directory and opens the chunk memory that an
// earlier daemon left there, if there is any.
func (e *Engine) openState() (err error) {
	if e.opts.StatePath == "" {
		return nil
	}
	if e.dir, err = wlog.LockDir(e.opts.StatePath); err != nil {
		return err
	}
	if e.memory, err = e.dir.OpenMemory(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w; move the file away to go on without what it may hold", ErrRefused, err)
	}
	return nil
}

// holdsRecords says whether chunk memory or the local log may hold what the
// store has not.
func (e *Engine) holdsRecords() bool { return e.memoryHolds() || e.logHolds() }

func (e *Engine) memoryHolds() bool {
	if e.memory == nil {
		return false
	}
	for _, s := range e.memory.Slots() {
		if s.Count() > 0 {
			return true
		}
	}
	return false
}

// sameBoot says whether the chunk memory was written under the kernel that
// runs now: then every byte of it is as it was stored.
func (e *Engine) sameBoot() bool {
	return e.memory != nil && e.memory.Header().BootID == e.opts.Host.Boot
}

// readyState makes the chunk memory empty and ours, when nothing of what it
// held is needed any more, and forgets the intents: from here on the device
// may be shown.
func (e *Engine) readyState() error {
	want := &layout.MemoryHeader{UUID: e.uuid, BootID: e.opts.Host.Boot, BlockSize: uint32(e.blockSize), ChunkBlocks: uint32(e.chunkBlocks), Slots: uint32(e.slots())}
	switch {
	case e.dir == nil:
		e.memory = wlog.NewHeapMemory(want)
	case e.memory == nil || *e.memory.Header() != *want:
		if e.memory != nil {
			if err := e.memory.Close(); err != nil {
				return err
			}
		}
		var err error
		if e.memory, err = e.dir.CreateMemory(want); err != nil {
			return err
		}
	}
	if err := e.memory.Lock(); err != nil {
		e.log.Warn().Err(err).Msg("chunk memory may be swapped out; if memory runs short while somebody writes to the device, both can come to a halt")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.memory.Slots() {
		s.Clear()
		e.free = append(e.free, s)
	}
	for _, d := range e.dirs() {
		if err := d.DropIntents(); err != nil {
			return err
		}
	}
	return nil
}

// claim takes the next epoch of the volume, making the volume first if there
// is none, and returns the record as claimed. Each try judges chunk memory and
// local log against the very record that it replaces.
func (e *Engine) claim(ctx context.Context) (*layout.Volume, error) {
	var denied denials
	for {
		v, version, err := readVolume(ctx, e.store)
		if errors.Is(err, objproxy.ErrNotFound) {
			if err := e.create(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if v.Writer.Nonce == e.nonce { // the answer to our claim was lost
			e.uuid, e.epoch = v.UUID, v.Epoch
			return v, nil
		}
		if err := e.admit(v); err != nil {
			return nil, err
		}
		if err := e.judge(v); err != nil {
			return nil, err
		}
		if e.whole, err = e.isWhole(v); err != nil {
			return nil, err
		}
		for _, d := range e.dirs() {
			if err := d.AddIntent(wlog.Intent{Nonce: e.nonce, Replaces: v.Writer.Nonce, Whole: e.whole}); err != nil {
				if d != e.cacheDir || e.logHolds() {
					return nil, err
				}
				e.goWithoutCache(err)
			}
		}
		v.Epoch++
		v.Generation++
		v.ChangeID = e.nonce.String()
		v.Writer = layout.Writer{Host: e.opts.Host.ID, Hostname: e.opts.Host.Name, StatePath: e.opts.StatePath, PID: os.Getpid(), Nonce: e.nonce, Since: time.Now()}
		b, err := layout.EncodeVolume(v)
		if err != nil {
			return nil, fmt.Errorf("claim the volume: %w", err)
		}
		_, err = e.store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfVersion(version))
		if err == nil {
			e.uuid, e.epoch = v.UUID, v.Epoch
			return v, nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return nil, fmt.Errorf("claim the volume: %w", err)
		}
		if err := e.again(ctx, &denied, layout.VolumeName); err != nil {
			return nil, err
		}
	}
}

// create stores the record of a new volume, unless something of a volume lies
// here without one.
func (e *Engine) create(ctx context.Context) error {
	var held string
	switch {
	case e.memoryHolds():
		held = fmt.Sprintf("chunk memory %s holds writes of volume %s", e.memory.Path(), e.memory.Header().UUID)
	case e.holdsRecords():
		held = fmt.Sprintf("local log %s holds writes of volume %s", e.leftLog.Path(), e.leftLog.Header().UUID)
	}
	if held != "" {
		return fmt.Errorf("%w: %s that may not be stored, but there is no volume in the store: use the right store, or move the file away", ErrRefused, held)
	}
	if err := e.refuseLeftovers(ctx); err != nil {
		if _, _, again := readVolume(ctx, e.store); again == nil {
			return nil // somebody made the volume while we looked
		}
		return err
	}
	if err := e.probe(ctx); err != nil {
		return err
	}
	v := &layout.Volume{
		UUID: layout.NewUUID(), Generation: 1, Created: time.Now(),
		BlockSize: uint32(e.blockSize), ChunkSize: uint32(e.opts.ChunkSize), Size: e.opts.Size, LargestSize: e.opts.Size,
		Writer: layout.Writer{Released: true},
	}
	b, err := layout.EncodeVolume(v)
	if err != nil {
		return fmt.Errorf("make a volume: %w", err)
	}
	_, err = e.store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfAbsent())
	if err != nil && !errors.Is(err, objproxy.ErrExists) { // whoever made it, it is judged like any other
		return fmt.Errorf("make a volume: %w", err)
	}
	if err == nil {
		e.log.Info().Stringer("volume", v.UUID).Int64("size", v.Size).Msg("made a new volume")
	}
	return nil
}

// probe makes sure that conditional puts work: they alone keep two writers of
// one volume apart.
func (e *Engine) probe(ctx context.Context) error {
	err := objproxy.Probe(ctx, e.store, e.nonce.String())
	switch {
	case errors.Is(err, objproxy.ErrNoConditionalPut) && e.opts.UnsafeNoFencing:
		e.log.Warn().Err(err).Msg("nothing will keep a second writer from destroying this volume")
		return nil
	case errors.Is(err, objproxy.ErrNoConditionalPut):
		return fmt.Errorf("%w: %w; a second writer could destroy the volume", ErrRefused, err)
	}
	return err
}

// unfenced is a store whose conditions are left out where it refuses to have
// any, as some do instead of ignoring them.
type unfenced struct{ objproxy.Store }

func (u unfenced) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	v, err := u.Store.Put(ctx, name, body, cond)
	if errors.Is(err, errors.ErrUnsupported) {
		return u.Store.Put(ctx, name, body, objproxy.Condition{})
	}
	return v, err
}

// refuseLeftovers looks for names of a volume whose record is gone.
func (e *Engine) refuseLeftovers(ctx context.Context) error {
	return e.list(ctx, "", func(names []string) error {
		for _, n := range names {
			if isVolumePart(n) {
				return fmt.Errorf("%w: there is no volume record, but %s of some volume is there: choose another prefix, or bring the record back", ErrRefused, n)
			}
		}
		return nil
	})
}

func isVolumePart(name string) bool {
	_, notObject := key.Parse(name)
	_, ok := epochOf(name)
	return ok || notObject == nil
}

// admit refuses a volume that is not what was asked for, or that another host
// may still be writing.
func (e *Engine) admit(v *layout.Volume) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: volume %s "+format, append([]any{ErrRefused, v.UUID}, args...)...)
	}
	switch w := v.Writer; {
	case v.Deleted:
		return refuse("was deleted")
	case int(v.BlockSize) != e.blockSize:
		return refuse("has blocks of %d bytes, the configuration says %d (block_size)", v.BlockSize, e.blockSize)
	case int(v.ChunkSize) != e.opts.ChunkSize:
		return refuse("has chunks of %d bytes, the configuration says %d (write.chunk_size)", v.ChunkSize, e.opts.ChunkSize)
	case v.Size != e.opts.Size:
		return refuse("has %d bytes, the configuration says %d (size)", v.Size, e.opts.Size)
	case !w.Released && !e.opts.Takeover && (w.Host != e.opts.Host.ID || w.StatePath != e.opts.StatePath):
		return refuse("is in use by host %s (machine %s, state path %s, pid %d) since %s and was not released; stop that daemon first, or take the volume over",
			w.Hostname, w.Host, w.StatePath, w.PID, w.Since.Format(time.RFC3339))
	case e.opts.SkipCheckpoint && len(v.Checkpoints) > 0:
		return refuse("has checkpoints; without them its log may be gone, so skip_checkpoint can not be used on it")
	}
	return nil
}

// isWhole says whether chunk memory is that of the writer that v names: it ran
// here, since the machine booted. Where v names an open of ours that never
// served, what that one found counts.
func (e *Engine) isWhole(v *layout.Volume) (bool, error) {
	if e.memory == nil || !e.sameBoot() {
		return false, nil
	}
	failed, ok, err := e.dir.Intent(v.Writer.Nonce)
	if err != nil || ok {
		return failed.Whole, err
	}
	return v.Writer.Host == e.opts.Host.ID && v.Writer.StatePath == e.opts.StatePath, nil
}

// judgeMemory sets chunk memory aside that is not ours.
func (e *Engine) judgeMemory(v *layout.Volume) error {
	if !e.memoryHolds() {
		return nil
	}
	path := e.memory.Path()
	if u := e.memory.Header().UUID; u != v.UUID {
		return fmt.Errorf("%w: chunk memory %s holds writes of volume %s that may not be stored, but the store has volume %s: use the right store, or move the file away",
			ErrRefused, path, u, v.UUID)
	}
	var ours, others int
	for _, s := range e.memory.Slots() {
		if s.Count() == 0 {
			continue
		}
		h, err := s.Header()
		switch {
		case err != nil && e.sameBoot():
			return fmt.Errorf("%w: chunk memory %s: %w; move the file away to go on without what it holds", ErrRefused, path, err)
		case err != nil: // torn when the machine went down: replay sees where it ends
		case e.writersHere[h.Nonce]:
			ours++
		default:
			others++
		}
	}
	if others == 0 {
		return nil
	}
	if ours > 0 && !e.sameBoot() {
		return nil // slots of earlier writers, cleared in memory and not on the disk; replay passes over them
	}
	if ours > 0 {
		return fmt.Errorf("%w: chunk memory %s holds writes of several writers; move the file away to go on without them", ErrRefused, path)
	}
	if err := e.memory.Close(); err != nil {
		return err
	}
	e.memory = nil
	aside, err := e.dir.SetAside(wlog.MemoryFileName)
	if err != nil {
		return err
	}
	e.log.Error().Str("file", aside).Uint64("epoch", v.Epoch).Str("writer", v.Writer.Hostname).
		Msg("chunk memory is of a writer that another one has replaced since: its writes that were not stored are lost to the volume; the file is set aside")
	return nil
}
