package gc

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// What a compaction holds in memory: live blocks until they are written in the order
// of the volume, gatherBytes of them, but no more than mostSorted chunks and no
// less than leastSorted, or there would be many passes; and objects that are read at
// a time, readBytes of them, no more than mostRead. The more chunks are gathered, the
// less of the volume does each object cover that comes of them.
const (
	gatherBytes             = 128 << 20
	leastSorted, mostSorted = 8, 32
	readBytes               = 32 << 20
	leastRead, mostRead     = 1, 8
)

// chunks returns how many chunks of so many bytes there may be in bytes.
func chunks(bytes, chunk, least, most int) int { return min(most, max(least, bytes/chunk)) }

// compaction gathers live blocks of several objects, and makes new objects of
// them, in which they lie in the order of the volume. It holds no key meanwhile: a
// slow read holds nobody up.
type compaction struct {
	g      *Collector
	read   []fetched
	moves  []volume.Move
	data   [][]byte // the blocks of moves, a chunk each
	since  int      // blocks looked at or moved since the foreground had its turn
	turn   turn
	report Report
}

// fetched is an object that was read.
type fetched struct {
	buf  []byte
	o    *layout.Object
	data []byte // its stored blocks, in buf
	err  error
}

// Compact writes the live blocks of the objects again, so that nothing of them
// is live any more. Objects that cannot be read, or do not verify, stay as they
// are and in charge. Only Run, or a test in its place, may call it. Errors:
// device.ErrStopped, that of ctx, those of the store.
func (g *Collector) Compact(ctx context.Context, objects []layout.ObjectInfo) (Report, error) {
	return g.compact(ctx, batch{objects: objects})
}

// compact is Compact for batches, which do not share new objects.
func (g *Collector) compact(ctx context.Context, batches ...batch) (Report, error) {
	g.progress(func(p *Progress) {
		if p.Pass == 0 {
			*p = Progress{TotalBytes: g.bytes(batches)}
		}
	})
	c := &compaction{g: g, read: make([]fetched, g.readers)}
	for _, b := range batches {
		for some := range slices.Chunk(b.objects, g.readers) {
			if err := c.addObjects(ctx, some); err != nil {
				return c.report, err
			}
		}
		if err := c.install(ctx); err != nil {
			return c.report, err
		}
	}
	return c.report, nil
}

// compactUnlessStuck is compact, but does nothing while nothing gets into the store.
func (g *Collector) compactUnlessStuck(ctx context.Context, batches ...batch) (Report, error) {
	if g.bytes(batches) == 0 {
		return Report{}, nil
	}
	if stuck, err := g.stuck(ctx); err != nil || stuck {
		return Report{}, err
	}
	return g.compact(ctx, batches...)
}

// addObjects gathers the live blocks of some objects, which it reads all at a time.
func (c *compaction) addObjects(ctx context.Context, objects []layout.ObjectInfo) error {
	var wg sync.WaitGroup
	for i, o := range objects {
		wg.Go(func() { c.g.readObject(ctx, o.Key, &c.read[i]) })
	}
	wg.Wait()
	for i, o := range objects {
		err := c.addObject(ctx, o.Key, &c.read[i])
		switch {
		case err == nil:
			c.report.Compacted++
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case volume.IsDamage(err):
			c.report.FailedReads++
			c.g.spoiled(o.Key)
			c.g.c.Logger.Error().Err(err).Uint64("key", uint64(o.Key)).Msg("an object cannot be compacted: it stays as it is")
		default:
			return err
		}
	}
	return nil
}

// addObject gathers the live blocks of object k, which was read. An answer that is
// not what was written is asked for once more: what was gathered of it is there
// twice then, and is moved once.
func (c *compaction) addObject(ctx context.Context, k key.Key, read *fetched) error {
	err := c.tryObject(ctx, k, read)
	if volume.IsUnreadable(err) {
		c.g.c.Logger.Warn().Err(err).Msg("the store returned other bytes than were written; asking once more")
		c.g.readObject(ctx, k, read)
		err = c.tryObject(ctx, k, read)
	}
	return err
}

