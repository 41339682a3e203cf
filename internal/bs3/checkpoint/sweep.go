package checkpoint

import (
	"context"
	"fmt"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// leftover is what a commit left behind: every checkpoint and pack that we, or a
// writer before us, had written by then, except those that the checkpoints it kept
// need; what snapshots need is asked for when it is removed. Later checkpoints need no more of them, so it stays garbage however
// late it is removed.
type leftover struct {
	needed  map[string]bool
	epoch   uint64
	counter uint32 // names of our epoch above it are of checkpoints that came later, or are under way
}

func newLeftover(kept []Kept, epoch uint64, counter uint32) *leftover {
	l := &leftover{needed: make(map[string]bool), epoch: epoch, counter: counter}
	for _, c := range kept {
		l.needed[c.name] = true
		for _, p := range c.packs {
			l.needed[p] = true
		}
	}
	return l
}

// has reports whether name is part of it. Names of a higher epoch are a
// successor's, who has not told us yet.
func (l *leftover) has(name string) bool {
	_, epoch, counter, err := layout.ParseCheckpointName(name)
	if err != nil {
		epoch, counter, err = layout.ParsePackName(name)
	}
	switch {
	case err != nil || l.needed[name] || epoch > l.epoch:
		return false
	case epoch == l.epoch && counter > l.counter:
		return false
	}
	return true
}

// Undeleted is what the store was asked to delete, and did not.
type Undeleted struct {
	Names int
	Since time.Time
	Err   error // the store's last answer
}

// Again returns what is undeleted after another request that left names because
// of err.
func (u Undeleted) Again(names int, err error) Undeleted {
	if u.Names == 0 {
		u.Since = time.Now()
	}
	u.Names, u.Err = names, err
	return u
}

// RunSweeps removes after each commit what it has left behind, until ctx ends.
// Nothing waits for that: a store that denies deletes keeps its bytes, and no
// more than that.
func (k *Keeper) RunSweeps(ctx context.Context) {
	for {
		select {
		case <-k.replaced:
			k.c.Outcome("removing old checkpoints", k.Sweep(objproxy.Background(ctx)))
		case <-ctx.Done():
			return
		}
	}
}

// Sweep removes what the last commit has left behind, if that is not done yet.
// Errors: that of ctx, those of the store; what is left is asked for again by the
// next Sweep.
func (k *Keeper) Sweep(ctx context.Context) error {
	if err := take(ctx, k.sweeping); err != nil {
		return err
	}
	defer func() { <-k.sweeping }()
	k.mu.Lock()
	left := k.mu.leftover
	k.mu.Unlock()
	if left == nil {
		return nil
	}
	held, err := k.Held(ctx) // after the commit
	if err != nil {
		return err
	}
	if held.all {
		return nil // and tried again after the next commit
	}
	names, err := k.remove(ctx, left, held)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case ctx.Err() != nil && err == nil:
		return context.Cause(ctx)
	case names > 0:
		k.mu.undeleted = k.mu.undeleted.Again(names, err)
		return fmt.Errorf("%d of them stay in the store: %w", names, err)
	case err != nil:
		return err
	}
	k.mu.undeleted = Undeleted{}
	if k.mu.leftover == left {
		k.mu.leftover = nil
	}
	return nil
}

// SweepAgain wakes RunSweeps if something is left that the store did not delete.
// It does not wait.
func (k *Keeper) SweepAgain() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.undeleted.Names == 0 {
		return
	}
	select {
	case k.replaced <- struct{}{}:
	default:
	}
}

// remove deletes what is there of left and not held, and returns how many names that
// did not delete, and why.
func (k *Keeper) remove(ctx context.Context, left *leftover, held *Held) (undeleted int, refusal error) {
	for _, prefix := range []string{layout.CheckpointPrefix, layout.MapPrefix} {
		err := volume.List(ctx, k.c.Store, prefix, func(page []objproxy.Info) error {
			var old []string
			for _, o := range page {
				if left.has(o.Name) && !held.names[o.Name] {
					old = append(old, o.Name)
				}
			}
			if len(old) == 0 {
				return nil
			}
			if err := k.c.Store.Delete(ctx, old); err != nil {
				refusal = err
				if failed := objproxy.FailedDeletes(err); failed != nil {
					undeleted += len(failed)
				} else {
					undeleted += len(old)
				}
			}
			return ctx.Err()
		})
		if err != nil && refusal == nil {
			return undeleted, err
		}
	}
	return undeleted, refusal
}

// Undeleted returns which old checkpoints and packs the store did not delete.
func (k *Keeper) Undeleted() Undeleted {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.undeleted
}
