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
