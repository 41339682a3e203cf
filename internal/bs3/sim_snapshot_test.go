package bs3

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// simSnapshots is how often something is done with snapshots, in runs that have
// them: one in three.
const simSnapshots = 10

// simSnapshot is a snapshot: another one may have its name after it was removed.
type simSnapshot struct{ name, directory string }

// observeSnapshots notes what of snapshots the record names that was just stored.
// Under the world's mutex.
func (w *simWorld) observeSnapshots(by string, v *layout.Volume) {
	for _, s := range v.Snapshots {
		at := simSnapshot{s.Name, s.Directory}
		if _, known := w.snapshots[at]; known {
			continue
		}
		h, err := w.history(s.Key())
		if err != nil {
			w.failLocked("SNAPSHOT: %s of %s: %v", s.Name, by, err)
		}
		w.snapshots[at] = h
		w.logLocked("%s commits snapshot %s at object %d, %d writes", by, s.Name, s.Key(), len(h))
	}
	w.held = v.Snapshots
}

// snapshotMade judges a snapshot that was made when before was promised to be in it. Under the world's mutex.
func (w *simWorld) snapshotMade(by string, s layout.Snapshot, before []simRec) {
	h, named := w.snapshots[simSnapshot{s.Name, s.Directory}]
	if named && !simPrefix(before, h) {
		w.failLocked("SNAPSHOT: %s of %s lacks some of the %d writes before it; it holds %d", s.Name, by, len(before), len(h))
	}
	if named {
		return
	}
	w.failLocked("SNAPSHOT: %s of %s was never in the record", s.Name, by)
}

// snapshot makes or removes a snapshot: the writer does, or somebody with nothing but
// the store.
func (run *simRun) snapshot(w *simWorld, op simOp) {
	name := fmt.Sprintf("s%x", op.bits[2]%64)
	remove := op.bits[1]%4 == 0
	if remove {
		w.mu.Lock()
		if len(w.held) > 0 {
			name = w.held[op.bits[2]%uint64(len(w.held))].Name
		}
		w.mu.Unlock()
	}
	if op.bits[1]/4%2 == 0 {
		run.outsider(w, op, name, remove)
		return
	}
	d := run.client(w, op)
	switch {
	case d == nil:
	case remove:
		d.background("snapshots removed", func(e *Engine, ctx context.Context) error {
			return unlessTaken(e.RemoveSnapshot(ctx, name))
		})
	default:
		d.background("snapshots", func(e *Engine, ctx context.Context) error {
			w.mu.Lock()
			before := d.session.acked()
			w.mu.Unlock()
			s, err := e.Snapshot(ctx, name)
			if err == nil {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.snapshotMade(d.name, s, before)
			}
			return unlessTaken(err)
		})
	}
}

// unlessTaken returns err, unless that is what is to be expected of names drawn at
// random.
func unlessTaken(err error) error {
	if errors.Is(err, checkpoint.ErrSnapshotExists) || errors.Is(err, checkpoint.ErrNoSnapshot) {
		return nil
	}
	return err
}

func (run *simRun) outsider(w *simWorld, op simOp, name string, remove bool) {
	c := w.newWire(fmt.Sprintf("outsider%x", op.bits[0]))
	store := objproxy.NewRetry(c, objproxy.RetryOptions{First: time.Millisecond, Max: 20 * time.Millisecond, Random: func() float64 { return 0.5 }})
	w.late.Go(func() {
		ctx := context.Background()
		if op.bits[3]%4 == 0 { // it dies
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(op.bits[3]/4%uint64(100*time.Millisecond)))
			defer cancel()
		}
		if remove {
			if checkpoint.RemoveSnapshotOutside(ctx, store, zerolog.Nop(), name) == nil {
				w.add("snapshots removed from outside", 1)
			}
			return
		}
		w.mu.Lock()
		flushed := slices.Clone(w.flushed)
		w.mu.Unlock()
		s, err := checkpoint.SnapshotOutside(ctx, store, zerolog.Nop(), name)
		w.mu.Lock()
		made := err == nil && !c.lied()
		switch {
		case errors.Is(err, volume.ErrMoving):
			w.count["snapshots overtaken"]++
		case made:
			w.count["snapshots from outside"]++
			for _, f := range flushed {
				w.snapshotMade(c.name, s, f.history)
			}
		}
		w.mu.Unlock()
		if made {
			w.readSnapshot(ctx, c, store, name, time.Duration(op.bits[3]%uint64(3*time.Second)))
		}
	})
}

