// Package checkpoint decides when checkpoints are due, writes them, and removes
// those that are not needed any more (sweep.go).
package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
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

// Log is the log that checkpoints are made of.
type Log interface {
	// Freeze seals what was written and takes the map as it is then, in one step.
	Freeze() volume.Cut
	// Regrow takes back the length of a Cut of which no checkpoint came.
	Regrow(volume.Length)
	// WaitDurable waits until the store has all objects up to k.
	WaitDurable(ctx context.Context, k key.Key) error
	// Grown returns how the log has grown since the last Freeze.
	Grown() volume.Growth
}

// Config is what a Keeper needs to know.
type Config struct {
	Store     objproxy.Store // must retry what may succeed later
	Owner     *volume.Owner
	Log       Log
	Logger    zerolog.Logger
	BlockSize int           // bytes
	Blocks    uint64        // of the volume
	Interval  time.Duration // after which a cheap checkpoint is due; 0 = none by time
	Skip      bool          // none is written but by Write

	// Outcome takes how background work went: what was there before stays in
	// charge if it failed.
	Outcome func(what string, err error)
}

// Keeper keeps the checkpoints of an open volume. It is safe for concurrent use.
type Keeper struct {
	c     Config
	wish  chan struct{} // wakes Run
	timed atomic.Bool   // Run looks by itself whether one is due

	writing chan struct{} // holds a token while a checkpoint is written
	held    struct {      // whoever has the token
		last    stored // the last one written here, or that the map was made from
		counter uint32 // of checkpoint and pack names in this epoch
	}

	taking chan struct{}    // holds a token while snapshots are taken in
	taken  map[string]needs // by directory. Whoever has that token

	replaced chan struct{} // wakes RunSweeps
	sweeping chan struct{} // holds a token while old checkpoints are removed

	mu struct {
		sync.Mutex
		kept      []Kept    // that the record names and that verify, oldest first; never changed
		snapshots *Held     // by those that were taken in
		leftover  *leftover // of the last commit; nil: nothing, or it is removed
		undeleted Undeleted // by the last sweep
	}
}

// New returns the keeper of a volume whose record names the checkpoints kept,
// oldest first. The map was loaded from the one named base, and the log behind that.
// If base is none of them, the first checkpoint has all leaves anew.
func New(c Config, kept []volume.Checkpoint, base string) *Keeper {
	k := &Keeper{
		c: c, wish: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		taking: make(chan struct{}, 1), taken: make(map[string]needs), replaced: make(chan struct{}, 1), sweeping: make(chan struct{}, 1),
	}
	k.mu.snapshots = heldBy(nil)
	for _, old := range kept {
		k.mu.kept = append(k.mu.kept, newKept(old))
		if old.Name == base {
			k.held.last.leaves = leavesOf(old, int((c.Blocks+layout.LeafBlocks-1)/layout.LeafBlocks))
		}
	}
	return k
}

// Kept is a checkpoint that the record names, as far as it matters to what may
// be deleted.
type Kept struct {
	Last key.Key          // of the objects that it describes
	Dead map[key.Key]bool // those without a live block in its table; no fences

	name  string
	packs []string
}

func newKept(c volume.Checkpoint) Kept {
	k := Kept{name: c.Name, Last: c.Key, Dead: make(map[key.Key]bool)}
	for _, p := range c.Packs {
		k.packs = append(k.packs, p.Name)
	}
	for _, o := range c.Objects {
		if o.Live == 0 && !o.Fence {
			k.Dead[o.Key] = true
		}
	}
	return k
}

// Kept returns the checkpoints that the record names, oldest first. It does not
// wait for the one that is being written.
func (k *Keeper) Kept() []Kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.kept
}

