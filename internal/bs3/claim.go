package bs3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// claim takes the next epoch of the volume, making the volume first if there
// is none, and returns the record as claimed. Each try judges chunk memory and
// local log against the very record that it replaces.
func (o *opening) claim(ctx context.Context) (*layout.Volume, error) {
	var denied volume.Denials
	for {
		v, version, err := volume.ReadRecord(ctx, o.store)
		if errors.Is(err, objproxy.ErrNotFound) {
			if err := o.create(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if v.Writer.Nonce == o.nonce { // the answer to our claim was lost
			return o.claimed(v), nil
		}
		if err := o.admit(v); err != nil {
			return nil, err
		}
		if err := o.opts.identified(ctx, v.UUID); err != nil {
			return nil, err
		}
		if err := o.judge(v); err != nil {
			return nil, err
		}
		if o.whole, err = o.isWhole(v); err != nil {
			return nil, err
		}
		if err := o.files.addIntent(wlog.Intent{Nonce: o.nonce, Replaces: v.Writer.Nonce, Whole: o.whole}); err != nil {
			return nil, err
		}
		host := o.opts.Host
		v.Epoch++
		v.Generation++
		v.ChangeID = o.nonce.String()
		v.Writer = layout.Writer{Host: host.ID, Hostname: host.Name, StatePath: o.opts.StatePath, PID: os.Getpid(), Nonce: o.nonce, Since: time.Now()}
		b, err := layout.EncodeVolume(v)
		if err != nil {
			return nil, fmt.Errorf("claim the volume: %w", err)
		}
		_, err = o.store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfVersion(version))
		if err == nil {
			return o.claimed(v), nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return nil, fmt.Errorf("claim the volume: %w", err)
		}
		if err := denied.Again(ctx, layout.VolumeName, o.log); err != nil {
			return nil, err
		}
	}
}

// claimed notes that v, which names us, is stored.
func (o *opening) claimed(v *layout.Volume) *layout.Volume {
	o.owner = volume.NewOwner(v, o.store, o.log)
	return v
}

// create stores the record of a new volume, unless something of a volume lies
// here without one.
func (o *opening) create(ctx context.Context) error {
	var held string
	switch f := o.files; {
	case f.memoryHolds():
		held = fmt.Sprintf("chunk memory %s holds writes of volume %s", f.memory.Path(), f.memory.Header().UUID)
	case f.logHolds():
		held = fmt.Sprintf("local log %s holds writes of volume %s", f.local.Path(), f.local.Header().UUID)
	}
	if held != "" {
		return fmt.Errorf("%w: %s that may not be stored, but there is no volume in the store: use the right store, or move the file away", volume.ErrRefused, held)
	}
	if err := o.refuseLeftovers(ctx); err != nil {
		if _, _, again := volume.ReadRecord(ctx, o.store); again == nil {
			return nil // somebody made the volume while we looked
		}
		return err
	}
	id := layout.NewUUID()
	if err := o.opts.identified(ctx, id); err != nil {
		return err
	}
	if err := o.probe(ctx); err != nil {
		return err
	}
	v := &layout.Volume{
		UUID: id, Generation: 1, Created: time.Now(),
		BlockSize: uint32(o.opts.BlockSize), ChunkSize: uint32(o.opts.ChunkSize), Size: o.opts.Size, LargestSize: o.opts.Size,
		Writer: layout.Writer{Released: true},
	}
	b, err := layout.EncodeVolume(v)
	if err != nil {
		return fmt.Errorf("make a volume: %w", err)
	}
	_, err = o.store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfAbsent())
	if err != nil && !errors.Is(err, objproxy.ErrExists) { // whoever made it, it is judged like any other
		return fmt.Errorf("make a volume: %w", err)
	}
	if err == nil {
		o.log.Info().Stringer("volume", v.UUID).Int64("size", v.Size).Msg("made a new volume")
	}
	return nil
}

// probe makes sure that conditional puts work: they alone keep two writers of
// one volume apart.
func (o *opening) probe(ctx context.Context) error {
	err := objproxy.Probe(ctx, o.store, o.nonce.String())
	switch {
	case errors.Is(err, objproxy.ErrNoConditionalPut) && o.opts.UnsafeNoFencing:
		o.log.Warn().Err(err).Msg("nothing will keep a second writer from destroying this volume")
		return nil
	case errors.Is(err, objproxy.ErrNoConditionalPut):
		return fmt.Errorf("%w: %w; a second writer could destroy the volume", volume.ErrRefused, err)
	}
	return err
}

// refuseLeftovers looks for names of a volume whose record is gone.
func (o *opening) refuseLeftovers(ctx context.Context) error {
	return volume.List(ctx, o.store, "", func(page []objproxy.Info) error {
		for _, i := range page {
			if volume.IsPart(i.Name) {
				return fmt.Errorf("%w: there is no volume record, but %s of some volume is there: choose another prefix, or make the record again (bs3 fsck --rebuild-record)", volume.ErrRefused, i.Name)
			}
		}
		return nil
	})
}

