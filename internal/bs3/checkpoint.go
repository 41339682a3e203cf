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
// checkpointRatio times what it would cost and no shorter than leastLog, or
// checkpointObjects long, or the checkpoint costs less than cheapCheckpoint and
// the interval has passed. (leastLog: encoding the map of a small volume again
// after every few objects took a tenth of the time of random writes.)
const (
	checkpointRatio   = 8
	checkpointObjects = 10_000
	leastLog          = 256 << 20
	cheapCheckpoint   = 4 << 20
)

// checkpointCost estimates the bytes of a checkpoint made now: about four for
// each mapped block, and the directory.
func (e *Engine) checkpointCost() int64 {
	objects, live, _ := e.maps.Totals()
	return 4*int64(live) + 32*int64(objects) + 4096
}

// checkpointDue says whether the log has grown enough. Under the chunk lock.
func (e *Engine) checkpointDue() bool {
	return e.sinceCheckpoint.objects >= checkpointObjects || e.sinceCheckpoint.bytes >= max(checkpointRatio*e.checkpointCost(), leastLog)
}

// kickCheckpoint wakes the checkpointer if a checkpoint is due, or may be when
// the interval has passed. Under the chunk lock.
func (e *Engine) kickCheckpoint() {
	if !e.checkpointDue() && (e.checkpointTimed || e.opts.CheckpointInterval <= 0) {
		return
	}
	select {
	case e.checkpointWish <- struct{}{}:
	default:
	}
}

// checkpointer writes checkpoints when they are due, until the engine stops.
// Nothing wakes it while the log does not grow.
func (e *Engine) checkpointer() {
	tick := e.nextCheckpoint()
	for {
		var due bool
		select {
		case <-e.checkpointWish: // it may have been written since
			e.mu.Lock()
			due = e.checkpointDue()
			e.mu.Unlock()
			if !due && tick == nil {
				tick = e.nextCheckpoint()
			}
		case <-tick:
			e.mu.Lock()
			due = e.checkpointCost() < cheapCheckpoint
			e.checkpointTimed = false
			e.mu.Unlock()
			tick = nil
		case <-e.idle.Done():
			return
		}
		if !due {
			continue
		}
		e.background("checkpoint", e.checkpointIfLonger(objproxy.Background(e.idle)))
		if tick == nil {
			tick = e.nextCheckpoint()
		}
	}
}

// nextCheckpoint gives the time at which a cheap checkpoint is due; nil while
// the log is no longer than at the last one, or there is no interval.
func (e *Engine) nextCheckpoint() <-chan time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.opts.CheckpointInterval <= 0 || e.sinceCheckpoint.objects == 0 {
		return nil
	}
	e.checkpointTimed = true
	return time.After(e.opts.CheckpointInterval)
}

// background takes the outcome of background work: being fenced fails the
// volume, anything else leaves what was there before in charge.
func (e *Engine) background(what string, err error) {
	switch {
	case err == nil || e.idle.Err() != nil:
	case errors.Is(err, ErrFenced):
		e.fail(err)
	default:
		e.log.Error().Err(err).Msg(what + " failed; what was there before stays in charge")
	}
}

// Checkpoint stores the map as it is now and commits it in the volume record,
// also if the log has not grown since the last one. It stops no I/O.
func (e *Engine) Checkpoint(ctx context.Context) error {
	if err := e.stopped(); err != nil {
		return err
	}
	ctx, cancel := e.whileServing(ctx)
	defer cancel()
	err := e.checkpoint(objproxy.Background(ctx))
	if errors.Is(err, ErrFenced) {
		e.fail(err)
	}
	return err
}

// checkpointIfLonger writes a checkpoint if the log has grown since the last.
func (e *Engine) checkpointIfLonger(ctx context.Context) error {
	e.mu.Lock()
	longer := e.sinceCheckpoint.objects > 0 || e.cur != nil
	e.mu.Unlock()
	if !longer || e.opts.SkipCheckpoint {
		return nil
	}
	return e.checkpoint(ctx)
}