// take takes a token; whoever has it gives it back by receiving from token.
func take(ctx context.Context, token chan struct{}) error {
	select {
	case token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cost estimates the bytes of a checkpoint made now: about four for each mapped
// block, and the directory.
func cost(g volume.Growth) int64 { return 4*int64(g.Live) + 32*int64(g.Table) + 4096 }

// due reports whether the log has grown enough.
func due(g volume.Growth) bool {
	return g.Objects >= checkpointObjects || g.Bytes >= max(checkpointRatio*cost(g), leastLog)
}

// Grew wakes Run if a checkpoint is due, or may be when the interval has passed.
// It does not wait.
func (k *Keeper) Grew(g volume.Growth) {
	if !due(g) && (k.timed.Load() || k.c.Interval <= 0) {
		return
	}
	select {
	case k.wish <- struct{}{}:
	default:
	}
}

// Run writes checkpoints when they are due, until ctx ends. Nothing wakes it
// while the log does not grow.
func (k *Keeper) Run(ctx context.Context) {
	tick := k.next()
	for {
		var now bool
		select {
		case <-k.wish: // it may have been written since
			now = due(k.c.Log.Grown())
			if !now && tick == nil {
				tick = k.next()
			}
		case <-tick:
			k.timed.Store(false)
			now = cost(k.c.Log.Grown()) < cheapCheckpoint
			tick = nil
		case <-ctx.Done():
			return
		}
		if !now {
			continue
		}
		k.c.Outcome("checkpoint", k.WriteIfLonger(objproxy.Background(ctx)))
		if tick == nil {
			tick = k.next()
		}
	}
}

// next returns the time at which a cheap checkpoint is due; nil while the log is
// no longer than at the last one, or there is no interval.
func (k *Keeper) next() <-chan time.Time {
	if k.c.Interval <= 0 || k.c.Log.Grown().Objects == 0 {
		return nil // what grows after this look wakes Run
	}
	k.timed.Store(true)
	return time.After(k.c.Interval)
}

// WriteIfLonger writes a checkpoint if the log has grown since the last. Errors:
// as Write.
func (k *Keeper) WriteIfLonger(ctx context.Context) error {
	if k.c.Skip || !k.longer() {
		return nil
	}
	return k.Write(ctx)
}

// longer reports whether the log has grown since the last checkpoint.
func (k *Keeper) longer() bool {
	g := k.c.Log.Grown()
	return g.Objects > 0 || g.Open
}

// WriteLast is WriteIfLonger for a writer that closes: it also writes a
// checkpoint if objects were deleted since the last one. The next writer would
// take that one's word that they are there, and delete them once more.
func (k *Keeper) WriteLast(ctx context.Context) error {
	if k.c.Log.Grown().Deleted > 0 && !k.c.Skip {
		return k.Write(ctx)
	}
	return k.WriteIfLonger(ctx)
}

// Write stores the map as it is now, and commits it in the volume record. It
// stops no I/O. Errors: volume.ErrFenced, device.ErrStopped, that of ctx, those
// of the store; the checkpoints before are in charge then.
func (k *Keeper) Write(ctx context.Context) error {
	if err := take(ctx, k.writing); err != nil {
		return err
	}
	defer func() { <-k.writing }()
	return k.write(ctx, func(*layout.Volume, string) error { return nil })
}

// write is Write for who has the token. What else changes of the record with the
// commit, and may keep it from being made, is up to also, which is told the name of
// the new checkpoint.
func (k *Keeper) write(ctx context.Context, also func(v *layout.Volume, name string) error) error {
	cut := k.c.Log.Freeze()
	defer cut.Map.Release()
	if err := k.store(ctx, cut, also); err != nil {
		k.c.Log.Regrow(cut.Grown)
		return fmt.Errorf("checkpoint at key %d: %w", cut.Last, err)
	}
	return nil
}

func (k *Keeper) store(ctx context.Context, cut volume.Cut, also func(v *layout.Volume, name string) error) error {
	if err := k.c.Log.WaitDurable(ctx, cut.Last); err != nil {
		return err
	}
	o := k.c.Owner
	c := &layout.Checkpoint{
		UUID: o.UUID, Key: cut.Last, KeyEpoch: o.Epoch, Epoch: o.Epoch, Nonce: o.Nonce, NextSeq: cut.Seq,
		BlockSize: uint32(k.c.BlockSize), Blocks: k.c.Blocks,
		Objects: cut.Map.Objects(),
	}
	leaves, err := storeLeaves(ctx, c, cut.Map.Map(), k.held.last, func(ctx context.Context, b []byte) (string, error) {
		return k.putOnce(ctx, b, func(counter uint32) string { return layout.PackName(o.Epoch, counter) })
	})
	if err != nil {
		return err
	}
	name, err := k.putOnce(ctx, layout.AppendCheckpoint(nil, c), func(counter uint32) string {
		return layout.CheckpointName(cut.Last, o.Epoch, counter)
	})
	if err != nil {
		return err
	}
	keep := append(slices.Clone(k.Kept()), newKept(volume.Checkpoint{Name: name, Checkpoint: c}))
	keep = keep[max(0, len(keep)-layout.MaxCheckpoints):]
	names := make([]string, len(keep))
	for i, k := range keep {
		names[i] = k.name
	}
	err = o.Change(ctx, func(v *layout.Volume) error {
		v.Checkpoints = names
		return also(v, name)
	})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	k.held.last = stored{leaves, cut.Map.Map().Generation()}
	k.committed(keep)
	k.c.Logger.Debug().Str("name", name).Int("leaves", len(c.Leaves)).Int("objects", len(c.Objects)).Msg("checkpoint")
	return nil
}

// committed notes that the record names kept, and nothing else.
func (k *Keeper) committed(kept []Kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.kept = kept
	k.mu.leftover = newLeftover(kept, k.c.Owner.Epoch, k.held.counter)
	select {
	case k.replaced <- struct{}{}:
	default:
	}
}

// putOnce stores b under a name that was never used. Where the name is taken
// and does not hold b already (a try whose answer was lost), it takes the next.
func (k *Keeper) putOnce(ctx context.Context, b []byte, name func(counter uint32) string) (string, error) {
	if int64(len(b)) > volume.MaxRead {
		return "", fmt.Errorf("%d bytes in one object are more than could be read again (%d)", len(b), int64(volume.MaxRead))
	}
	var denied volume.Denials
	for {
		k.held.counter++
		n := name(k.held.counter)
		_, err := k.c.Store.Put(ctx, n, objproxy.Body{Data: b}, objproxy.IfAbsent())
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return "", fmt.Errorf("store %s: %w", n, err)
		}
		there, _, err := volume.ReadAll(ctx, k.c.Store, n)
		if err != nil && !volume.IsDamage(err) {
			return "", err
		}
		if bytes.Equal(there, b) {
			return n, nil
		}
		if err := denied.Again(ctx, n, k.c.Logger); err != nil {
			return "", err
		}
	}
}
