package volume

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
)

// Checkpoint is the directory of a checkpoint, and its name.
type Checkpoint struct {
	Name string
	*layout.Checkpoint
}

// Object returns what the checkpoint's object table says of object k, and
// whether it is there.
func (c Checkpoint) Object(k key.Key) (layout.ObjectInfo, bool) {
	i, here := slices.BinarySearchFunc(c.Objects, k, func(o layout.ObjectInfo, k key.Key) int { return cmp.Compare(o.Key, k) })
	if !here {
		return layout.ObjectInfo{}, false
	}
	return c.Objects[i], true
}

// LeavesByPack returns the leaves of the checkpoint that lie in each of its
// packs.
func (c Checkpoint) LeavesByPack() [][]layout.LeafRef {
	byPack := make([][]layout.LeafRef, len(c.Packs))
	for _, l := range c.Leaves {
		byPack[l.Pack] = append(byPack[l.Pack], l)
	}
	return byPack
}

// ReadCheckpoint reads the directory of one checkpoint of volume uuid, or of a
// snapshot that was made without an epoch. An answer
// that does not verify counts if it is given again. Errors: objproxy.ErrNotFound,
// those of layout, those of the store.
func ReadCheckpoint(ctx context.Context, store objproxy.Store, uuid layout.UUID, name string) (c Checkpoint, err error) {
	err = untorn(ctx, func() (err error) {
		c, err = readCheckpoint(ctx, store, uuid, name)
		return err
	})
	return c, err
}

func readCheckpoint(ctx context.Context, store objproxy.Store, uuid layout.UUID, name string) (Checkpoint, error) {
	b, _, err := ReadAll(ctx, store, name)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := layout.DecodeCheckpoint(b)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.UUID != uuid || !called(c, name) {
		return Checkpoint{}, fmt.Errorf("%w: it is of volume %s, key %d, epoch %d, writer %s", layout.ErrDamaged, c.UUID, c.Key, c.Epoch, c.Nonce)
	}
	return Checkpoint{name, c}, nil
}

// called reports whether name is one that c can have.
func called(c *layout.Checkpoint, name string) bool {
	if k, epoch, _, err := layout.ParseCheckpointName(name); err == nil {
		return c.Key == k && c.Epoch == epoch
	}
	k, nonce, err := layout.ParseSnapshotName(name)
	return err == nil && c.Key == k && c.Nonce == nonce
}

// Apply applies obj, the next object of the log, whose first sequence number must be
// seq, to maps. It returns the sequence number that comes next. Error: layout.ErrDamaged,
// and nothing is applied.
func Apply(maps *mapproxy.Proxy, seq uint64, obj *layout.Object, blockSize int) (next uint64, err error) {
	if err := Fits(obj, blockSize, maps.Blocks()); err != nil {
		return seq, err
	}
	if obj.FirstSeq != seq {
		return seq, fmt.Errorf("object %d: %w: sequence number %d where %d is next", obj.Key, layout.ErrDamaged, obj.FirstSeq, seq)
	}
	maps.Apply(obj)
	return obj.NextSeq(), nil
}

// Loaders is how many packs are read and decoded at a time.
const Loaders = 8

