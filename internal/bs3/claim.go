package bs3

import (
	"cmp"
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

// claim takes the next epoch of the volume, making the volume first if there is
// none, and returns the record as claimed. Everything that can refuse an open is
// judged before, against the very record that is then replaced: a refusal
// changes nothing. What was read of the log for it is in o.found.
//
// Errors: volume.ErrRefused; volume.ErrFenced: another writer was faster, and we
// may have claimed the volume before; those of the store and of the disks here.
func (o *opening) claim(ctx context.Context) (*layout.Volume, error) {
	var denied volume.Denials
	var tried objproxy.Version // the version that the last try was to replace
	var epoch uint64           // that it would have had
	passed := false            // if a try was made, another writer has taken over since
	for tries := 0; ; tries++ {
		v, version, err := volume.ReadRecord(ctx, o.store)
		absent := errors.Is(err, objproxy.ErrNotFound)
		switch {
		case absent:
			v = o.newVolume()
		case err != nil:
			return nil, err
		case v.Writer.Nonce == o.nonce: // the answer to our claim was lost
			return o.claimed(v), nil
		}
		switch {
		case tried == "":
		case tried != version:
			denied = 0
			passed = passed || v.Epoch > epoch
		default:
			if err := denied.Again(ctx, layout.VolumeName, o.log); err != nil {
				return nil, err
			}
		}
		verdict := o.judge(ctx, v, absent)
		if verdict != nil && !errors.Is(verdict, volume.ErrRefused) {
			return nil, verdict
		}
		// Judging takes a while, and reads what a living writer may have replaced
		// or removed meanwhile; and one answer may have been another volume's.
		same, err := o.stillSo(ctx, v, version, absent)
		switch {
		case err != nil:
			return nil, err
		case verdict != nil && same:
			if passed {
				return nil, fmt.Errorf("%w: %w", volume.ErrFenced, notRefused{verdict})
			}
			return nil, errors.Join(verdict, o.withdraw(tried, version))
		case !same:
			if tries < volume.MostRestarts {
				continue
			}
			o.log.Error().Str("name", layout.VolumeName).Int("times", tries+1).Msg("the volume record is another one each time that it is read; trying again")
			if err := objproxy.Sleep(ctx, volume.RetryWait); err != nil {
				return nil, err
			}
			continue
		case absent:
			if err := o.create(ctx, v); err != nil {
				return nil, err
			}
			continue
		}
		if err := o.opts.identified(ctx, v.UUID); err != nil {
			return nil, err
		}
		if err := o.settle(v); err != nil {
			return nil, err
		}
		o.last = v.Writer
		v.Epoch++
		v.Generation++
		v.ChangeID = o.nonce.String()
		v.Writer = o.writer()
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
		tried, epoch = version, v.Epoch
	}
}

// stillSo reads the record again and reports whether it is as it was judged.
func (o *opening) stillSo(ctx context.Context, judged *layout.Volume, version objproxy.Version, absent bool) (bool, error) {
	v, now, err := volume.ReadRecord(ctx, o.store)
	if errors.Is(err, objproxy.ErrNotFound) {
		return absent, nil
	}
	if err != nil {
		return false, err
	}
	return !absent && now == version && v.UUID == judged.UUID && v.Generation == judged.Generation, nil
}

// withdraw forgets the intent of a claim that was to replace the version tried,
// if the record has another one by now: it cannot be made any more.
func (o *opening) withdraw(tried, now objproxy.Version) error {
	if tried == "" || tried == now {
		return nil
	}
	return o.files.dropIntent(o.nonce)
}

// writer is what the record says of us.
func (o *opening) writer() layout.Writer {
	h := o.opts.Host
	return layout.Writer{
		Host: h.ID, Product: h.Product, Hostname: h.Name, StatePath: o.opts.StatePath, StateID: o.files.claimID(),
		PID: os.Getpid(), Nonce: o.nonce, Since: time.Now(),
	}
}

// claimed notes that v, which names us, is stored.
func (o *opening) claimed(v *layout.Volume) *layout.Volume {
	o.owner = volume.NewOwner(v, o.store, o.log)
	return v
}

// newVolume is the record of the volume that an open makes where there is none.
func (o *opening) newVolume() *layout.Volume {
	return &layout.Volume{
		UUID: layout.NewUUID(), Generation: 1, Created: time.Now(),
		BlockSize: uint32(o.opts.BlockSize), ChunkSize: uint32(o.opts.ChunkSize), Size: o.opts.Size, LargestSize: o.opts.Size,
		Writer: layout.Writer{Released: true},
	}
}

// admitNew refuses to make a volume where something of one is: in the store, or
// in the files here. The store comes first: where the record alone is lost, what
// the files hold is still wanted.
func (o *opening) admitNew(ctx context.Context) error {
	if err := o.refuseLeftovers(ctx); err != nil {
		return err
	}
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
	return nil
}

// create stores v, the record of a new volume.
func (o *opening) create(ctx context.Context, v *layout.Volume) error {
	if err := o.opts.identified(ctx, v.UUID); err != nil {
		return err
	}
	if err := o.probe(ctx); err != nil {
		return err
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
	o.progress("trying the store", 0, 0)
	err := objproxy.Probe(ctx, o.store, o.nonce.String())
	switch {
	case errors.Is(err, objproxy.ErrNoConditionalPut) && o.opts.UnsafeNoFencing:
		o.log.Warn().Err(err).Msg("nothing will keep a second writer from destroying this volume")
		return nil
	case errors.Is(err, objproxy.ErrNoConditionalPut):
		return fmt.Errorf("%w: %w; a second writer could destroy the volume", volume.ErrRefused, err)
	case errors.Is(err, objproxy.ErrWrongRange):
		return fmt.Errorf("%w: %w; a volume could not be opened again", volume.ErrRefused, err)
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
	opts, w := &o.opts, &v.Writer
	apart := ""
	if !w.Released && !opts.Takeover {
		var err error
		if apart, err = o.apart(w); err != nil {
			return err
		}
	}
	switch {
	case v.Deleted:
		return refuse("was deleted")
	case int(v.BlockSize) != opts.BlockSize:
		return refuse("has blocks of %d bytes, the configuration says %d (block_size)", v.BlockSize, opts.BlockSize)
	case int(v.ChunkSize) != opts.ChunkSize:
		return refuse("has chunks of %d bytes, the configuration says %d (write.chunk_size)", v.ChunkSize, opts.ChunkSize)
	case v.Size != opts.Size:
		return refuse("has %d bytes, the configuration says %d (size)", v.Size, opts.Size)
	case apart != "":
		return refuse("is in use by host %s (machine %s, state path %s, pid %d) since %s and was not released; stop that daemon first, or take the volume over (%s)",
			w.Hostname, cmp.Or(w.Host, "unknown"), w.StatePath, w.PID, w.Since.Format(time.RFC3339), apart)
	case opts.SkipCheckpoint && len(v.Checkpoints) > 0:
		return refuse("has checkpoints; without them its log may be gone, so skip_checkpoint cannot be used on it")
	}
	return nil
}

// apart says what shows that the writer w was another daemon than this one; empty
// if it was an earlier run of it.
func (o *opening) apart(w *layout.Writer) (string, error) {
	f := o.files
	claimed := false
	if f.state != nil {
		var err error
		if _, claimed, err = f.state.Intent(w.Nonce); err != nil {
			return "", fmt.Errorf("%w: %w; move the file away to go on without what lies beside it", volume.ErrRefused, err)
		}
	}
	return o.opts.Host.apart(w, o.opts.StatePath, f.stateID, claimed), nil
}

// judge looks at all that may refuse v, which is not stored yet if it is new, and
// changes nothing.
func (o *opening) judge(ctx context.Context, v *layout.Volume, isNew bool) error {
	if isNew {
		if err := o.admitNew(ctx); err != nil {
			return err
		}
	}
	if err := o.admit(v); err != nil {
		return err
	}
	if err := o.judgeFiles(v); err != nil {
		return err
	}
	if err := o.files.reserve(o.memoryHeader(v.UUID).FileSize(), o.others.memory); err != nil {
		return err
	}
	if err := o.readLog(ctx, v); err != nil {
		return err
	}
	return o.judgeReplay()
}

// others are the files here that are not ours.
type others struct {
	memory    bool             // to be set aside
	local     bool             // the local log, or one that cannot be read
	forgotten *layout.LocalLog // that the volume may need, and that is to be done without; nil = none
}

// judgeFiles decides whose chunk memory and local log are: that of the writer that
// v names, or of one whose place only our own failed opens have taken since.
// What is anyone else's must never be replayed.
func (o *opening) judgeFiles(v *layout.Volume) (err error) {
	o.others = others{}
	o.writersHere, err = wlog.Writers(v.Writer.Nonce, o.files.dirs()...)
	if err != nil {
		return fmt.Errorf("%w: %w; move the file away to go on without what lies beside it", volume.ErrRefused, err)
	}
	if err := o.judgeMemory(v); err != nil {
		return err
	}
	if err := o.judgeLog(v); err != nil {
		return err
	}
	if o.notWhole, err = o.isNotWhole(v); err != nil {
		return err
	}
	o.left, err = o.leftHere()
	return err
}

// isNotWhole says why chunk memory is not that of the writer that v names, as it
// left it; empty if it is: that writer ran here, since the machine booted. Where v
// names an open of ours that never served, what that one found counts.
func (o *opening) isNotWhole(v *layout.Volume) (string, error) {
	f := o.files
	switch {
	case f.state == nil:
		return "there is no state.path here", nil
	case f.memory == nil:
		return "there is no chunk memory in " + f.state.Path(), nil
	case o.others.memory || f.memory.Header().UUID != v.UUID:
		return fmt.Sprintf("chunk memory %s is not its own", f.memory.Path()), nil
	case !f.sameBoot(o.opts.Host):
		return fmt.Sprintf("chunk memory %s is of another boot, and may be torn", f.memory.Path()), nil
	}
	failed, ok, err := f.state.Intent(v.Writer.Nonce)
	switch {
	case err != nil:
		return "", err
	case ok && failed.Whole:
		return "", nil
	case ok:
		return "an open before this one, which did not serve, has not found it", nil
	}
	return o.apart(&v.Writer)
}

// judgeMemory refuses chunk memory that nobody can tell the owner of.
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
	switch {
	case others == 0:
	case ours == 0:
		o.others.memory = true
	case sameBoot:
		return fmt.Errorf("%w: chunk memory %s holds writes of several writers; move the file away to go on without them", volume.ErrRefused, path)
	} // else slots of earlier writers, cleared in memory and not on the disk; replay passes over them
	return nil
}

// judgeLog refuses to go on without the local log that the volume may need,
// unless that is to be forgotten.
func (o *opening) judgeLog(v *layout.Volume) error {
	f := o.files
	if f.logHolds() && f.local.Header().UUID != v.UUID {
		return fmt.Errorf("%w: local log %s holds writes of volume %s that may not be stored, but the store has volume %s: use the right store, or move the file away",
			volume.ErrRefused, f.local.Path(), f.local.Header().UUID, v.UUID)
	}
	o.others.local = f.local == nil || f.local.Header().UUID != v.UUID || !o.writersHere[f.local.Header().Nonce]
	if here := v.LocalLog; here != nil && o.others.local {
		if !o.opts.ForgetLocalLog {
			return fmt.Errorf("%w: volume %s has writes, flushed and perhaps not stored, in the local log in %s of host %s (machine %s), and %s: open it there, or give them up (--forget-local-log)",
				volume.ErrRefused, v.UUID, here.Path, here.Hostname, cmp.Or(here.Host, "unknown"), f.whyNoLog())
		}
		o.others.forgotten = here
	}
	return nil
}

// settle does what must be done before v is claimed: what is not ours is set
// aside, and the claim is noted beside what is. v forgets the local log that is to
// be done without.
func (o *opening) settle(v *layout.Volume) error {
	f := o.files
	if o.others.memory {
		aside, err := f.setMemoryAside()
		if err != nil {
			return err
		}
		o.log.Error().Str("file", aside).Uint64("epoch", v.Epoch).Str("writer", v.Writer.Hostname).
			Msg("chunk memory is of a writer that another one has replaced since: its writes that were not stored are lost to the volume; the file is set aside")
	}
	if here := o.others.forgotten; here != nil {
		o.log.Error().Str("host", here.Hostname).Str("directory", here.Path).
			Msg("opening without the local log of the last writer: what it flushed and did not store is lost to the volume")
		v.LocalLog = nil
	}
	if o.others.local {
		if err := f.dropLog(v); err != nil {
			return err
		}
	}
	return f.addIntent(wlog.Intent{Nonce: o.nonce, Replaces: v.Writer.Nonce, Whole: o.notWhole == ""})
}
