package fsck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// readKept reads the directories of the checkpoints that the record names, and
// checks what can be said of them without their leaves.
func (f *check) readKept(ctx context.Context) error {
	for _, name := range f.v.Checkpoints {
		c, err := volume.ReadCheckpoint(ctx, f.store, f.v.UUID, name)
		switch {
		case errors.Is(err, objproxy.ErrNotFound):
			if err := f.lost(ctx, name, name); err != nil {
				return err
			}
			continue
		case volume.IsDamage(err):
			f.found(SeverityError, KindCheckpoint, name, "%w", err)
			continue
		case err != nil:
			return fmt.Errorf("checkpoint %s: %w", name, err)
		}
		if blocks := uint64(f.v.Size) / uint64(f.v.BlockSize); c.BlockSize != f.v.BlockSize || c.Blocks != blocks {
			f.found(SeverityError, KindCheckpoint, name, "it has %d blocks of %d bytes, the volume %d of %d", c.Blocks, c.BlockSize, blocks, f.v.BlockSize)
			continue
		}
		f.checkTable(c)
		f.kept = append(f.kept, c)
	}
	return nil
}

// lost reports a checkpoint, or a pack of one, that is not there, unless the record
// names others by now: volume.ErrMoved.
func (f *check) lost(ctx context.Context, checkpoint, name string) error {
	moved, err := f.moved(ctx, !slices.Contains(f.v.Checkpoints, checkpoint))
	if err != nil {
		return err
	}
	if moved {
		return volume.ErrMoved
	}
	f.found(SeverityError, KindMissing, name, "it is needed and not there")
	return nil
}

// checkTable checks the object table of c and its place among the others.
func (f *check) checkTable(c volume.Checkpoint) {
	wrong := func(format string, args ...any) { f.found(SeverityError, KindCheckpoint, c.Name, format, args...) }
	if c.KeyEpoch > c.Epoch || c.Epoch > f.v.Epoch {
		wrong("object %d has epoch %d, the checkpoint %d, the volume %d", c.Key, c.KeyEpoch, c.Epoch, f.v.Epoch)
	}
	if n := len(f.kept); n > 0 {
		if before := f.kept[n-1]; before.KeyEpoch > c.KeyEpoch || before.NextSeq > c.NextSeq {
			wrong("it is at epoch %d and write %d, but %s before it at %d and %d", c.KeyEpoch, c.NextSeq, before.Name, before.KeyEpoch, before.NextSeq)
		}
	}
	f.checkEpochs(c, KindCheckpoint)
}

// checkEpochs checks the order of the epochs in the object table of c.
func (f *check) checkEpochs(c volume.Checkpoint, kind Kind) {
	wrong := func(format string, args ...any) { f.found(SeverityError, kind, c.Name, format, args...) }
	var epoch uint64
	for _, o := range c.Objects {
		switch {
		case o.Epoch < epoch || o.Epoch > c.KeyEpoch:
			wrong("object %d has epoch %d, the one before it %d, the last one %d", o.Key, o.Epoch, epoch, c.KeyEpoch)
		case o.Fence != (o.Epoch > epoch):
			wrong("object %d of epoch %d, after one of %d: fence %t", o.Key, o.Epoch, epoch, o.Fence)
		}
		epoch = o.Epoch
	}
	if epoch != c.KeyEpoch {
		wrong("its last fence is of epoch %d, not %d", epoch, c.KeyEpoch)
	}
}

// checkLeaves reads all leaves of c, checks them against the object table, and
// calls visit for each that can be used, several at a time. intact: that was
// every one of them; counted: the live counts of the table are theirs.
func (f *check) checkLeaves(ctx context.Context, c volume.Checkpoint, visit func(leaf int, entries []layout.Location)) (intact, counted bool, err error) {
	f.begin("checkpoint "+c.Name, len(c.Packs))
	check := leafCheck{f: f, c: c, live: make([]atomic.Uint32, len(c.Objects)), places: places(c)}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(volume.Loaders)
	for i, leaves := range c.LeavesByPack() {
		group.Go(func() error {
			defer f.step()
			return check.pack(ctx, c.Packs[i], leaves, visit)
		})
	}
	if err := group.Wait(); err != nil {
		return false, false, err
	}
	if check.damaged.Load() {
		return false, false, nil
	}
	counted = true
	for i, o := range c.Objects {
		if live := check.live[i].Load(); live != o.Live {
			f.found(SeverityError, KindLive, c.Name, "object %d has %d live blocks, the object table says %d", o.Key, live, o.Live)
			counted = false
		}
	}
	return true, counted, nil
}

