package bs3

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
)

// loadCheckpoint fills the map from the newest checkpoint that verifies among
// those the record names, and says where the log goes on. None verifying is an
// error if any is named: the log before them may be gone.
func (e *Engine) loadCheckpoint(ctx context.Context, v *layout.Volume) (position, error) {
	e.seq = 1
	if len(v.Checkpoints) == 0 {
		return position{}, nil
	}
	var damage []error
	for i := len(v.Checkpoints) - 1; i >= 0; i-- {
		name := v.Checkpoints[i]
		c, err := loadMap(ctx, e.store, e.uuid, name, e.maps)
		if err == nil && int(c.BlockSize) != e.blockSize {
			err = fmt.Errorf("%w: it has blocks of %d bytes, the volume of %d", layout.ErrDamaged, c.BlockSize, e.blockSize)
		}
		if err == nil {
			e.seq = c.NextSeq
			e.leaves = leavesOf(c, int((e.maps.Blocks()+layout.LeafBlocks-1)/layout.LeafBlocks))
			if err := e.keepFrom(ctx, v.Checkpoints[:i], name, c); err != nil {
				return position{}, err
			}
			return position{c.Key + 1, c.KeyEpoch}, nil
		}
		if !isDamage(err) {
			return position{}, fmt.Errorf("read checkpoint %s: %w", name, err)
		}
		e.log.Error().Err(err).Str("name", name).Msg("a checkpoint does not verify")
		damage = append(damage, fmt.Errorf("%s: %w", name, err))
		e.maps = mapproxy.New(e.maps.Blocks()) // it may be half full
	}
	return position{}, fmt.Errorf("%w: no checkpoint of the volume verifies, and the log before them may be gone: %w", ErrRefused, errors.Join(damage...))
}

// keepFrom notes which checkpoints count as kept: the loaded one, and those
// before it whose directory verifies.
func (e *Engine) keepFrom(ctx context.Context, older []string, name string, c *layout.Checkpoint) error {
	for _, n := range older {
		before, err := readCheckpoint(ctx, e.store, e.uuid, n)
		if isDamage(err) {
			e.log.Error().Err(err).Str("name", n).Msg("a checkpoint does not verify")
			continue
		}
		if err != nil {
			return fmt.Errorf("read checkpoint %s: %w", n, err)
		}
		e.kept = append(e.kept, newKept(n, before))
	}
	e.kept = append(e.kept, newKept(name, c))
	return nil
}

// isDamage says whether err is an answer about the object itself, rather than
// a failure to get it.
func isDamage(err error) bool {
	return errors.Is(err, objproxy.ErrNotFound) || errors.Is(err, layout.ErrDamaged) || errors.Is(err, layout.ErrMagic) || errors.Is(err, layout.ErrVersion)
}

// readCheckpoint reads the directory of one checkpoint.
func readCheckpoint(ctx context.Context, store objproxy.Store, uuid layout.UUID, name string) (*layout.Checkpoint, error) {
	b, _, err := readAll(ctx, store, name)
	if err != nil {
		return nil, err
	}
	c, err := layout.DecodeCheckpoint(b)
	if err != nil {
		return nil, err
	}
	k, epoch, _, err := layout.ParseCheckpointName(name)
	if err != nil {
		return nil, err
	}
	if c.UUID != uuid || c.Key != k || c.Epoch != epoch {
		return nil, fmt.Errorf("%w: it is of volume %s, key %d, epoch %d", layout.ErrDamaged, c.UUID, c.Key, c.Epoch)
	}
	return c, nil
}

// loadMap loads one checkpoint into maps, which is empty.
func loadMap(ctx context.Context, store objproxy.Store, uuid layout.UUID, name string, maps *mapproxy.Proxy) (*layout.Checkpoint, error) {
	c, err := readCheckpoint(ctx, store, uuid, name)
	if err != nil {
		return nil, err
	}
	if c.Blocks != maps.Blocks() {
		return nil, fmt.Errorf("%w: it has %d blocks, the volume %d", layout.ErrDamaged, c.Blocks, maps.Blocks())
	}
	for _, o := range c.Objects {
		maps.AddObject(o)
	}
	byPack := make([][]layout.LeafRef, len(c.Packs))
	for _, l := range c.Leaves {
		byPack[l.Pack] = append(byPack[l.Pack], l)
	}
	// Leaves are loaded beside each other: each fills a place of its own. The
	// buffers are used again, or they would take as much memory as the map.
	buffers := make(chan []byte, loaders)
	for range loaders {
		buffers <- nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(loaders)
	for i, leaves := range byPack {
		group.Go(func() error {
			buf := <-buffers
			defer func() { buffers <- buf }()
			buf = slices.Grow(buf[:0], int(min(c.Packs[i].Size, maxRead)))
			return loadPack(ctx, store, uuid, c.Packs[i], leaves, maps, buf)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return c, nil
}

// loaders is how many packs are read and decoded at a time.
const loaders = 8

// loadPack fills the leaves that lie in one pack, which it reads into buf.
func loadPack(ctx context.Context, store objproxy.Store, uuid layout.UUID, p layout.PackRef, leaves []layout.LeafRef, maps *mapproxy.Proxy, buf []byte) error {
	b, err := readPack(ctx, store, uuid, p, buf)
	if err != nil {
		return err
	}
	entries := make([]layout.Location, layout.LeafBlocks)
	for _, l := range leaves {
		if err := decodeLeaf(b, l, entries); err != nil {
			return fmt.Errorf("pack %s: %w", p.Name, err)
		}
		if err := maps.LoadLeaf(int(l.Leaf), entries); err != nil {
			return fmt.Errorf("pack %s: %w: %w", p.Name, layout.ErrDamaged, err)
		}
	}
	return nil
}

// readPack reads one pack, which has the size that p says, into buf if that is
// large enough.
func readPack(ctx context.Context, store objproxy.Store, uuid layout.UUID, p layout.PackRef, buf []byte) ([]byte, error) {
	if p.Size > maxRead {
		return nil, fmt.Errorf("pack %s: %w: %d bytes", p.Name, layout.ErrDamaged, p.Size)
	}
	b := slices.Grow(buf[:0], int(p.Size))[:p.Size]
	n, info, err := store.Get(ctx, p.Name, b, -1)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Name, err)
	}
	if n != len(b) || info.Size != int64(n) {
		return nil, fmt.Errorf("pack %s: %w: %d bytes, not %d", p.Name, layout.ErrDamaged, info.Size, p.Size)
	}
	if err := layout.CheckPackHeader(b, uuid); err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.Name, err)
	}
	return b, nil
}

// decodeLeaf reads the leaf that lies in pack b at l.
func decodeLeaf(b []byte, l layout.LeafRef, entries []layout.Location) error {
	encoded := b[l.Offset : l.Offset+uint64(l.Length)]
	if err := l.Verify(encoded); err != nil {
		return err
	}
	if err := layout.DecodeLeaf(encoded, entries); err != nil {
		return fmt.Errorf("leaf %d: %w", l.Leaf, err)
	}
	return nil
}
