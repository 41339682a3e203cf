package bs3

import (
	"context"
	"errors"
	"fmt"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/wlog"
)

// move is a live block that is about to be written again.
type move struct {
	block  uint64
	source layout.Location
	crc    uint32
}

// compaction lays out live blocks of several objects as the data of a new one.
// It holds no key until it is complete: a slow read holds nobody up.
type compaction struct {
	e      *Engine
	slot   *wlog.Slot // nil while it is empty
	moves  []move     // by data index
	since  int        // blocks looked at since the foreground had its turn
	seq    uint64     // the log when it had
	report GCReport
}

// compact writes the live blocks of the objects again, so that nothing of them
// is live any more. Objects that can not be read, or do not verify, stay as
// they are and in charge.
func (e *Engine) compact(ctx context.Context, objects []layout.ObjectInfo) (GCReport, error) {
	c := &compaction{e: e}
	defer c.drop()
	for _, o := range objects {
		err := c.addObject(ctx, o.Key)
		switch {
		case err == nil:
			c.report.Compacted++
		case ctx.Err() != nil:
			return c.report, context.Cause(ctx)
		case isDamage(err):
			c.report.FailedReads++
			e.unmovable[o.Key] = true
			e.log.Error().Err(err).Uint64("key", uint64(o.Key)).Msg("an object can not be compacted: it stays as it is")
		default:
			return c.report, err
		}
	}
	c.install()
	return c.report, nil
}

// addObject lays out the live blocks of one object.
func (c *compaction) addObject(ctx context.Context, k key.Key) error {
	o, data, err := c.e.readObject(ctx, k)
	if errors.Is(err, objproxy.ErrNotFound) && !c.e.live(k) {
		return nil // it died, and was deleted, meanwhile
	}
	if err != nil {
		return err
	}
	bs := c.e.blockSize
	for _, r := range o.Records {
		if r.Kind == layout.KindZero {
			continue
		}
		for i := range r.Blocks {
			index := r.Index + i
			source := layout.Loc(k, index)
			if c.e.maps.Get(r.Block+uint64(i)) != source {
				continue
			}
			block := data[int(index)*bs:][:bs]
			if err := o.VerifyBlock(int(index), block); err != nil {
				return err
			}
			if err := c.add(ctx, move{r.Block + uint64(i), source, o.CRCs[index]}, block); err != nil {
				return err
			}
		}
	}
	return c.giveWay(ctx, len(o.CRCs))
}

// live says whether the table counts live blocks of object k.
func (e *Engine) live(k key.Key) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	o, here := e.maps.Object(k)
	return here && o.Live > 0
}

// readObject reads a whole object of the log below the durable key.
func (e *Engine) readObject(ctx context.Context, k key.Key) (*layout.Object, []byte, error) {
	b := make([]byte, e.chunkBlocks*e.blockSize+layout.MaxTailSize(e.chunkBlocks))
	n, info, err := e.store.Get(ctx, k.Name(), b, -1)
	if err != nil {
		return nil, nil, fmt.Errorf("read object %d (%s): %w", k, k.Name(), err)
	}
	o, err := layout.DecodeTail(b[:n], info.Size)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("object %d (%s): %w", k, k.Name(), err)
	case o.UUID != e.uuid || o.Key != k || int64(n) != info.Size:
		return nil, nil, fmt.Errorf("object %d (%s): %w: it is object %d of volume %s, of %d bytes", k, k.Name(), layout.ErrDamaged, o.Key, o.UUID, info.Size)
	}
	if err := e.fits(o); err != nil {
		return nil, nil, err
	}
	return o, b[:len(o.CRCs)*e.blockSize], nil
}

// add lays out one block, and installs what there is when it is full.
func (c *compaction) add(ctx context.Context, m move, data []byte) error {
	if c.slot == nil {
		var err error
		if c.slot, err = c.e.heapSlot(ctx); err != nil {
			return err
		}
	}
	copy(c.slot.Data(uint32(len(c.moves)), 1), data)
	c.moves = append(c.moves, m)
	if len(c.moves) == c.e.chunkBlocks {
		c.install()
	}
	return nil
}

// install makes the layout an object of the log, in one step: the open chunk
// is sealed before it takes the next key, and only blocks that still lie where
// they were read from are moved. If there are none, no key is taken.
func (c *compaction) install() {
	if c.slot == nil {
		return
	}
	e := c.e
	e.mu.Lock()
	defer e.mu.Unlock()
	n := &chunk{slot: c.slot}
	for i, m := range c.moves {
		n.obj.CRCs = append(n.obj.CRCs, m.crc)
		if e.maps.Get(m.block) != m.source {
			continue
		}
		if last := len(n.obj.Records) - 1; last >= 0 && follows(n.obj.Records[last], m, i) {
			n.obj.Records[last].Blocks++
			continue
		}
		n.obj.Records = append(n.obj.Records, layout.Record{Block: m.block, Blocks: 1, Kind: layout.KindMove, Index: uint32(i), Source: m.source})
	}
	if len(n.obj.Records) == 0 || e.closed != nil {
		e.freeHeapSlot()
	} else {
		e.seal()
		e.place(n)
		for _, r := range n.obj.Records {
			for i := range r.Blocks {
				e.maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(n.obj.Key, r.Index+i))
				c.report.MovedBytes += int64(e.blockSize)
			}
		}
		e.enqueue(n)
	}
	c.slot, c.moves = nil, c.moves[:0]
}

// follows says whether m, at data index i, extends r.
func follows(r layout.Record, m move, i int) bool {
	return m.block == r.Block+uint64(r.Blocks) && i == int(r.Index+r.Blocks) &&
		m.source.Key() == r.Source.Key() && m.source.Index() == r.Source.Index()+r.Blocks
}

// drop gives back what an interrupted compaction holds.
func (c *compaction) drop() {
	if c.slot == nil {
		return
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	c.e.freeHeapSlot()
	c.slot = nil
}

// giveWay lets the foreground have its turn after some blocks: a while if it
// is busy, none if it is not.
func (c *compaction) giveWay(ctx context.Context, blocks int) error {
	c.since += blocks
	if c.since < c.e.opts.GC.Step {
		return nil
	}
	c.since = 0
	c.e.mu.Lock()
	seq := c.e.seq
	c.e.mu.Unlock()
	seq += c.e.misses.Load()
	busy := seq != c.seq
	c.seq = seq
	if !busy || c.e.opts.GC.IdleTimeout <= 0 {
		return nil
	}
	return sleep(ctx, c.e.opts.GC.IdleTimeout)
}
