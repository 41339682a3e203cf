package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// logCheck makes the map from the log, object by object, and checks each.
type logCheck struct {
	f       *check
	maps    *mapproxy.Proxy
	next    key.Key      // to be read
	epoch   uint64       // of the object before it
	nonce   layout.Nonce // of the writer of epoch; zero = not known
	seq     uint64       // of the next write; zero = not known
	sound   bool         // nothing was missing: maps is what the log makes
	counted bool         // so are its live counts
	ahead   *volume.LookAhead
	beyond  []beyond // see end
}

// errGivenBack: the beginning of the log is not complete any more.
var errGivenBack = errors.New("the beginning of the log was given back")

// nothing is above all keys.
const nothing = key.Max + 1

// checkLog checks the checkpoints and the log: the map is made from the first
// object of the log, if it is still there, or else from the oldest checkpoint,
// compared with each newer checkpoint, and made up to the end of the log.
func (f *check) checkLog(ctx context.Context) error {
	var r *logCheck
	defer func() {
		if r != nil {
			r.ahead.Close()
		}
	}()
	f.walked = nothing
	if f.complete() {
		r = f.newLogCheck(ctx, volume.Checkpoint{})
		f.walked, f.report.FromStart = 0, true
	}
	for i, c := range f.kept {
		if r != nil {
			err := r.through(ctx, c.Key)
			if errors.Is(err, errGivenBack) {
				r.ahead.Close()
				r, f.walked, f.report.FromStart = nil, nothing, false
			} else if err != nil {
				return err
			}
		}
		var older *volume.Checkpoint
		if i > 0 {
			older = &f.kept[i-1]
		}
		from, err := f.checkAgainst(ctx, c, r, older)
		if err != nil {
			return err
		}
		if from != r {
			if r == nil {
				f.walked = from.next
			} else {
				r.ahead.Close()
			}
			r = from
		}
	}
	if r == nil {
		return nil
	}
	if len(f.kept) == 0 && len(f.v.Checkpoints) > 0 {
		if err := r.through(ctx, f.newestNamed()); err != nil {
			return err
		}
	}
	if err := r.rest(ctx); err != nil {
		return err
	}
	f.report.LogEnd = r.next
	if r.sound {
		f.maps, f.counted = r.maps, r.counted
	}
	return nil
}

// checkAgainst checks c, against the map of r if that is sound, and returns the
// check that goes on from there: one that starts at c where r is of no use, as
// an open would, or r.
func (f *check) checkAgainst(ctx context.Context, c volume.Checkpoint, r *logCheck, older *volume.Checkpoint) (*logCheck, error) {
	if r != nil && r.sound {
		if r.epoch != c.KeyEpoch || r.seq != c.NextSeq {
			f.found(SeverityError, KindCheckpoint, c.Name, "it is at epoch %d and write %d, the log at %d and %d", c.KeyEpoch, c.NextSeq, r.epoch, r.seq)
		}
		same, intact, err := f.compare(ctx, c, r.maps, older)
		if err != nil || same || !intact {
			return r, err
		}
	}
	from := f.newLogCheck(ctx, c)
	quiet := r != nil && r.sound // its findings are reported
	var intact, counted bool
	var err error
	if quiet {
		_, err = volume.LoadMap(ctx, f.store, f.v.UUID, c.Name, from.maps)
		if volume.IsDamage(err) { // a moment ago it was none
			err = volume.ErrMoved
		}
		intact = err == nil
	} else {
		for _, o := range c.Objects {
			from.maps.AddObject(o)
		}
		intact, counted, err = f.checkLeaves(ctx, c, func(leaf int, entries []layout.Location) {
			// What it could refuse is refused before.
			_ = from.maps.LoadLeaf(leaf, entries)
		})
	}
	if err != nil || !intact {
		from.ahead.Close()
		return r, err
	}
	from.counted = counted
	return from, nil
}