// leafCheck is a pass over the leaves of a checkpoint.
type leafCheck struct {
	f       *check
	c       volume.Checkpoint
	live    []atomic.Uint32 // blocks found, by place in the object table
	places  []uint32        // see places
	damaged atomic.Bool
}

// places returns for each key one more than its place in the object table of c:
// a scattered map asks for one with every block. It is nil for a log so long
// that it would be large.
func places(c volume.Checkpoint) []uint32 {
	const most = 16 << 20
	if c.Key >= most {
		return nil
	}
	p := make([]uint32, c.Key+1)
	for i, o := range c.Objects {
		p[o.Key] = uint32(i) + 1
	}
	return p
}

// place finds object k in the object table.
func (s *leafCheck) place(k key.Key) (i int, here bool) {
	switch {
	case s.places == nil:
		return slices.BinarySearchFunc(s.c.Objects, k, func(o layout.ObjectInfo, k key.Key) int { return cmp.Compare(o.Key, k) })
	case k > s.c.Key:
		return 0, false
	}
	return int(s.places[k]) - 1, s.places[k] > 0
}

func (s *leafCheck) pack(ctx context.Context, p layout.PackRef, leaves []layout.LeafRef, visit func(int, []layout.Location)) error {
	b, err := volume.ReadPack(ctx, s.f.store, s.f.v.UUID, p, leaves, nil)
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		s.damaged.Store(true)
		return s.f.lost(ctx, s.c.Name, p.Name)
	case volume.IsDamage(err):
		s.damaged.Store(true)
		s.f.found(SeverityError, KindPack, p.Name, "%w", err)
		return nil
	case err != nil:
		return err
	}
	entries := make([]layout.Location, layout.LeafBlocks)
	for _, l := range leaves {
		err := volume.DecodeLeaf(b, l, entries)
		if err == nil {
			err = s.leaf(l.Leaf, entries)
		}
		if err != nil {
			s.damaged.Store(true)
			s.f.found(SeverityError, KindPack, p.Name, "%w", err)
			continue
		}
		visit(int(l.Leaf), entries)
	}
	return nil
}

// leaf counts the blocks of one leaf, all of which must lie in objects of the
// table.
func (s *leafCheck) leaf(leaf uint32, entries []layout.Location) error {
	first := uint64(leaf) * layout.LeafBlocks
	for i := 0; i < len(entries); {
		loc, n := entries[i], 1
		if !loc.Mapped() {
			i++
			continue
		}
		for i+n < len(entries) && entries[i+n] == loc.Add(uint32(n)) && entries[i+n].Key() == loc.Key() {
			n++
		}
		at, here := s.place(loc.Key())
		switch {
		case !here:
			return fmt.Errorf("leaf %d: block %d lies in %v, which is not in the object table", leaf, first+uint64(i), loc)
		case uint64(loc.Index())+uint64(n) > uint64(s.c.Objects[at].Total):
			return fmt.Errorf("leaf %d: block %d lies in %v, which has %d blocks", leaf, first+uint64(i), loc.Add(uint32(n-1)), s.c.Objects[at].Total)
		case first+uint64(i+n) > s.c.Blocks:
			return fmt.Errorf("leaf %d: block %d is mapped, the volume has %d", leaf, first+uint64(i+n-1), s.c.Blocks)
		}
		s.live[at].Add(uint32(n))
		i += n
	}
	return nil
}

// compare checks c against the map that the log has made up to its key. same:
// no difference was found; intact and counted as of checkLeaves.
func (f *check) compare(ctx context.Context, c volume.Checkpoint, maps *mapproxy.Proxy, older *volume.Checkpoint) (same, intact bool, err error) {
	seen := make([]bool, (maps.Blocks()+layout.LeafBlocks-1)/layout.LeafBlocks)
	var differs atomic.Bool
	intact, _, err = f.checkLeaves(ctx, c, func(leaf int, entries []layout.Location) {
		seen[leaf] = true
		if f.compareLeaf(c, leaf, entries, maps) {
			differs.Store(true)
		}
	})
	if err != nil || !intact {
		return false, false, err
	}
	empty := make([]layout.Location, layout.LeafBlocks)
	for leaf := range seen {
		if !seen[leaf] && f.compareLeaf(c, leaf, empty, maps) {
			differs.Store(true)
		}
	}
	if f.compareTable(c, maps, older) {
		differs.Store(true)
	}
	return !differs.Load(), true, nil
}

