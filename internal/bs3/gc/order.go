package gc

import (
	"cmp"
	"context"
	"math"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

const (
	// smallObjects is how many more objects than full ones would do there may be,
	// beside twice as many, before small ones are merged.
	smallObjects = 64
	// sortDensity is the least share of objects of one width among all live blocks
	// where they lie for that sorting them is worth while: others would only be spread
	// over the same place again.
	sortDensity = 1.0 / 8
	// timelyObjects is how many objects one collection by time sorts.
	timelyObjects = 8 * sortChunks
	// defragObjects is how many objects Defrag sorts before it gives back what is dead
	// then: it bounds the room that it takes.
	defragObjects = 64 * sortChunks
	// passGain is the most requests, as a share of those before, that a pass may leave
	// for another one to be worth while.
	passGain = 0.9
)

// allowance returns how many bytes may be moved to merge and sort without being asked,
// so that all collections since the open move no more than MaxMoves allows of what was
// written, before the open as far as it was live then.
func (g *Collector) allowance() int64 {
	return int64(g.c.MaxMoves*float64(g.found+g.c.Log.Written())) - g.Collected().MovedBytes
}

// cold returns the key up to which objects are older than both kept checkpoints.
// Younger ones may die by themselves.
func (g *Collector) cold() key.Key {
	kept := g.c.Checkpoints.Kept()
	if len(kept) < layout.MaxCheckpoints {
		return 0
	}
	return kept[0].Last
}

// within returns as many of the objects, in order, as have no more than bytes of
// live data together.
func (g *Collector) within(objects []layout.ObjectInfo, bytes int64) []layout.ObjectInfo {
	for i, o := range objects {
		if bytes -= int64(o.Live) * int64(g.c.BlockSize); bytes < 0 {
			return objects[:i]
		}
	}
	return objects
}

// Small returns the objects to merge by time, which have at most so many bytes of
// live data: none while there are not many more objects than full ones would do.
// Those with the least live data come first.
func (g *Collector) Small(allowed int64) []layout.ObjectInfo {
	var objects, live int
	var small []layout.ObjectInfo
	cold := g.cold()
	_ = g.eachObject(context.Background(), func(o layout.ObjectInfo, durable, _ key.Key) {
		if o.Live == 0 {
			return
		}
		objects++
		live += int(o.Live)
		if o.Key <= min(cold, durable) && int(o.Live) <= g.c.ChunkBlocks/2 && !g.unmovable[o.Key] {
			small = append(small, o)
		}
	})
	if full := (live + g.c.ChunkBlocks - 1) / g.c.ChunkBlocks; objects <= 2*full+smallObjects {
		return nil
	}
	slices.SortStableFunc(small, func(a, b layout.ObjectInfo) int { return cmp.Compare(a.Live, b.Live) })
	if small = g.within(small, allowed); len(small) < 2 {
		return nil
	}
	return small
}

// wide is an object with its extent.
type wide struct {
	layout.ObjectInfo
	*extent
}

// passes returns how many passes of sorting part the blocks of an object so wide
// from those of others.
func (w wide) passes() int {
	return int(math.Ceil(math.Log(max(1, w.width())) / math.Log(sortChunks)))
}

// widest returns the objects for which choose returns true, those that need the
// most passes first, and of these in the order of the volume.
func (g *Collector) widest(c *census, choose func(wide) bool) []wide {
	var found []wide
	_ = g.eachObject(context.Background(), func(o layout.ObjectInfo, durable, _ key.Key) {
		e := c.extents[o.Key]
		if e == nil || o.Live == 0 || o.Key > durable || g.unmovable[o.Key] {
			return
		}
		if w := (wide{o, e}); choose(w) {
			found = append(found, w)
		}
	})
	slices.SortStableFunc(found, func(a, b wide) int {
		return cmp.Or(cmp.Compare(b.passes(), a.passes()), cmp.Compare(a.first, b.first))
	})
	return found
}

func infos(ws []wide) []layout.ObjectInfo {
	objects := make([]layout.ObjectInfo, len(ws))
	for i, w := range ws {
		objects[i] = w.ObjectInfo
	}
	return objects
}

// Scattered returns the objects to sort by time, which have at most so many bytes
// of live data: those of the greatest width of which there are enough to part them.
func (g *Collector) Scattered(ctx context.Context, allowed int64) ([]layout.ObjectInfo, error) {
	c, err := g.takeCensus(ctx)
	if err != nil {
		return nil, err
	}
	g.note(c.Spread)
	cold := g.cold()
	found := g.widest(c, func(w wide) bool { return w.Key <= cold && w.width() >= 2 })
	for len(found) > 0 {
		n := 0
		for n < len(found) && found[n].passes() == found[0].passes() {
			n++
		}
		if class := found[:n]; density(class) >= sortDensity {
			return g.within(infos(class[:min(n, timelyObjects)]), allowed), nil
		}
		found = found[n:]
	}
	return nil, nil
}

// density returns the share of the objects among the blocks where they lie.
func density(objects []wide) float64 {
	var live, first, last uint64 = 0, math.MaxUint64, 0
	for _, w := range objects {
		live += uint64(w.extent.live)
		first, last = min(first, w.first), max(last, w.last)
	}
	return float64(live) / float64(last-first+1)
}

// tidy is what a collection by time does for reads: it merges small objects and
// sorts scattered ones, as far as MaxMoves allows.
func (g *Collector) tidy(ctx context.Context) (Report, error) {
	var report Report
	allowed := g.allowance()
	if allowed < int64(g.c.ChunkBlocks)*int64(g.c.BlockSize) {
		return report, nil
	}
	objects := g.Small(allowed)
	if len(objects) == 0 {
		var err error
		if objects, err = g.Scattered(ctx, allowed); err != nil {
			return report, err
		}
	}
	return g.compactUnlessStuck(ctx, objects)
}

// Defrag puts all live blocks in order, in passes, and gives back what is dead
// then. It ends when a pass gains little. Only Run, or a test in its place, may call
// it. Errors: those of Collect.
func (g *Collector) Defrag(ctx context.Context) (Report, error) {
	report, err := g.GiveBack(ctx)
	if !g.goesOn(err) {
		return report, err
	}
	for before := math.MaxInt; ; {
		c, err := g.takeCensus(ctx)
		if err != nil {
			return report, err
		}
		g.note(c.Spread)
		objects := infos(g.widest(c, wide.outOfOrder))
		if len(objects) < 2 || float64(c.Requests) > passGain*float64(before) {
			break
		}
		before = c.Requests
		for some := range slices.Chunk(objects, defragObjects) {
			sorted, err := g.Compact(ctx, some)
			report.Add(sorted)
			if err != nil {
				return report, err
			}
			if err := g.settle(ctx, &report); !g.goesOn(err) {
				return report, err
			}
		}
	}
	rest, err := g.everything(ctx)
	report.Add(rest)
	return report, err
}

func (w wide) outOfOrder() bool { return w.scattered }

// DefragPlan is what Defrag would do, about.
type DefragPlan struct {
	Spread
	Passes int   `json:"passes"`
	Bytes  int64 `json:"bytes"` // read and written, in all passes
	Gets   int   `json:"gets"`
	Puts   int   `json:"puts"`
}

// PlanDefrag returns what Defrag would do now, and changes nothing. Errors: those
// of Plan.
func (g *Collector) PlanDefrag(ctx context.Context) (DefragPlan, error) {
	if err := g.c.Life.Err(); err != nil {
		return DefragPlan{}, err
	}
	c, err := g.takeCensus(ctx)
	if err != nil {
		return DefragPlan{}, err
	}
	p := DefragPlan{Spread: c.Spread}
	objects := g.widest(c, wide.outOfOrder)
	if len(objects) < 2 {
		return p, nil
	}
	var live int64
	for _, w := range objects {
		live += int64(w.extent.live)
	}
	p.Passes = max(1, objects[0].passes())
	p.Bytes = int64(p.Passes) * live * int64(g.c.BlockSize)
	full := int((live + int64(g.c.ChunkBlocks) - 1) / int64(g.c.ChunkBlocks))
	p.Gets, p.Puts = len(objects)+(p.Passes-1)*full, p.Passes*full
	return p, nil
}