func (e *Engine) checkpoint(ctx context.Context) error {
	select {
	case e.checkpointing <- struct{}{}:
		defer func() { <-e.checkpointing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// In one step: the checkpoint is the map with exactly the objects up to last.
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

// kept is a checkpoint that the record names, as far as it matters to what may
// be deleted.
type kept struct {
	name  string
	key   key.Key
	packs []string
	dead  map[key.Key]bool // objects without a live block in its table; no fences
}

func newKept(name string, c *layout.Checkpoint) kept {
	k := kept{name: name, key: c.Key, dead: make(map[key.Key]bool)}
	for _, p := range c.Packs {
		k.packs = append(k.packs, p.Name)
	}
	for _, o := range c.Objects {
		if o.Live == 0 && !o.Fence {
			k.dead[o.Key] = true
		}
	}
	return k
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
	leaves, err := e.storeLeaves(ctx, c, frozen)
	if err != nil {
		return err
	}
	name, err := e.putOnce(ctx, layout.AppendCheckpoint(nil, c), func(counter uint32) string {
		return layout.CheckpointName(last, e.epoch, counter)
	})
	if err != nil {
		return err
	}
	keep := append(e.kept[:len(e.kept):len(e.kept)], newKept(name, c))
	keep = keep[max(0, len(keep)-layout.MaxCheckpoints):]
	names := make([]string, len(keep))
	for i, k := range keep {
		names[i] = k.name
	}
	if _, err := e.changeVolume(ctx, func(v *layout.Volume) { v.Checkpoints = names }); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	e.kept, e.leaves, e.leavesAt = keep, leaves, frozen.Map().Generation()
	e.log.Debug().Str("name", name).Int("leaves", len(c.Leaves)).Int("objects", len(c.Objects)).Msg("checkpoint")
	e.background("removing old checkpoints", e.sweep(ctx))
	return nil
}

// sweep deletes the checkpoints and packs that no kept checkpoint needs: what
// we or a writer before us wrote and replaced, or never committed. Names of a
// higher epoch are a successor's, who has not told us yet.
func (e *Engine) sweep(ctx context.Context) error {
	needed := make(map[string]bool)
	for _, k := range e.kept {
		needed[k.name] = true
		for _, p := range k.packs {
			needed[p] = true
		}
	}
	for _, prefix := range []string{layout.CheckpointPrefix, layout.MapPrefix} {
		err := e.list(ctx, prefix, func(names []string) error {
			var old []string
			for _, n := range names {
				if epoch, ok := epochOf(n); ok && epoch <= e.epoch && !needed[n] {
					old = append(old, n)
				}
			}
			if len(old) == 0 {
				return nil
			}
			return e.store.Delete(ctx, old)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// epochOf gives the epoch in the name of a checkpoint or a pack.
func epochOf(name string) (epoch uint64, ok bool) {
	if _, epoch, _, err := layout.ParseCheckpointName(name); err == nil {
		return epoch, true
	}
	epoch, _, err := layout.ParsePackName(name)
	return epoch, err == nil
}

// list calls f with all names that begin with prefix, a page at a time.
func (e *Engine) list(ctx context.Context, prefix string, f func(names []string) error) error {
	return listAll(ctx, e.store, prefix, func(page []objproxy.Info) error {
		names := make([]string, len(page))
		for i, o := range page {
			names[i] = o.Name
		}
		return f(names)
	})
}

// putOnce stores b under a name that was never used. Where the name is taken
// and does not hold b already (a try whose answer was lost), it takes the next.
func (e *Engine) putOnce(ctx context.Context, b []byte, name func(counter uint32) string) (string, error) {
	if int64(len(b)) > maxRead {
		return "", fmt.Errorf("%d bytes in one object are more than could be read again (%d)", len(b), int64(maxRead))
	}
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
