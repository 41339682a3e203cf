package bs3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
)

// When a checkpoint is due, besides at close: the log since the last one is
// checkpointRatio times what it would cost, or checkpointObjects long, or it
// costs less than cheapCheckpoint and the interval has passed. What costs less
// waits for the interval, however short the log is that it would replace.
const (
	checkpointRatio   = 8
	checkpointObjects = 10_000
	cheapCheckpoint   = 4 << 20
)

// packBytes is about how large a pack of leaves gets.
const packBytes = 8 << 20

// checkpointCost estimates the bytes of a checkpoint made now: about four for
// each mapped block, and the directory.
func (e *Engine) checkpointCost() int64 {
	objects, live, _ := e.maps.Totals()
	return 4*int64(live) + 32*int64(objects) + 4096
}

// kickCheckpoint wakes the checkpointer if the log has grown enough. Under the
// chunk lock.
func (e *Engine) kickCheckpoint() {
	if e.sinceCheckpoint.objects < checkpointObjects && e.sinceCheckpoint.bytes < checkpointRatio*max(e.checkpointCost(), cheapCheckpoint) {
		return
	}
	select {
	case e.checkpointWish <- struct{}{}:
	default:
	}
}

// checkpointer writes checkpoints when they are due, until the engine stops.
func (e *Engine) checkpointer() {
	var tick <-chan time.Time
	if e.opts.CheckpointInterval > 0 {
		t := time.NewTicker(e.opts.CheckpointInterval)
		defer t.Stop()
		tick = t.C
	}
	for {
		byTime := false
		select {
		case <-e.checkpointWish:
		case <-tick:
			byTime = true
		case <-e.ctx.Done():
			return
		}
		e.mu.Lock()
		due := e.sinceCheckpoint.objects > 0 && (!byTime || e.checkpointCost() < cheapCheckpoint)
		e.mu.Unlock()
		if !due || e.opts.SkipCheckpoint {
			continue
		}
		if err := e.checkpoint(objproxy.Background(e.ctx)); err != nil && e.ctx.Err() == nil {
			if errors.Is(err, ErrFenced) {
				e.fail(err)
				return
			}
			e.log.Error().Err(err).Msg("checkpoint failed; the ones before stay in charge")
		}
	}
}

// checkpointAtClose writes a checkpoint unless roll-forward would find nothing
// but fences anyway.
func (e *Engine) checkpointAtClose(ctx context.Context) error {
	e.mu.Lock()
	due := e.sinceCheckpoint.objects > 0
	e.mu.Unlock()
	if !due || e.opts.SkipCheckpoint {
		return nil
	}
	return e.checkpoint(ctx)
}

