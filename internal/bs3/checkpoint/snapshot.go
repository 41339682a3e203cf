package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// What making or removing a snapshot may answer. They come wrapped.
var (
	ErrSnapshotExists = errors.New("there is a snapshot of that name")
	ErrNoSnapshot     = errors.New("there is no snapshot of that name")
	ErrMostSnapshots  = errors.New("the volume has as many snapshots as it can have")
)

// Held is what the snapshots of a volume need. It never changes.
type Held struct {
	all     bool            // what one of them needs cannot be read, so it may be anything
	objects []span          // with blocks that a snapshot reads: ascending, apart
	names   map[string]bool // of directories and packs
}

// span is the keys [first, last].
type span struct{ first, last key.Key }

// Object reports whether a snapshot needs object k.
func (h *Held) Object(k key.Key) bool {
	if h.all {
		return true
	}
	_, here := slices.BinarySearchFunc(h.objects, k, func(s span, k key.Key) int {
		switch {
		case k < s.first:
			return 1
		case k > s.last:
			return -1
		}
		return 0
	})
	return here
}

// needs is what one snapshot needs.
type needs struct {
	unknown bool // its directory does not verify
	objects []span
	names   []string
}

func needsOf(c volume.Checkpoint) needs {
	n := needs{names: []string{c.Name}}
	for _, p := range c.Packs {
		n.names = append(n.names, p.Name)
	}
	for _, o := range c.Objects {
		if o.Live == 0 {
			continue
		}
		if last := len(n.objects) - 1; last >= 0 && n.objects[last].last+1 == o.Key {
			n.objects[last].last = o.Key
		} else {
			n.objects = append(n.objects, span{o.Key, o.Key})
		}
	}
	return n
}