// admit refuses a volume that is not what was asked for, or that another host
// may still be writing.
func (o *opening) admit(v *layout.Volume) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: volume %s "+format, append([]any{volume.ErrRefused, v.UUID}, args...)...)
	}
	opts := &o.opts
	switch w := v.Writer; {
	case v.Deleted:
		return refuse("was deleted")
	case int(v.BlockSize) != opts.BlockSize:
		return refuse("has blocks of %d bytes, the configuration says %d (block_size)", v.BlockSize, opts.BlockSize)
	case int(v.ChunkSize) != opts.ChunkSize:
		return refuse("has chunks of %d bytes, the configuration says %d (write.chunk_size)", v.ChunkSize, opts.ChunkSize)
	case v.Size != opts.Size:
		return refuse("has %d bytes, the configuration says %d (size)", v.Size, opts.Size)
	case !w.Released && !opts.Takeover && (w.Host != opts.Host.ID || w.StatePath != opts.StatePath):
		return refuse("is in use by host %s (machine %s, state path %s, pid %d) since %s and was not released; stop that daemon first, or take the volume over",
			w.Hostname, w.Host, w.StatePath, w.PID, w.Since.Format(time.RFC3339))
	case opts.SkipCheckpoint && len(v.Checkpoints) > 0:
		return refuse("has checkpoints; without them its log may be gone, so skip_checkpoint cannot be used on it")
	}
	return nil
}

// isWhole reports whether chunk memory is that of the writer that v names: it
// ran here, since the machine booted. Where v names an open of ours that never
// served, what that one found counts.
func (o *opening) isWhole(v *layout.Volume) (bool, error) {
	if !o.files.sameBoot(o.opts.Host) {
		return false, nil
	}
	failed, ok, err := o.files.state.Intent(v.Writer.Nonce)
	if err != nil || ok {
		return failed.Whole, err
	}
	return v.Writer.Host == o.opts.Host.ID && v.Writer.StatePath == o.opts.StatePath, nil
}

// judge decides whose chunk memory and local log are: that of the writer that
// v names, or of one whose place only our own failed opens have taken since.
// What is anyone else's is set aside: it must never be replayed.
func (o *opening) judge(v *layout.Volume) (err error) {
	o.writersHere, err = wlog.Writers(v.Writer.Nonce, o.files.dirs()...)
	if err != nil {
		return fmt.Errorf("%w: %w; move the file away to go on without what lies beside it", volume.ErrRefused, err)
	}
	if err := o.judgeMemory(v); err != nil {
		return err
	}
	return o.judgeLog(v)
}

// judgeMemory sets chunk memory aside that is not ours.
func (o *opening) judgeMemory(v *layout.Volume) error {
	f := o.files
	if !f.memoryHolds() {
		return nil
	}
	path, sameBoot := f.memory.Path(), f.sameBoot(o.opts.Host)
	if u := f.memory.Header().UUID; u != v.UUID {
		return fmt.Errorf("%w: chunk memory %s holds writes of volume %s that may not be stored, but the store has volume %s: use the right store, or move the file away",
			volume.ErrRefused, path, u, v.UUID)
	}
	var ours, others int
	for _, s := range f.memory.Slots() {
		if s.Count() == 0 {
			continue
		}
		h, err := s.Header()
		switch {
		case err != nil && sameBoot:
			return fmt.Errorf("%w: chunk memory %s: %w; move the file away to go on without what it holds", volume.ErrRefused, path, err)
		case err != nil: // torn when the machine went down: replay sees where it ends
		case o.writersHere[h.Nonce]:
			ours++
		default:
			others++
		}
	}
	if others == 0 {
		return nil
	}
	if ours > 0 && !sameBoot {
		return nil // slots of earlier writers, cleared in memory and not on the disk; replay passes over them
	}
	if ours > 0 {
		return fmt.Errorf("%w: chunk memory %s holds writes of several writers; move the file away to go on without them", volume.ErrRefused, path)
	}
	aside, err := f.setMemoryAside()
	if err != nil {
		return err
	}
	o.log.Error().Str("file", aside).Uint64("epoch", v.Epoch).Str("writer", v.Writer.Hostname).
		Msg("chunk memory is of a writer that another one has replaced since: its writes that were not stored are lost to the volume; the file is set aside")
	return nil
}

// judgeLog sets a local log aside that is not ours, and refuses to go on
// without the one that the volume may need, unless that is to be forgotten:
// then v, which is about to be claimed, does so.
func (o *opening) judgeLog(v *layout.Volume) error {
	f := o.files
	if f.logHolds() && f.local.Header().UUID != v.UUID {
		return fmt.Errorf("%w: local log %s holds writes of volume %s that may not be stored, but the store has volume %s: use the right store, or move the file away",
			volume.ErrRefused, f.local.Path(), f.local.Header().UUID, v.UUID)
	}
	ours := f.local != nil && f.local.Header().UUID == v.UUID && o.writersHere[f.local.Header().Nonce]
	if here := v.LocalLog; here != nil && !ours {
		if !o.opts.ForgetLocalLog {
			return fmt.Errorf("%w: volume %s has writes, flushed and perhaps not stored, in the local log in %s of host %s (machine %s), and %s: open it there, or give them up (--forget-local-log)",
				volume.ErrRefused, v.UUID, here.Path, here.Hostname, here.Host, f.whyNoLog())
		}
		o.log.Error().Str("host", here.Hostname).Str("directory", here.Path).
			Msg("opening without the local log of the last writer: what it flushed and did not store is lost to the volume")
		v.LocalLog = nil
	}
	if ours {
		return nil
	}
	return f.dropLog(v)
}