// newestNamed is the highest key of a checkpoint that the record names.
func (f *check) newestNamed() key.Key {
	if len(f.v.Checkpoints) == 0 {
		return 0
	}
	k, _, _, _ := layout.ParseCheckpointName(f.v.Checkpoints[len(f.v.Checkpoints)-1]) // the record was checked
	return k
}

// complete reports whether all objects from key 0 on are there.
func (f *check) complete() bool {
	switch {
	case len(f.v.Checkpoints) == 0:
		return true
	case len(f.kept) == 0:
		return f.listed.through(f.newestNamed())
	}
	oldest := f.kept[0]
	return uint64(len(oldest.Objects)) == uint64(oldest.Key)+1 && f.listed.through(oldest.Key)
}

// newLogCheck starts after c, with an empty map; before the log without c.
func (f *check) newLogCheck(ctx context.Context, c volume.Checkpoint) *logCheck {
	r := &logCheck{f: f, maps: mapproxy.New(uint64(f.v.Size) / uint64(f.v.BlockSize)), seq: 1, sound: true, counted: true}
	if c.Checkpoint != nil {
		r.next, r.epoch, r.seq = c.Key+1, c.KeyEpoch, c.NextSeq
		if c.KeyEpoch == c.Epoch {
			r.nonce = c.Nonce
		}
	}
	r.ahead = f.tails.Ahead(ctx, r.next)
	return r
}

// through reads the log up to key k: all of it must be there.
func (r *logCheck) through(ctx context.Context, k key.Key) error {
	f := r.f
	f.begin("log", f.listed.from(r.next))
	for r.next <= k {
		t, err := r.ahead.Next()
		if err == nil && f.anothers(t.Object) {
			return errGivenBack
		}
		if err == nil {
			if why := r.notNext(t.Object); why != "" {
				err = fmt.Errorf("object %d: %w: %s", r.next, layout.ErrDamaged, why)
			}
		}
		switch {
		case err == nil:
			r.take(t.Object)
			continue
		case !volume.IsDamage(err):
			return fmt.Errorf("read the log: %w", err)
		case len(f.kept) > 0 && r.next <= f.kept[0].Key && f.dead(r.next):
			return errGivenBack
		case errors.Is(err, objproxy.ErrNotFound):
			moved, err := f.moved(ctx, false)
			if err != nil {
				return err
			}
			if moved {
				return volume.ErrMoved
			}
			f.foundIn(r.next, KindMissing, "it is not there, and the log goes on behind it")
		default:
			f.foundErr(r.next, KindObject, err)
		}
		r.skip()
	}
	return nil
}

// dead reports whether the oldest checkpoint lets object k be deleted.
func (f *check) dead(k key.Key) bool {
	o, here := f.kept[0].Object(k)
	return !here || o.Live == 0 && !o.Fence
}

// anothers reports whether the object of o's key was deleted and its name taken by
// o: the fence of a writer that put it there before it found itself fenced.
func (f *check) anothers(o *layout.Object) bool {
	if len(f.kept) == 0 || o.UUID != f.v.UUID || o.Key > f.kept[0].Key || !f.dead(o.Key) {
		return false
	}
	before, here := f.kept[0].Object(o.Key)
	return !here || before.Epoch != o.Epoch
}

// notNext says why o cannot be the next object of the log; empty if it can.
func (r *logCheck) notNext(o *layout.Object) string {
	switch {
	case o.UUID != r.f.v.UUID:
		return fmt.Sprintf("it is of volume %s", o.UUID)
	case o.Epoch < r.epoch:
		return fmt.Sprintf("it has epoch %d, after one of epoch %d", o.Epoch, r.epoch)
	}
	return ""
}

// skip goes on behind an object that cannot be used.
func (r *logCheck) skip() {
	r.next++
	r.seq, r.sound = 0, false
	r.f.step()
}

