package gc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// errKept is the error of DeleteDead if the store has not deleted everything.
var errKept = errors.New("objects without live data stay in the store")

// goesOn reports whether a collection goes on after DeleteDead has returned err.
// Where nothing at all is deleted, moving blocks would only add to what stays.
func (g *Collector) goesOn(err error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return err == nil || errors.Is(err, errKept) && !g.mu.denying
}

// settle writes the checkpoints by which all that is dead now can be deleted,
// deletes it, and adds that to report.
func (g *Collector) settle(ctx context.Context, report *Report) error {
	if err := g.c.Checkpoints.WriteIfLonger(ctx); err != nil {
		return err
	}
	deleted, err := g.settleDead(ctx)
	report.Add(deleted)
	return err
}

// settleDead deletes all that is dead in the newest checkpoint. Only the older
// of the two says what may go, so if the newest knows more, another one is
// written first, at the same key.
func (g *Collector) settleDead(ctx context.Context) (Report, error) {
	kept := g.c.Checkpoints.Kept()
	if n := len(kept); n > 0 {
		held, err := g.c.Checkpoints.Held(ctx)
		if err != nil {
			return Report{}, err
		}
		newest := g.deletable(kept[n-1], held)
		if n > 1 {
			newest = slices.DeleteFunc(newest, func(k key.Key) bool { return kept[0].Dead[k] })
		}
		if len(newest) > 0 {
			if err := g.c.Checkpoints.Write(ctx); err != nil {
				return Report{}, err
			}
		}
	}
	return g.DeleteDead(ctx)
}

// deletable returns the objects that are dead in k, that no snapshot needs, and that
// are not deleted yet, by key.
func (g *Collector) deletable(k checkpoint.Kept, held *checkpoint.Held) []key.Key {
	dead := slices.DeleteFunc(slices.Sorted(maps.Keys(k.Dead)), held.Object)
	keys := dead[:0]
	for some := range slices.Chunk(dead, g.c.Step) {
		keys = append(keys, g.c.Log.Dead(some)...)
	}
	return keys
}

// GiveBack deletes what can be deleted without anything being written, whatever
// else waits: see DeleteDead. It also has old checkpoints asked for again. Errors:
// those of DeleteDead.
func (g *Collector) GiveBack(ctx context.Context) (Report, error) {
	g.c.Checkpoints.SweepAgain()
	return g.DeleteDead(ctx)
}

// DeleteDead deletes the objects that were dead already in the older of the
// two committed checkpoints, but for those that a snapshot needs: whichever of the
// checkpoints an open starts from, it needs none of them. Fences are never among them. What the store does not delete stays
// in the table, and is asked for again another time. Errors: that of ctx, errKept
// with that of the store.
func (g *Collector) DeleteDead(ctx context.Context) (Report, error) {
	var report Report
	if err := take(ctx, g.deleting); err != nil {
		return report, err
	}
	defer func() { <-g.deleting }()
	kept := g.c.Checkpoints.Kept()
	if len(kept) < layout.MaxCheckpoints {
		return report, nil
	}
	held, err := g.c.Checkpoints.Held(ctx) // after Kept
	if err != nil {
		return report, err
	}
	keys := g.deletable(kept[0], held)
	if len(keys) == 0 {
		return report, g.left(0, 0, nil)
	}
	// Who may have looked up an object that is dead by now is to be done with it.
	if err := g.c.Fetches.Gone(ctx); err != nil {
		return report, err
	}
	var refusal error
	for some := range slices.Chunk(keys, 1000) {
		gone, err := g.remove(ctx, some)
		report.Deleted += len(gone)
		report.FreedBytes += int64(g.c.Log.Forget(gone)) * int64(g.c.BlockSize)
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		if err != nil {
			refusal = err
		}
		if len(gone) == 0 {
			break // the others are younger: what protects these protects them
		}
	}
	return report, g.left(len(keys)-report.Deleted, report.Deleted, refusal)
}

// remove deletes objects, and returns those that are gone.
func (g *Collector) remove(ctx context.Context, keys []key.Key) (gone []key.Key, err error) {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.Name()
	}
	err = g.c.Store.Delete(ctx, names)
	if err == nil {
		return keys, nil
	}
	failed := objproxy.FailedDeletes(err)
	if failed == nil {
		return nil, err
	}
	still := make(map[string]bool)
	for _, f := range failed {
		still[f.Name] = true
	}
	for i, k := range keys {
		if !still[names[i]] {
			gone = append(gone, k)
		}
	}
	return gone, err
}

// left notes that so many objects were not deleted because of refusal, and others
// were, and makes an error of that.
func (g *Collector) left(objects, deleted int, refusal error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case objects == 0 || deleted > 0:
		g.mu.denying = false
	case objects > g.mu.undeleted.Names: // not only those that it did not delete before
		g.mu.denying = true
	}
	if objects == 0 {
		g.mu.undeleted = checkpoint.Undeleted{}
		return nil
	}
	g.mu.undeleted = g.mu.undeleted.Again(objects, refusal)
	return fmt.Errorf("%d %w: %w", objects, errKept, refusal)
}
