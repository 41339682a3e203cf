package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// heldObject is what a snapshot says of an object that it needs.
type heldObject struct {
	snapshot string
	info     layout.ObjectInfo
}

// checkSnapshots checks the directories and the leaves of the snapshots that the
// record names, and notes what they need.
func (f *check) checkSnapshots(ctx context.Context) error {
	f.held = make(map[key.Key]heldObject)
	f.heldNames = make(map[string]bool)
	for _, s := range f.v.Snapshots {
		f.report.Snapshots = append(f.report.Snapshots, s.Name)
		if f.heldNames[s.Directory] {
			continue // of the same state
		}
		f.heldNames[s.Directory] = true
		c, err := f.checkSnapshot(ctx, s)
		if err != nil {
			return err
		}
		for _, p := range c.Packs {
			f.heldNames[p.Name] = true
		}
		for _, o := range c.Objects {
			if _, known := f.held[o.Key]; o.Live > 0 && !known {
				f.held[o.Key] = heldObject{s.Name, o}
			}
		}
	}
	return nil
}

// checkSnapshot returns the directory of s; it is empty if there is none to go by.
func (f *check) checkSnapshot(ctx context.Context, s layout.Snapshot) (volume.Checkpoint, error) {
	none := volume.Checkpoint{Checkpoint: new(layout.Checkpoint)}
	for _, c := range f.kept {
		if c.Name == s.Directory { // it was checked
			return c, nil
		}
	}
	c, err := volume.ReadCheckpoint(ctx, f.store, f.v.UUID, s.Directory)
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		return none, f.lost(ctx, s.Directory, s.Directory)
	case volume.IsDamage(err):
		f.found(SeverityError, KindSnapshot, s.Directory, "snapshot %s: %w", s.Name, err)
		return none, nil
	case err != nil:
		return none, fmt.Errorf("snapshot %s: %w", s.Name, err)
	}
	if most := uint64(f.v.LargestSize) / uint64(f.v.BlockSize); c.BlockSize != f.v.BlockSize || c.Blocks > most {
		f.found(SeverityError, KindSnapshot, s.Directory, "snapshot %s has %d blocks of %d bytes, the volume had at most %d of %d", s.Name, c.Blocks, c.BlockSize, most, f.v.BlockSize)
		return none, nil
	}
	f.checkEpochs(c, KindSnapshot)
	_, _, err = f.checkLeaves(ctx, c, func(int, []layout.Location) {})
	return c, err
}

// removed reports whether the record names a snapshot of f.v no more.
func (f *check) removed(now *layout.Volume) bool {
	return slices.ContainsFunc(f.v.Snapshots, func(s layout.Snapshot) bool {
		return !slices.ContainsFunc(now.Snapshots, func(n layout.Snapshot) bool { return n.Directory == s.Directory })
	})
}