// heldBy sums up what snapshots need.
func heldBy(snapshots map[string]needs) *Held {
	h := &Held{names: make(map[string]bool)}
	var all []span
	for _, n := range snapshots {
		h.all = h.all || n.unknown
		all = append(all, n.objects...)
		for _, name := range n.names {
			h.names[name] = true
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	for _, s := range all {
		if last := len(h.objects) - 1; last >= 0 && s.first <= h.objects[last].last+1 {
			h.objects[last].last = max(h.objects[last].last, s.last)
		} else {
			h.objects = append(h.objects, s)
		}
	}
	return h
}

// heldWithin bounds how long Held asks for directories: a store that never returns one
// of them holds up what is deleted, and nothing else.
const heldWithin = time.Minute

// Held takes in the snapshots that the record names, as it is known now, and
// returns what they need. Others add snapshots too, and not without a checkpoint
// that the record names then. So whoever deletes what the kept checkpoints do not
// need calls Held after the record was changed to name these, and Kept before.
// Errors: that of ctx, those of the store; also if it does not answer for a while.
// What was read until then need not be read again.
func (k *Keeper) Held(ctx context.Context) (*Held, error) {
	if err := take(ctx, k.taking); err != nil {
		return nil, err
	}
	defer func() { <-k.taking }()
	ctx, cancel := context.WithTimeoutCause(ctx, heldWithin, fmt.Errorf("no proper answer for %v", heldWithin))
	defer cancel()
	named := k.c.Owner.Snapshots()
	changed := false
	now := make(map[string]bool)
	for _, s := range named {
		if now[s.Directory] {
			continue // of the same state
		}
		now[s.Directory] = true
		if n, known := k.taken[s.Directory]; known && !n.unknown {
			continue
		}
		n, err := k.needsOf(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("read snapshot %s: %w", s.Name, err)
		}
		k.taken[s.Directory] = n
		changed = true
	}
	if before := len(k.taken); before > len(now) {
		maps.DeleteFunc(k.taken, func(directory string, _ needs) bool { return !now[directory] })
		changed = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if changed {
		k.mu.snapshots = heldBy(k.taken)
	}
	return k.mu.snapshots, nil
}

// needsOf reads what s needs: nothing, if the record names it no longer. Where its
// directory does not verify, it is not known.
func (k *Keeper) needsOf(ctx context.Context, s layout.Snapshot) (needs, error) {
	c, damage := volume.ReadCheckpoint(ctx, k.c.Store, k.c.Owner.UUID, s.Directory)
	if damage == nil {
		return needsOf(c), nil
	}
	if !volume.IsDamage(damage) {
		return needs{}, damage
	}
	v, _, err := k.c.Owner.Read(ctx)
	if err != nil {
		return needs{}, err
	}
	if !hasSnapshot(v, s) {
		return needs{}, nil // removed meanwhile
	}
	if !k.taken[s.Directory].unknown {
		k.c.Logger.Error().Err(damage).Str("snapshot", s.Name).Str("name", s.Directory).
			Msg("a snapshot does not verify: nothing is deleted while there is no telling what it needs; look with bs3 fsck, or delete it with bs3 snapshot delete")
	}
	return needs{unknown: true}, nil
}

// HeldAsKnown returns what the snapshots need that Held has taken in last.
func (k *Keeper) HeldAsKnown() *Held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.snapshots
}

// Snapshot keeps the volume as it is now under a name. It stops no I/O. Errors:
// ErrSnapshotExists, ErrMostSnapshots, layout.ErrDamaged for what is no name, and
// those of Write.
func (k *Keeper) Snapshot(ctx context.Context, name string) (layout.Snapshot, error) {
	s := layout.Snapshot{Name: name, Created: time.Now()}
	if err := take(ctx, k.writing); err != nil {
		return s, err
	}
	defer func() { <-k.writing }()
	v, _, err := k.c.Owner.Read(ctx)
	if err != nil {
		return s, err
	}
	if err := admit(v, s); err != nil { // before anything is stored for it
		return s, err
	}
	add := func(v *layout.Volume, directory string) error {
		s.Directory = directory
		return addTo(v, s)
	}
	if kept := k.Kept(); len(kept) > 0 && !k.longer() {
		newest := kept[len(kept)-1].name
		err = k.c.Owner.Change(ctx, func(v *layout.Volume) error { return add(v, newest) })
	} else {
		err = k.write(ctx, add)
	}
	return s, err
}

// admit reports with an error that s cannot be added to v.
func admit(v *layout.Volume, s layout.Snapshot) error {
	if err := layout.CheckSnapshotName(s.Name); err != nil {
		return err
	}
	for _, other := range v.Snapshots {
		if other.Name == s.Name {
			return fmt.Errorf("%w: %s, of %s", ErrSnapshotExists, other.Name, other.Created.Format(time.RFC3339))
		}
	}
	if len(v.Snapshots) >= layout.MaxSnapshots {
		return fmt.Errorf("%w: %d", ErrMostSnapshots, len(v.Snapshots))
	}
	return nil
}

// addTo adds s to v, unless an earlier try has.
func addTo(v *layout.Volume, s layout.Snapshot) error {
	if hasSnapshot(v, s) {
		return nil
	}
	if err := admit(v, s); err != nil {
		return err
	}
	v.Snapshots = append(v.Snapshots, s)
	return nil
}

// hasSnapshot reports whether v names the very snapshot s.
func hasSnapshot(v *layout.Volume, s layout.Snapshot) bool {
	return slices.ContainsFunc(v.Snapshots, func(o layout.Snapshot) bool {
		return o.Name == s.Name && o.Directory == s.Directory && o.Created.Equal(s.Created)
	})
}

// RemoveSnapshot removes a snapshot: what only it needed can be deleted then.
// Errors: ErrNoSnapshot, volume.ErrFenced, that of ctx, those of the store.
func (k *Keeper) RemoveSnapshot(ctx context.Context, name string) error {
	if err := take(ctx, k.writing); err != nil {
		return err
	}
	defer func() { <-k.writing }()
	var d drop
	var named []string
	err := k.c.Owner.Change(ctx, func(v *layout.Volume) error {
		named = slices.Clone(v.Checkpoints)
		return d.from(v, name)
	})
	if err != nil {
		return err
	}
	// A checkpoint may be named of which Write does not know that it was committed.
	if kept := k.Kept(); slices.EqualFunc(kept, named, func(k Kept, name string) bool { return k.name == name }) {
		k.committed(kept) // nothing is under way, so what no checkpoint needs now is left behind
	}
	return d.sweep(ctx, k.c.Store)
}

// drop takes one snapshot out of records.
type drop struct {
	gone   layout.Snapshot // that was found the first time
	shared bool            // another snapshot has its directory
}

// from takes the snapshot of that name out of v. In a later try it may be gone
// already, or be another one.
func (d *drop) from(v *layout.Volume, name string) error {
	i := slices.IndexFunc(v.Snapshots, func(s layout.Snapshot) bool { return s.Name == name })
	switch {
	case d.gone.Name == "" && i < 0:
		return fmt.Errorf("%w: %s", ErrNoSnapshot, name)
	case d.gone.Name == "":
		d.gone = v.Snapshots[i]
	case !hasSnapshot(v, d.gone):
		return nil
	}
	v.Snapshots = slices.Delete(v.Snapshots, i, i+1)
	d.shared = slices.ContainsFunc(v.Snapshots, func(s layout.Snapshot) bool { return s.Directory == d.gone.Directory })
	return nil
}

// sweep deletes what was stored for the snapshot alone; what it shared with
// checkpoints is the writer's to delete.
func (d *drop) sweep(ctx context.Context, store objproxy.Store) error {
	if d.shared {
		return nil
	}
	if err := sweepSnapshot(ctx, store, d.gone.Directory); err != nil {
		return fmt.Errorf("snapshot %s is removed, but not all that was stored for it: %w", d.gone.Name, err)
	}
	return nil
}

func sweepSnapshot(ctx context.Context, store objproxy.Store, directory string) error {
	_, nonce, notOutside := layout.ParseSnapshotName(directory)
	if notOutside != nil {
		return nil //nolint:nilerr // it is a checkpoint
	}
	if err := store.Delete(ctx, []string{directory}); err != nil {
		return fmt.Errorf("delete %s: %w", directory, err)
	}
	own := layout.SnapshotPackPrefix(nonce)
	return volume.List(ctx, store, own, func(page []objproxy.Info) error {
		packs := make([]string, len(page))
		for i, p := range page {
			packs[i] = p.Name
		}
		if err := store.Delete(ctx, packs); err != nil {
			return fmt.Errorf("delete packs in %s: %w", own, err)
		}
		return nil
	})
}