func (c *compaction) tryObject(ctx context.Context, k key.Key, read *fetched) error {
	if errors.Is(read.err, objproxy.ErrNotFound) && !c.g.c.Log.Live(k) {
		return nil // it died, and was deleted, meanwhile
	}
	if read.err != nil {
		return read.err
	}
	checks, stride := layout.NewChecks(read.o.UUID, k), layout.Stride(c.g.c.BlockSize)
	for _, r := range read.o.Records {
		if r.Kind == layout.KindZero {
			continue
		}
		for i := range r.Blocks {
			index := r.Index + i
			m := volume.Move{Block: r.Block + uint64(i), Source: layout.Loc(k, index)}
			if !c.lives(m) {
				continue
			}
			stored := read.data[int(index)*stride:][:stride]
			var ok bool
			if m.CRC, ok = checks.Verify(index, stored); !ok {
				return volume.WrongBlock(k, index, m.Block)
			}
			if err := c.add(ctx, m, stored[:c.g.c.BlockSize]); err != nil {
				return err
			}
		}
	}
	return c.giveWay(ctx, int(read.o.Blocks))
}

// spoiled notes that object k could not be compacted.
func (g *Collector) spoiled(k key.Key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.unmovable[k] = true
}

// unreadable returns the objects that could not be compacted.
func (g *Collector) unreadable() map[key.Key]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.mu.unmovable)
}

// lives reports whether the block still lies where it was read.
func (c *compaction) lives(m volume.Move) bool { return c.g.c.Map.Get(m.Block) == m.Source }

// readObject reads a whole object of the log below the durable key into the
// memory of f.
func (g *Collector) readObject(ctx context.Context, k key.Key, f *fetched) {
	if f.buf == nil {
		f.buf = make([]byte, g.c.ChunkBlocks*layout.Stride(g.c.BlockSize)+layout.MaxTailSize(g.c.ChunkBlocks))
	}
	f.o, f.data, f.err = g.objects.Read(ctx, k, f.buf)
}

// add gathers one block, and installs what there is when it is enough.
func (c *compaction) add(ctx context.Context, m volume.Move, block []byte) error {
	at := len(c.moves)
	if at == len(c.data)*c.g.c.ChunkBlocks {
		c.data = append(c.data, make([]byte, c.g.c.ChunkBlocks*c.g.c.BlockSize))
	}
	c.moves = append(c.moves, m)
	copy(c.block(at), block)
	if len(c.moves) == c.g.sortChunks*c.g.c.ChunkBlocks {
		return c.install(ctx)
	}
	return nil
}

// block returns the memory of the block of move i.
func (c *compaction) block(i int) []byte {
	bs := c.g.c.BlockSize
	return c.data[i/c.g.c.ChunkBlocks][i%c.g.c.ChunkBlocks*bs:][:bs]
}

// install makes objects of the log of what was gathered and still lives.
func (c *compaction) install(ctx context.Context) error {
	order := make([]int, 0, len(c.moves))
	for i, m := range c.moves {
		if c.lives(m) {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(c.moves[a].Block, c.moves[b].Block) })
	for some := range slices.Chunk(order, c.g.c.ChunkBlocks) {
		slot, err := c.g.c.Log.Slot(ctx)
		if err != nil {
			return err
		}
		moves := make([]volume.Move, len(some))
		for i, from := range some {
			slot.Lay(uint32(i), c.block(from))
			moves[i] = c.moves[from]
		}
		moved := int64(c.g.c.Log.Rewrite(slot, moves)) * int64(c.g.c.BlockSize)
		c.report.MovedBytes += moved
		c.g.progress(func(p *Progress) { p.MovedBytes += moved })
		if err := c.giveWay(ctx, len(some)); err != nil {
			return err
		}
	}
	for i, at := range order {
		if block := c.moves[at].Block; i == 0 || block/layout.LeafBlocks != c.moves[order[i-1]].Block/layout.LeafBlocks {
			c.g.c.Log.Fold(block)
		}
	}
	c.moves = c.moves[:0]
	return nil
}

// giveWay lets the foreground have its turn after some blocks: a while if it
// is busy, none if it is not.
func (c *compaction) giveWay(ctx context.Context, blocks int) error {
	c.since += blocks
	if c.since < c.g.c.Step {
		return nil
	}
	c.since = 0
	if !c.g.busy(&c.turn) {
		return nil
	}
	return objproxy.Sleep(ctx, c.g.c.IdleTimeout)
}

// turn is what the foreground had done when it had its turn last.
type turn uint64

// busy reports whether the foreground has done anything since its last turn, and is
// to have another one.
func (g *Collector) busy(last *turn) bool {
	seq, _ := g.c.Log.Activity()
	now := turn(seq + g.c.Misses())
	busy := now != *last
	*last = now
	return busy && g.c.IdleTimeout > 0
}
