package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// SnapshotOutside keeps under a name what is durable of the volume in store. It
// needs no epoch and no writer, which is not even told. Errors: objproxy.ErrNotFound
// if there is no volume, volume.ErrMoving, those of Keeper.Snapshot.
func SnapshotOutside(ctx context.Context, store objproxy.Store, log zerolog.Logger, name string) (layout.Snapshot, error) {
	for range volume.MostRestarts {
		s, err := snapshotOutside(ctx, store, log, name)
		if !errors.Is(err, volume.ErrMoved) {
			return s, err
		}
	}
	return layout.Snapshot{}, fmt.Errorf("snapshot %s: %w", name, volume.ErrMoving)
}

// outsider makes one snapshot without an epoch.
type outsider struct {
	store objproxy.Store
	log   zerolog.Logger
	v     *layout.Volume // as it was when the outsider began
	nonce layout.Nonce
	packs uint32
	base  volume.Checkpoint // that the map was read from; its name is empty if there was none
	maps  *mapproxy.Proxy
	at    volume.Position
	seq   uint64
	sent  bool // the record may name what was stored
}

// snapshotOutside is one try. volume.ErrMoved: the writer has replaced what it
// began from.
func snapshotOutside(ctx context.Context, store objproxy.Store, log zerolog.Logger, name string) (layout.Snapshot, error) {
	s := layout.Snapshot{Name: name, Created: time.Now()}
	v, _, err := volume.ReadRecord(ctx, store)
	if err != nil {
		return s, err
	}
	if v.Deleted {
		return s, fmt.Errorf("%w: volume %s was deleted", volume.ErrRefused, v.UUID)
	}
	if err := admit(v, s); err != nil {
		return s, err
	}
	o := &outsider{store: store, log: log, v: v, nonce: layout.NewNonce()}
	if err := o.read(ctx); err != nil {
		return s, o.unlessMoved(ctx, err)
	}
	if o.at.Next == 0 {
		return s, fmt.Errorf("%w: nobody has opened volume %s yet", volume.ErrRefused, v.UUID)
	}
	s.Directory = layout.SnapshotName(o.at.Next-1, o.nonce)
	err = o.write(ctx, s.Directory)
	if err == nil {
		err = o.commit(ctx, s)
	}
	if err != nil && !o.sent { // the record does not name it, and will not
		err = errors.Join(err, sweepSnapshot(ctx, store, s.Directory))
	}
	return s, err
}

// read makes the map as it is at the end of the log.
func (o *outsider) read(ctx context.Context) error {
	blocks := uint64(o.v.Size) / uint64(o.v.BlockSize)
	o.maps, o.seq = mapproxy.New(blocks), 1
	var damage []error
	for _, name := range slices.Backward(o.v.Checkpoints) {
		c, err := volume.LoadMap(ctx, o.store, o.v.UUID, name, o.maps)
		if err == nil {
			o.base, o.seq, o.at = c, c.NextSeq, volume.After(c.Checkpoint)
			break
		}
		if !volume.IsDamage(err) {
			return fmt.Errorf("read checkpoint %s: %w", name, err)
		}
		damage = append(damage, fmt.Errorf("checkpoint %s: %w", name, err))
		o.maps = mapproxy.New(blocks) // it may be half full
	}
	if o.base.Name == "" && len(o.v.Checkpoints) > 0 {
		return fmt.Errorf("%w: no checkpoint of the volume verifies: %w", volume.ErrRefused, errors.Join(damage...))
	}
	err := volume.TailsOf(o.v, o.store).Walk(ctx, o.at, func(k key.Key, obj *layout.Object) (err error) {
		if o.seq, err = volume.Apply(o.maps, o.seq, obj, int(o.v.BlockSize)); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		o.at = volume.Position{Next: k + 1, Epoch: obj.Epoch}
		return nil
	})
	if err != nil {
		return err
	}
	if least := volume.Reach(o.v); o.at.Next < least {
		return fmt.Errorf("%w: read the log: object %d (%s): %w: it is missing, but a checkpoint was made of the objects up to %d",
			volume.ErrRefused, o.at.Next, o.at.Next.Name(), layout.ErrDamaged, least-1)
	}
	return nil
}