// compareLeaf reports where one leaf differs from the map.
func (f *check) compareLeaf(c volume.Checkpoint, leaf int, entries []layout.Location, maps *mapproxy.Proxy) (differs bool) {
	first := uint64(leaf) * layout.LeafBlocks
	at, blocks := uint64(0), 0
	for i := range min(layout.LeafBlocks, maps.Blocks()-first) {
		if maps.Get(first+i) != entries[i] {
			if blocks == 0 {
				at = i
			}
			blocks++
		}
	}
	if blocks == 0 {
		return false
	}
	f.found(SeverityError, KindMap, c.Name, "leaf %d: %d blocks are not where the log puts them, first block %d: %v, by the log %v",
		leaf, blocks, first+at, entries[at], maps.Get(first+at))
	return true
}

// compareTable reports where the object table of c differs from that which the
// log makes: it may lack only what was dead in the checkpoint before it.
func (f *check) compareTable(c volume.Checkpoint, maps *mapproxy.Proxy, older *volume.Checkpoint) (differs bool) {
	wrong := func(format string, args ...any) {
		differs = true
		f.found(SeverityError, KindLive, c.Name, format, args...)
	}
	for _, o := range c.Objects {
		if made, here := maps.Object(o.Key); !here {
			wrong("object %d is in the object table, but not in the log", o.Key)
		} else if made != o {
			wrong("object %d is %s in the object table, by the log %s", o.Key, describe(o), describe(made))
		}
	}
	const step = 4096
	for from, more := key.Key(0), true; more; from += step {
		var some []layout.ObjectInfo
		some, more = maps.Objects(from, step)
		for _, o := range some {
			if _, here := c.Object(o.Key); here {
				continue
			}
			given := older == nil
			if older != nil {
				was, here := older.Object(o.Key)
				given = o.Key <= older.Key && (!here || was.Live == 0)
			}
			if o.Fence || o.Live > 0 || !given {
				wrong("object %d (%s) is not in the object table", o.Key, describe(o))
			}
		}
	}
	return differs
}

func describe(o layout.ObjectInfo) string {
	if o.Fence {
		return fmt.Sprintf("the fence of epoch %d", o.Epoch)
	}
	return fmt.Sprintf("of epoch %d with %d of %d blocks live", o.Epoch, o.Live, o.Total)
}

// laterKept is what the record named when something was not there any more.
type laterKept struct {
	names []string
	older *volume.Checkpoint // nil with fewer than two
}

// givenBack reports whether an object that is not there could be deleted: the
// older of the two checkpoints that are kept by now does not need it.
func (f *check) givenBack(ctx context.Context, k key.Key) (bool, error) {
	for range volume.MostRestarts {
		v, _, err := volume.ReadRecord(ctx, f.store)
		switch {
		case err != nil:
			return false, err
		case v.UUID != f.v.UUID || v.Deleted:
			return false, volume.ErrMoved
		case slices.Equal(v.Checkpoints, f.v.Checkpoints):
			return false, nil
		case len(v.Checkpoints) < layout.MaxCheckpoints:
			return false, nil // then nothing is deleted
		}
		f.mu.Lock()
		later := f.later
		f.mu.Unlock()
		if !slices.Equal(later.names, v.Checkpoints) {
			c, err := volume.ReadCheckpoint(ctx, f.store, v.UUID, v.Checkpoints[0])
			switch {
			case errors.Is(err, objproxy.ErrNotFound):
				continue // replaced again; if not, the next look finds the same names
			case volume.IsDamage(err):
				return false, nil // and nothing may be deleted on its strength
			case err != nil:
				return false, err
			}
			later = laterKept{v.Checkpoints, &c}
			f.mu.Lock()
			f.later = later
			f.mu.Unlock()
		}
		o, here := later.older.Object(k)
		return k <= later.older.Key && (!here || o.Live == 0 && !o.Fence), nil
	}
	return false, volume.ErrMoved
}