// take checks the next object of the log and applies it to the map.
func (r *logCheck) take(o *layout.Object) {
	f := r.f
	defer f.step()
	wrong := func(format string, args ...any) {
		f.foundIn(o.Key, KindObject, format, args...)
	}
	f.checkContent(o)
	switch {
	case o.Epoch > f.epoch:
		wrong("it has epoch %d, the volume %d", o.Epoch, f.epoch)
		f.epoch = o.Epoch // said once is enough
	case o.Epoch > r.epoch && !o.Fence:
		wrong("it is the first of epoch %d, but no fence", o.Epoch)
	case o.Epoch == r.epoch && o.Fence:
		wrong("it is a fence, but epoch %d had begun before", o.Epoch)
	case o.Epoch == r.epoch && r.nonce != layout.Nonce{} && o.Nonce != r.nonce:
		wrong("it is of epoch %d, but of writer %s, not %s", o.Epoch, o.Nonce, r.nonce)
	}
	if r.seq != 0 && o.FirstSeq != r.seq {
		wrong("its first write has sequence number %d where %d is next", o.FirstSeq, r.seq)
		r.sound = false
	}
	r.next, r.epoch, r.nonce, r.seq = o.Key+1, o.Epoch, o.Nonce, o.NextSeq()
	f.report.Objects++
	if !r.sound {
		return
	}
	r.checkMoves(o)
	r.maps.Apply(o)
}

// checkMoves checks that the blocks that o moves lie where it moves them from:
// the writer made a record only of what it moved.
func (r *logCheck) checkMoves(o *layout.Object) {
	if slices.ContainsFunc(o.Records, func(m layout.Record) bool { return m.Kind != layout.KindMove }) {
		return // others of its records may have changed what is moved
	}
	var runs []sectormap.Run
	for i, m := range o.Records {
		if m.Block+uint64(m.Blocks) > r.maps.Blocks() {
			continue
		}
		runs = r.maps.Lookup(m.Block, m.Blocks, runs[:0])
		if len(runs) != 1 || runs[0].Loc != m.Source {
			r.f.foundIn(o.Key, KindMap, "record %d moves %d blocks from block %d on out of %v, but they lie in %v", i, m.Blocks, m.Block, m.Source, runs[0].Loc)
		}
	}
}

// checkContent checks what can be said of an object alone.
func (f *check) checkContent(o *layout.Object) {
	wrong := func(format string, args ...any) { f.foundIn(o.Key, KindObject, format, args...) }
	if o.BlockSize != f.v.BlockSize {
		wrong("its blocks have %d bytes, the volume's %d", o.BlockSize, f.v.BlockSize)
	}
	if most := f.tails.ChunkBlocks; int(o.Blocks) > most || len(o.Records) > layout.MaxRecords(most) {
		wrong("it has %d blocks and %d records, more than a chunk of %d blocks", o.Blocks, len(o.Records), most)
	}
	largest := uint64(f.v.LargestSize) / uint64(f.v.BlockSize)
	for i, r := range o.Records {
		if r.Block+uint64(r.Blocks) > largest {
			wrong("record %d reaches to block %d, the volume never had more than %d", i, r.Block+uint64(r.Blocks), largest)
		}
	}
}

// rest reads the log to its end.
func (r *logCheck) rest(ctx context.Context) error {
	f := r.f
	f.begin("log", f.listed.from(r.next))
	for {
		t, err := r.ahead.Next()
		switch {
		case err == nil && r.notNext(t.Object) == "":
			if t.Object.Epoch > f.epoch {
				if err := f.look(ctx); err != nil {
					return err
				}
			}
			r.take(t.Object)
		case err == nil || errors.Is(err, objproxy.ErrNotFound):
			at := "it is not there"
			if err == nil {
				at = r.notNext(t.Object)
			}
			more, err := r.end(ctx, at)
			if err != nil || !more {
				return err
			}
		case volume.IsDamage(err):
			f.foundErr(r.next, KindObject, err)
			r.skip()
		default:
			return fmt.Errorf("read the log: %w", err)
		}
	}
}

// look reads the record again for the epoch of a writer that came meanwhile.
func (f *check) look(ctx context.Context) error {
	v, _, err := volume.ReadRecord(ctx, f.store)
	if err != nil {
		return err
	}
	if v.UUID == f.v.UUID {
		f.epoch = max(f.epoch, v.Epoch)
	}
	return nil
}