// unlessMoved returns volume.ErrMoved if err may come of it that the record does not
// name any more what o has begun from.
func (o *outsider) unlessMoved(ctx context.Context, err error) error {
	if !volume.IsDamage(err) {
		return err
	}
	now, _, readErr := volume.ReadRecord(ctx, o.store)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	if now.UUID == o.v.UUID && !slices.Equal(now.Checkpoints, o.v.Checkpoints) {
		return fmt.Errorf("%w: %w", volume.ErrMoved, err)
	}
	return err
}

// write stores the map under names of its own, but for leaves that have not changed
// since the checkpoint that o has begun from.
func (o *outsider) write(ctx context.Context, directory string) error {
	frozen := o.maps.Freeze()
	defer frozen.Release()
	c := &layout.Checkpoint{
		UUID: o.v.UUID, Nonce: o.nonce, Key: o.at.Next - 1, KeyEpoch: o.at.Epoch, Epoch: o.at.Epoch, NextSeq: o.seq,
		BlockSize: o.v.BlockSize, Blocks: o.maps.Blocks(), Objects: frozen.Objects(),
	}
	var last stored
	if o.base.Name != "" {
		last.leaves = leavesOf(o.base, frozen.Map().Leaves())
	}
	_, err := storeLeaves(ctx, c, frozen.Map(), last, func(ctx context.Context, pack []byte) (string, error) {
		o.packs++
		name := layout.SnapshotPackName(o.nonce, o.packs)
		return name, o.put(ctx, name, pack)
	})
	if err != nil {
		return err
	}
	return o.put(ctx, directory, layout.AppendCheckpoint(nil, c))
}

// put stores b under a name that is ours alone.
func (o *outsider) put(ctx context.Context, name string, b []byte) error {
	if int64(len(b)) > volume.MaxRead {
		return fmt.Errorf("%d bytes in one object are more than could be read again (%d)", len(b), int64(volume.MaxRead))
	}
	_, err := o.store.Put(ctx, name, objproxy.Body{Data: b}, objproxy.Condition{})
	if err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

// commit has the record name s, if it still names the checkpoint that s has begun
// from: then nothing that s needs is deleted before the writer sees s. Otherwise, or
// if the record changes meanwhile, the error is volume.ErrMoved; who cannot tell
// whether its put was done must not put the same again, since s may have been removed
// meanwhile with all that it needs.
func (o *outsider) commit(ctx context.Context, s layout.Snapshot) error {
	v, version, err := volume.ReadRecord(ctx, o.store)
	if err != nil {
		return err
	}
	if v.UUID != o.v.UUID || v.Deleted {
		return fmt.Errorf("%w: volume %s was deleted, or is another one", volume.ErrRefused, o.v.UUID)
	}
	if !o.mayCommit(v) {
		return volume.ErrMoved
	}
	if err := addTo(v, s); err != nil {
		return err
	}
	v.Generation++
	v.ChangeID = o.nonce.String()
	o.sent = true
	err = volume.PutRecord(ctx, o.store, v, objproxy.IfVersion(version))
	if !errors.Is(err, objproxy.ErrExists) {
		if err != nil {
			return fmt.Errorf("change the volume record: %w", err)
		}
		return nil
	}
	now, _, err := volume.ReadRecord(ctx, o.store)
	if err != nil {
		return err
	}
	if hasSnapshot(now, s) {
		return nil
	}
	o.sent = false // the version that the put asked for is gone
	return volume.ErrMoved
}

// mayCommit reports whether the record v still names the checkpoint that o has
// begun from, or still none.
func (o *outsider) mayCommit(v *layout.Volume) bool {
	if o.base.Name == "" {
		return len(v.Checkpoints) == 0
	}
	return slices.Contains(v.Checkpoints, o.base.Name)
}

// RemoveSnapshotOutside removes a snapshot with nothing but the store. What it
// shared with checkpoints the writer deletes, when it next changes the record. Errors:
// objproxy.ErrNotFound if there is no volume, ErrNoSnapshot, those of the store.
func RemoveSnapshotOutside(ctx context.Context, store objproxy.Store, log zerolog.Logger, name string) error {
	var d drop
	if err := volume.ChangeRecord(ctx, store, log, func(v *layout.Volume) error { return d.from(v, name) }); err != nil {
		return err
	}
	return d.sweep(ctx, store)
}