// LoadMap loads one checkpoint of volume uuid into maps, which is empty.
// Errors: those of ReadCheckpoint and ReadPack.
func LoadMap(ctx context.Context, store objproxy.Store, uuid layout.UUID, name string, maps *mapproxy.Proxy) (Checkpoint, error) {
	c, err := ReadCheckpoint(ctx, store, uuid, name)
	if err != nil {
		return c, err
	}
	if c.Blocks != maps.Blocks() {
		return c, fmt.Errorf("%w: it has %d blocks, the volume %d", layout.ErrDamaged, c.Blocks, maps.Blocks())
	}
	for _, o := range c.Objects {
		maps.AddObject(o)
	}
	// Leaves are loaded beside each other: each fills a place of its own. The
	// buffers are used again, or they would take as much memory as the map.
	buffers := make(chan []byte, Loaders)
	for range Loaders {
		buffers <- nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(Loaders)
	for i, leaves := range c.LeavesByPack() {
		group.Go(func() error {
			buf := <-buffers
			defer func() { buffers <- buf }()
			buf = slices.Grow(buf[:0], int(min(c.Packs[i].Size, MaxRead)))
			return loadPack(ctx, store, uuid, c.Packs[i], leaves, maps, buf)
		})
	}
	if err := group.Wait(); err != nil {
		return c, err
	}
	return c, nil
}

// loadPack fills the leaves that lie in one pack, which it reads into buf.
func loadPack(ctx context.Context, store objproxy.Store, uuid layout.UUID, p layout.PackRef, leaves []layout.LeafRef, maps *mapproxy.Proxy, buf []byte) error {
	b, err := ReadPack(ctx, store, uuid, p, leaves, buf)
	if err != nil {
		return err
	}
	entries := make([]layout.Location, layout.LeafBlocks)
	for _, l := range leaves {
		if err := DecodeLeaf(b, l, entries); err != nil {
			return fmt.Errorf("pack %s: %w", p.Name, err)
		}
		if err := maps.LoadLeaf(int(l.Leaf), entries); err != nil {
			return fmt.Errorf("pack %s: %w: %w", p.Name, layout.ErrDamaged, err)
		}
	}
	return nil
}

// ReadPack reads one pack, which has the size that p says, into buf if that is
// large enough, and verifies the leaves. An answer that does not verify counts if
// it is given again. Errors: objproxy.ErrNotFound, those of layout, those of the
// store.
func ReadPack(ctx context.Context, store objproxy.Store, uuid layout.UUID, p layout.PackRef, leaves []layout.LeafRef, buf []byte) (b []byte, err error) {
	if p.Size > MaxRead {
		return nil, fmt.Errorf("pack %s: %w: %d bytes", p.Name, layout.ErrDamaged, p.Size)
	}
	b = slices.Grow(buf[:0], int(p.Size))[:p.Size]
	err = untorn(ctx, func() error {
		n, info, err := store.Get(ctx, p.Name, b, -1)
		if err != nil {
			return fmt.Errorf("read %s: %w", p.Name, err)
		}
		if n != len(b) || info.Size != int64(n) {
			return fmt.Errorf("pack %s: %w: %d bytes of %d, not %d", p.Name, layout.ErrDamaged, n, info.Size, p.Size)
		}
		if err := layout.CheckPackHeader(b, uuid); err != nil {
			return fmt.Errorf("pack %s: %w", p.Name, err)
		}
		for _, l := range leaves {
			if err := l.Verify(b[l.Offset : l.Offset+uint64(l.Length)]); err != nil {
				return fmt.Errorf("pack %s: %w", p.Name, err)
			}
		}
		return nil
	})
	return b, err
}

// DecodeLeaf decodes into entries the leaf that lies in pack b at l, which
// ReadPack has verified. Errors: those of layout.
func DecodeLeaf(b []byte, l layout.LeafRef, entries []layout.Location) error {
	if err := layout.DecodeLeaf(b[l.Offset:l.Offset+uint64(l.Length)], entries); err != nil {
		return fmt.Errorf("leaf %d: %w", l.Leaf, err)
	}
	return nil
}

// Reach returns a key that the log ends at or above: the record names no
// checkpoint before all that it holds is in the store.
func Reach(v *layout.Volume) (end key.Key) {
	for _, name := range v.Checkpoints {
		k, _, _, _ := layout.ParseCheckpointName(name) // the record was checked
		end = max(end, k+1)
	}
	return end
}

// Passed reports whether now names a checkpoint at or above key k that v does
// not.
func Passed(now, v *layout.Volume, k key.Key) bool {
	return slices.ContainsFunc(now.Checkpoints, func(name string) bool {
		at, _, _, _ := layout.ParseCheckpointName(name) // the record was checked
		return at >= k && !slices.Contains(v.Checkpoints, name)
	})
}