// readSnapshot opens a snapshot as somebody with nothing but the store, and reads it
// after a while, in which it may be removed: what is read is what it holds, or an error.
func (w *simWorld) readSnapshot(ctx context.Context, c *simWire, store objproxy.Store, name string, after time.Duration) {
	v, err := OpenSnapshot(ctx, Options{Store: store, Log: zerolog.Nop(), OpenFor: time.Minute}, name)
	if err != nil {
		return // it may be gone already
	}
	defer func() { _ = v.Close() }() // without a cache it has nothing to close
	if objproxy.Sleep(ctx, after) != nil {
		return
	}
	w.mu.Lock()
	want := simFold(w.snapshots[simSnapshot{name, v.Snapshot().Directory}])
	w.mu.Unlock()
	for block := range uint64(v.Geometry().Size / simBlockSize) {
		if extents, err := v.Allocation(ctx, int64(block)*simBlockSize, simBlockSize); err == nil && extents[0].Hole && want[block] == 0 {
			continue
		}
		got, err := simStampAt(ctx, v, block)
		removed := errors.Is(err, checkpoint.ErrNoSnapshot)
		switch {
		case removed:
			w.add("snapshots removed under a reader", 1)
			return
		case err != nil && (ctx.Err() != nil || c.lied()):
			return
		case err != nil || got != want[block]:
			w.fail("SNAPSHOT: %s reads block %d of %s: write %d, not %d: %v", c.name, block, name, got, want[block], err)
			return
		}
	}
	w.add("snapshots read", 1)
}

// simStampAt returns the stamp of a block of a snapshot.
func simStampAt(ctx context.Context, v *SnapshotVolume, block uint64) (uint64, error) {
	p := make([]byte, simBlockSize)
	if err := v.ReadAt(ctx, p, int64(block)*simBlockSize); err != nil {
		return 0, err
	}
	return simRead(p, block)
}

// removeSnapshots removes some of the snapshots of a volume at rest.
func (w *simWorld) removeSnapshots(d *simDaemon, random func(n int) int) {
	ctx := context.Background()
	v, _, err := volume.ReadRecord(ctx, w.store)
	if err != nil {
		w.fail("SNAPSHOT: %v", err)
		return
	}
	for _, s := range v.Snapshots {
		switch random(3) {
		case 0:
			err = d.e.RemoveSnapshot(ctx, s.Name)
		case 1:
			err = checkpoint.RemoveSnapshotOutside(ctx, w.store, zerolog.Nop(), s.Name)
		}
		if err != nil {
			w.fail("SNAPSHOT: remove %s: %v", s.Name, err)
		}
	}
}

// checkSnapshots reads every block of every snapshot that the record names, and
// makes sure that what is deleted is all that none of them needs.
func (w *simWorld) checkSnapshots(e *Engine) {
	ctx := context.Background()
	v, _, err := volume.ReadRecord(ctx, w.store)
	if err != nil {
		w.fail("SNAPSHOT: %v", err)
		return
	}
	needed := make(map[key.Key]bool)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range v.Snapshots {
		if w.everDamaged[s.Directory] {
			return // nothing is deleted any more
		}
		m := mapproxy.New(e.opts.blocks())
		c, err := volume.LoadMap(ctx, w.store, v.UUID, s.Directory, m)
		if err != nil {
			w.failLocked("SNAPSHOT: %s: %v", s.Name, err)
			continue
		}
		for _, o := range c.Objects {
			needed[o.Key] = needed[o.Key] || o.Live > 0
		}
		want := simFold(w.snapshots[simSnapshot{s.Name, s.Directory}])
		if m.Mapped() != uint64(len(want)) {
			w.failLocked("SNAPSHOT: %s maps %d blocks, its history leaves %d", s.Name, m.Mapped(), len(want))
		}
		if err := simCompare(ctx, w.store, s.Name, want); err != nil {
			w.failLocked("SNAPSHOT: %v", err)
		}
		w.count["snapshots checked"]++
	}
	objects, _, _, _ := e.log.Objects(0, 1<<20)
	for _, o := range objects {
		if oldest := e.keeper.Kept()[0]; oldest.Dead[o.Key] && !needed[o.Key] {
			w.failLocked("SPACE: object %d is dead, no snapshot needs it, and it stays", o.Key)
		} else if oldest.Dead[o.Key] {
			w.count["objects held by snapshots"]++
		}
	}
}

// simCompare returns an error if a snapshot does not read as it should.
func simCompare(ctx context.Context, store objproxy.Store, name string, want map[uint64]uint64) error {
	v, err := OpenSnapshot(ctx, Options{Store: store, Log: zerolog.Nop()}, name)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", name, err)
	}
	defer func() { _ = v.Close() }() // it has nothing to lose
	for block, stamp := range want {
		if got, err := simStampAt(ctx, v, block); err != nil || got != stamp {
			return fmt.Errorf("snapshot %s, block %d: write %d, not %d: %w", name, block, got, stamp, err)
		}
	}
	return nil
}