// checkpoint stores the map as it is now and commits it in the volume record.
// It stops no I/O.
func (e *Engine) checkpoint(ctx context.Context) error {
	select {
	case e.checkpointing <- struct{}{}:
		defer func() { <-e.checkpointing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// In one step: the checkpoint is the map with exactly the objects up to K.
	e.mu.Lock()
	last := e.sealThrough()
	frozen := e.maps.Freeze()
	seq, since := e.seq, e.sinceCheckpoint
	e.sinceCheckpoint = logLength{}
	e.mu.Unlock()
	defer frozen.Release()

	err := e.storeCheckpoint(ctx, last, seq, frozen)
	if err != nil {
		e.mu.Lock()
		e.sinceCheckpoint.objects += since.objects
		e.sinceCheckpoint.bytes += since.bytes
		e.mu.Unlock()
		return fmt.Errorf("checkpoint at key %d: %w", last, err)
	}
	return nil
}

func (e *Engine) storeCheckpoint(ctx context.Context, last key.Key, seq uint64, frozen *mapproxy.Frozen) error {
	if err := e.waitDurable(ctx, last); err != nil {
		return err
	}
	c := &layout.Checkpoint{
		UUID: e.uuid, Key: last, KeyEpoch: e.epoch, Epoch: e.epoch, Nonce: e.nonce, NextSeq: seq,
		BlockSize: uint32(e.blockSize), Blocks: e.maps.Blocks(),
		Objects: frozen.Objects(),
	}
	if err := e.storeLeaves(ctx, c, frozen); err != nil {
		return err
	}
	name, err := e.putOnce(ctx, layout.AppendCheckpoint(nil, c), func(counter uint32) string {
		return layout.CheckpointName(last, e.epoch, counter)
	})
	if err != nil {
		return err
	}
	kept := append(e.kept[:len(e.kept):len(e.kept)], name)
	kept = kept[max(0, len(kept)-layout.MaxCheckpoints):]
	if _, err := e.changeVolume(ctx, func(v *layout.Volume) { v.Checkpoints = kept }); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	e.kept = kept
	e.log.Debug().Str("name", name).Int("leaves", len(c.Leaves)).Int("objects", len(c.Objects)).Msg("checkpoint")
	return nil
}

// storeLeaves packs all leaves of the map and notes in c where they are.
func (e *Engine) storeLeaves(ctx context.Context, c *layout.Checkpoint, frozen *mapproxy.Frozen) error {
	m := frozen.Map()
	entries := make([]layout.Location, layout.LeafBlocks)
	var pack []byte
	flush := func() error {
		if len(pack) == 0 {
			return nil
		}
		name, err := e.putOnce(ctx, pack, func(counter uint32) string { return layout.PackName(e.epoch, counter) })
		if err != nil {
			return err
		}
		c.Packs = append(c.Packs, layout.PackRef{Name: name, Size: uint64(len(pack))})
		pack = nil
		return nil
	}
	for i := range m.Leaves() {
		leaf := m.Leaf(i)
		if leaf == nil {
			continue
		}
		if len(pack) == 0 {
			pack = layout.AppendPackHeader(make([]byte, 0, packBytes), e.uuid)
		}
		leaf.Entries(entries)
		from := len(pack)
		pack = layout.AppendLeaf(pack, entries)
		c.Leaves = append(c.Leaves, layout.LeafRef{
			Leaf: uint32(i), Pack: uint32(len(c.Packs)), Offset: uint64(from), Length: uint32(len(pack) - from), CRC: layout.CRC(pack[from:]),
		})
		if len(pack) >= packBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// putOnce stores b under a name that was never used. Where the name is taken
// and does not hold b already (a try whose answer was lost), it takes the next.
func (e *Engine) putOnce(ctx context.Context, b []byte, name func(counter uint32) string) (string, error) {
	for {
		e.counter++
		n := name(e.counter)
		_, err := e.store.Put(ctx, n, objproxy.Body{Data: b}, objproxy.IfAbsent())
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return "", fmt.Errorf("store %s: %w", n, err)
		}
		there, _, err := readAll(ctx, e.store, n)
		if err != nil && !errors.Is(err, objproxy.ErrNotFound) {
			return "", err
		}
		if bytes.Equal(there, b) {
			return n, nil
		}
	}
}

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
		c, err := e.readCheckpoint(ctx, name)
		if err == nil {
			e.kept = v.Checkpoints[:i+1]
			e.seq = c.NextSeq
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

// isDamage says whether err is an answer about the object itself, rather than
// a failure to get it.
func isDamage(err error) bool {
	return errors.Is(err, objproxy.ErrNotFound) || errors.Is(err, layout.ErrDamaged) || errors.Is(err, layout.ErrMagic) || errors.Is(err, layout.ErrVersion)
}

// readCheckpoint loads one checkpoint into the empty map.
func (e *Engine) readCheckpoint(ctx context.Context, name string) (*layout.Checkpoint, error) {
	b, _, err := readAll(ctx, e.store, name)
	if err != nil {
		return nil, err
	}
	c, err := layout.DecodeCheckpoint(b)
	if err != nil {
		return nil, err
	}
	switch k, epoch, _, err := layout.ParseCheckpointName(name); {
	case err != nil:
		return nil, err
	case c.UUID != e.uuid || c.Key != k || c.Epoch != epoch || int(c.BlockSize) != e.blockSize || c.Blocks != e.maps.Blocks():
		return nil, fmt.Errorf("%w: it is of volume %s, key %d, epoch %d, with %d blocks of %d bytes", layout.ErrDamaged, c.UUID, c.Key, c.Epoch, c.Blocks, c.BlockSize)
	}
	for _, o := range c.Objects {
		e.maps.AddObject(o)
	}
	byPack := make([][]layout.LeafRef, len(c.Packs))
	for _, l := range c.Leaves {
		byPack[l.Pack] = append(byPack[l.Pack], l)
	}
	for i, leaves := range byPack {
		if err := e.loadPack(ctx, c.Packs[i], leaves); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// loadPack fills the leaves that lie in one pack.
func (e *Engine) loadPack(ctx context.Context, p layout.PackRef, leaves []layout.LeafRef) error {
	entries := make([]layout.Location, layout.LeafBlocks)
	b, _, err := readAll(ctx, e.store, p.Name)
	if err != nil {
		return err
	}
	if uint64(len(b)) != p.Size {
		return fmt.Errorf("pack %s: %w: %d bytes, not %d", p.Name, layout.ErrDamaged, len(b), p.Size)
	}
	if err := layout.CheckPackHeader(b, e.uuid); err != nil {
		return fmt.Errorf("pack %s: %w", p.Name, err)
	}
	for _, l := range leaves {
		bytes := b[l.Offset : l.Offset+uint64(l.Length)]
		if layout.CRC(bytes) != l.CRC {
			return fmt.Errorf("pack %s, leaf %d: %w: checksum", p.Name, l.Leaf, layout.ErrDamaged)
		}
		if err := layout.DecodeLeaf(bytes, entries); err != nil {
			return fmt.Errorf("pack %s, leaf %d: %w", p.Name, l.Leaf, err)
		}
		if err := e.maps.LoadLeaf(int(l.Leaf), entries); err != nil {
			return fmt.Errorf("pack %s: %w: %w", p.Name, layout.ErrDamaged, err)
		}
	}
	return nil
}
