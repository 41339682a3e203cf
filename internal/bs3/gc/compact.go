package gc

import (
	"context"
	"errors"
	"fmt"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// compaction lays out live blocks of several objects as the data of a new one.
// It holds no key until it is complete: a slow read holds nobody up.
type compaction struct {
	g      *Collector
	slot   *wlog.Slot    // nil while it is empty
	moves  []volume.Move // by data index
	since  int           // blocks looked at since the foreground had its turn
	seq    uint64        // the log when it had
	report Report
}

// Compact writes the live blocks of the objects again, so that nothing of them
// is live any more. Objects that cannot be read, or do not verify, stay as they
// are and in charge. Only Run, or a test in its place, may call it. Errors:
// device.ErrStopped, that of ctx, those of the store.
func (g *Collector) Compact(ctx context.Context, objects []layout.ObjectInfo) (Report, error) {
	c := &compaction{g: g}
	defer c.drop()
	for _, o := range objects {
		err := c.addObject(ctx, o.Key)
		switch {
		case err == nil:
			c.report.Compacted++
		case ctx.Err() != nil:
			return c.report, context.Cause(ctx)
		case volume.IsDamage(err):
			c.report.FailedReads++
			g.unmovable[o.Key] = true
			g.c.Logger.Error().Err(err).Uint64("key", uint64(o.Key)).Msg("an object cannot be compacted: it stays as it is")
		default:
			return c.report, err
		}
	}
	c.install()
	return c.report, nil
}

// addObject lays out the live blocks of one object. An answer that is not what
// was written is asked for once more: what it had of it lies there twice then,
// and is moved once.
func (c *compaction) addObject(ctx context.Context, k key.Key) error {
	err := c.tryObject(ctx, k)
	if volume.IsUnreadable(err) {
		c.g.c.Logger.Warn().Err(err).Msg("the store returned other bytes than were written; asking once more")
		err = c.tryObject(ctx, k)
	}
	return err
}

func (c *compaction) tryObject(ctx context.Context, k key.Key) error {
	o, data, err := c.g.readObject(ctx, k)
	if errors.Is(err, objproxy.ErrNotFound) && !c.g.c.Log.Live(k) {
		return nil // it died, and was deleted, meanwhile
	}
	if err != nil {
		return err
	}
	checks, stride := layout.NewChecks(o.UUID, k), layout.Stride(c.g.c.BlockSize)
	for _, r := range o.Records {
		if r.Kind == layout.KindZero {
			continue
		}
		for i := range r.Blocks {
			index := r.Index + i
			m := volume.Move{Block: r.Block + uint64(i), Source: layout.Loc(k, index)}
			if c.g.c.Map.Get(m.Block) != m.Source {
				continue
			}
			stored := data[int(index)*stride:][:stride]
			var ok bool
			if m.CRC, ok = checks.Verify(index, stored); !ok {
				return volume.WrongBlock(k, index, m.Block)
			}
			if err := c.add(ctx, m, stored[:c.g.c.BlockSize]); err != nil {
				return err
			}
		}
	}
	return c.giveWay(ctx, int(o.Blocks))
}

// readObject reads a whole object of the log below the durable key.
func (g *Collector) readObject(ctx context.Context, k key.Key) (*layout.Object, []byte, error) {
	b := make([]byte, g.c.ChunkBlocks*layout.Stride(g.c.BlockSize)+layout.MaxTailSize(g.c.ChunkBlocks))
	n, info, err := g.c.Store.Get(ctx, k.Name(), b, -1)
	if err != nil {
		return nil, nil, fmt.Errorf("read object %d (%s): %w", k, k.Name(), err)
	}
	o, err := layout.DecodeTail(b[:n], info.Size)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("object %d (%s): %w", k, k.Name(), err)
	case o.UUID != g.c.UUID || o.Key != k || int64(n) != info.Size:
		return nil, nil, fmt.Errorf("object %d (%s): %w: it is object %d of volume %s, of %d bytes", k, k.Name(), layout.ErrDamaged, o.Key, o.UUID, info.Size)
	}
	if err := volume.Fits(o, g.c.BlockSize, g.c.Map.Blocks()); err != nil {
		return nil, nil, err
	}
	return o, b[:o.DataSize()], nil
}

// add lays out one block, and installs what there is when it is full.
func (c *compaction) add(ctx context.Context, m volume.Move, data []byte) error {
	if c.slot == nil {
		var err error
		if c.slot, err = c.g.c.Log.Slot(ctx); err != nil {
			return err
		}
	}
	c.slot.Lay(uint32(len(c.moves)), data)
	c.moves = append(c.moves, m)
	if len(c.moves) == c.g.c.ChunkBlocks {
		c.install()
	}
	return nil
}

// install makes the layout an object of the log.
func (c *compaction) install() {
	if c.slot == nil {
		return
	}
	c.report.MovedBytes += int64(c.g.c.Log.Rewrite(c.slot, c.moves)) * int64(c.g.c.BlockSize)
	c.slot, c.moves = nil, c.moves[:0]
}

// drop gives back what an interrupted compaction holds.
func (c *compaction) drop() {
	if c.slot != nil {
		c.g.c.Log.Drop(c.slot)
		c.slot = nil
	}
}

// giveWay lets the foreground have its turn after some blocks: a while if it
// is busy, none if it is not.
func (c *compaction) giveWay(ctx context.Context, blocks int) error {
	c.since += blocks
	if c.since < c.g.c.Step {
		return nil
	}
	c.since = 0
	seq, _ := c.g.c.Log.Activity()
	seq += c.g.c.Misses()
	busy := seq != c.seq
	c.seq = seq
	if !busy || c.g.c.IdleTimeout <= 0 {
		return nil
	}
	return objproxy.Sleep(ctx, c.g.c.IdleTimeout)
}
