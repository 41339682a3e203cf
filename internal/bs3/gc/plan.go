package gc

import (
	"cmp"
	"context"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// Thin returns the objects that are worth compacting, best first.
func (g *Collector) Thin() []layout.ObjectInfo {
	objects, _ := g.survey()
	return objects
}

// Excess returns what to compact so that no more than the share most of the log
// is garbage; nothing if that is so already. Objects without any live block do
// not count: they are as good as deleted. Objects that could not be read the
// last time wait for somebody to ask.
func (g *Collector) Excess(most float64) []layout.ObjectInfo {
	objects, used := g.survey()
	allowed := uint64(float64(used.live) / (1 - most))
	bad := g.unreadable()
	var chosen []layout.ObjectInfo
	for _, o := range objects {
		if used.total <= allowed {
			break
		}
		if !bad[o.Key] {
			chosen = append(chosen, o)
			used.total -= uint64(o.Total - o.Live)
		}
	}
	return chosen
}

// usage sums up objects that have live blocks.
type usage struct{ live, total uint64 }

// survey returns the objects with a share of live blocks below the threshold,
// best first: cold ones (of low keys) are worth more than hot ones, which die
// by themselves. The newest object is never among them. It also sums up all
// objects that have live blocks.
func (g *Collector) survey() ([]layout.ObjectInfo, usage) {
	var used usage
	var found []layout.ObjectInfo
	benefit := make(map[key.Key]float64)
	_ = g.eachObject(context.Background(), func(o layout.ObjectInfo, durable, next key.Key) {
		if o.Live == 0 || o.Key > durable {
			return
		}
		used.live += uint64(o.Live)
		used.total += uint64(o.Total)
		if live := float64(o.Live) / float64(o.Total); o.Key+1 < next && live < g.c.LiveData {
			found = append(found, o)
			benefit[o.Key] = (1 - live) / live * float64(next-o.Key) // what is given back for what is written, and age
		}
	})
	slices.SortStableFunc(found, func(a, b layout.ObjectInfo) int { return cmp.Compare(benefit[b.Key], benefit[a.Key]) })
	return found, used
}

// eachObject calls f for the objects of the table that no snapshot needs, some at a
// time, with the durable key and the next one at that time, until ctx ends. To move
// blocks out of an object that a snapshot needs would give back nothing.
func (g *Collector) eachObject(ctx context.Context, f func(o layout.ObjectInfo, durable, next key.Key)) error {
	held := g.c.Checkpoints.HeldAsKnown()
	for from, more := key.Key(0), true; more; from += key.Key(g.c.Step) {
		if err := ctx.Err(); err != nil {
			return err
		}
		objects, left, durable, next := g.c.Log.Objects(from, g.c.Step)
		more = left
		for _, o := range objects {
			if !held.Object(o.Key) {
				f(o, durable, next)
			}
		}
	}
	return nil
}

// Plan returns what Collect would do now, and changes nothing: the objects whose
// live blocks it would move, and those it would delete, which are the same ones
// and all that have no live block. It does not read them, so it cannot tell
// which are damaged and would be left alone. On a volume that is written it is
// an estimate.
func (g *Collector) Plan(ctx context.Context) (Report, error) {
	if err := g.c.Life.Err(); err != nil {
		return Report{}, err
	}
	var plan Report
	bytes := func(blocks uint32) int64 { return int64(blocks) * int64(g.c.BlockSize) }
	for _, o := range g.Thin() {
		plan.Add(Report{Compacted: 1, MovedBytes: bytes(o.Live), Deleted: 1, FreedBytes: bytes(o.Total)})
	}
	err := g.eachObject(ctx, func(o layout.ObjectInfo, _, _ key.Key) {
		if o.Live == 0 && !o.Fence {
			plan.Add(Report{Deleted: 1, FreedBytes: bytes(o.Total)})
		}
	})
	if err != nil {
		return Report{}, err
	}
	return plan, nil
}
