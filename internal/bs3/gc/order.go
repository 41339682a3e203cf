package gc

import (
	"cmp"
	"context"
	"math"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// Sorting is a radix sort by passes. A batch of objects is written again in the
// order of the volume, so that each of its new objects covers one part of what all
// of them covered before. What a batch gains is known in advance: its new objects
// do not overlap. So a batch is sorted only where its objects cover the same places
// several times over, and never again for nothing.
const (
	// timelyOverlap and defragOverlap are how often the objects of a batch must cover
	// its places, for a collection by time and for Defrag.
	timelyOverlap, defragOverlap = 2, 1.5
	// timelyGain and defragGain are how many requests the objects of a class must take
	// for each chunk of the places that they cover. It may take several passes to gain
	// that, of which the first alone gain nothing.
	timelyGain, defragGain = 2, 1.25
	// timelyRequests is the least number of requests that an object takes to be
	// sorted by time.
	timelyRequests = 4
	// timelyBatches is how many batches one collection by time sorts at most, if
	// timelyShare of the live data is not more. It is this share, and a batch, that
	// MaxMoves must allow: less would not be worth a census.
	timelyBatches = 8
	timelyShare   = 1.0 / 64
	// rewritten is the share of what is mapped that is written between two collections by
	// time where nothing is sorted: it would be scattered again soon.
	rewritten = 1.0 / 8
	// manyTimes and manyMore: as many times what full ones would do, and as many
	// more, are too many objects.
	manyTimes, manyMore = 2, 64
)

// batch is objects whose live blocks are gathered together.
type batch struct {
	objects []layout.ObjectInfo
	live    uint64 // blocks
	spans   uint64 // of the objects
	widths  uint64 // the same, but of each a chunk at least
	covered coverage
	passes  int // that part its blocks from those of others, about
}

// coverage counts the places that objects cover, which come in the order of the volume.
type coverage struct{ places, end uint64 }

func (c *coverage) add(e extent) {
	if e.last >= c.end {
		c.places += e.last + 1 - max(c.end, e.first)
		c.end = e.last + 1
	}
}

func (b *batch) add(w wide, chunk uint64) {
	b.objects = append(b.objects, w.ObjectInfo)
	b.live += uint64(w.live)
	b.spans += w.span()
	b.widths += max(w.span(), chunk)
	b.covered.add(w.extent)
}

// overlap returns how many of the objects cover a place, on average over the places that
// any of them covers. One that is narrower than a chunk takes a request all the same, so
// it counts as a chunk where that makes more; but the last of the objects that come of a
// batch is as narrow as it happens to be. These overlap at most once, by either account.
func (b *batch) overlap(chunk uint64) float64 {
	places := b.covered.places
	return max(float64(b.spans)/float64(places), float64(b.widths)/float64(places+chunk-1))
}

// wide is an object with its extent.
type wide struct {
	layout.ObjectInfo
	extent
}

// passes returns how many passes of sorting part the blocks of an object so wide
// from those of others: each makes the part of the volume that one object covers
// narrower, down to a chunk.
func (g *Collector) passes(w wide) int {
	chunks := float64(w.span()) / float64(g.c.ChunkBlocks)
	return max(1, int(math.Ceil(math.Log(chunks)/math.Log(float64(g.sortChunks)))))
}

// choice says what to sort.
type choice struct {
	which         func(wide) bool
	overlap, gain float64
}

// classes returns the objects that may be sorted, in classes of those that need
// the same number of passes, the most first, and each in the order of the volume.
// Classes that sorting would not gain enough are left out.
func (g *Collector) classes(ctx context.Context, c *census, how choice) ([][]wide, error) {
	var found []wide
	bad := g.unreadable()
	err := g.eachObject(ctx, func(o layout.ObjectInfo, durable, _ key.Key) {
		w := wide{o, c.extent(o.Key)}
		if o.Live > 0 && w.live > 0 && o.Key <= durable && !bad[o.Key] && how.which(w) {
			found = append(found, w)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b wide) int {
		return cmp.Or(cmp.Compare(g.passes(b), g.passes(a)), cmp.Compare(a.first, b.first))
	})
	var classes [][]wide
	for len(found) > 0 {
		n := 1
		for n < len(found) && g.passes(found[n]) == g.passes(found[0]) {
			n++
		}
		if class := found[:n]; g.gains(class, how.gain) {
			classes = append(classes, class)
		}
		found = found[n:]
	}
	return classes, nil
}

// gains reports whether the objects, in the order of the volume, take at least
// least times the requests that they would if all were in order.
func (g *Collector) gains(class []wide, least float64) bool {
	var requests uint64
	var covered coverage
	for _, w := range class {
		requests += uint64(w.requests)
		covered.add(w.extent)
	}
	return float64(requests) >= least*float64(g.full(covered.places))
}

// batches cuts classes into batches, and returns those that are worth sorting.
func (g *Collector) batches(classes [][]wide, how choice) []batch {
	var found []batch
	full := uint64(g.sortChunks * g.c.ChunkBlocks)
	for _, class := range classes {
		for len(class) > 0 {
			b := batch{passes: g.passes(class[0])}
			n := 0
			for n < len(class) && (n == 0 || b.live+uint64(class[n].live) <= full) {
				b.add(class[n], uint64(g.c.ChunkBlocks))
				n++
			}
			class = class[n:]
			if n >= 2 && b.overlap(uint64(g.c.ChunkBlocks)) >= how.overlap {
				found = append(found, b)
			}
		}
	}
	return found
}

// widest returns the batches of the class that needs the most passes: what comes of
// them is sorted on together with the other ones, in the next pass.
func widest(batches []batch) []batch {
	n := 0
	for n < len(batches) && batches[n].passes == batches[0].passes {
		n++
	}
	return batches[:n]
}

// atMost returns the first of the batches, which have together at most so many live
// blocks. Half a batch would be half as good, for the same moves.
func atMost(batches []batch, most uint64) []batch {
	for i, b := range batches {
		if most < b.live {
			return batches[:i]
		}
		most -= b.live
	}
	return batches
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

// tooMany reports whether there are many more objects than full ones would do.
func (g *Collector) tooMany(objects int, live uint64) bool {
	if g.c.Eager {
		return objects > g.full(live)
	}
	return objects > manyTimes*g.full(live)+manyMore
}

// small returns the objects to merge by time, those with the least live data
// first, which have together at most so many live blocks. None if there are not
// too many objects. While there will be more, full objects come of them, or what does
// not fill one would be merged again and again; those that wait for that are not
// counted as too many.
func (g *Collector) small(ctx context.Context, most uint64) (small []layout.ObjectInfo, tooMany bool, err error) {
	var objects int
	var live, found, young uint64 // blocks; the last two of small objects
	cold, bad := g.cold(), g.unreadable()
	err = g.eachObject(ctx, func(o layout.ObjectInfo, durable, _ key.Key) {
		if o.Live == 0 {
			return
		}
		objects++
		live += uint64(o.Live)
		switch {
		case int(o.Live) > g.c.ChunkBlocks/2 || bad[o.Key]:
		case o.Key <= min(cold, durable):
			small = append(small, o)
			found += uint64(o.Live)
		default:
			young += uint64(o.Live)
		}
	})
	if err != nil || !g.tooMany(objects, live) {
		return nil, false, err
	}
	chunk := uint64(g.c.ChunkBlocks)
	if young > 0 || found > most {
		most = min(found, most) / chunk * chunk
	}
	slices.SortStableFunc(small, func(a, b layout.ObjectInfo) int { return cmp.Compare(a.Live, b.Live) })
	n := 0
	for n < len(small) && uint64(small[n].Live) <= most {
		most -= uint64(small[n].Live)
		n++
	}
	if n < 2 {
		return nil, found+young >= chunk, nil
	}
	return small[:n], true, nil
}

// scattered returns the batches to sort by time, which have together at most so
// many live blocks, and whether those are all of their class.
func (g *Collector) scattered(ctx context.Context, most uint64) (chosen []batch, whole bool, err error) {
	live := g.c.Map.Mapped()
	batch, share := uint64(g.sortChunks*g.c.ChunkBlocks), uint64(timelyShare*float64(live))
	if most < min(max(batch, share), live) {
		return nil, false, nil
	}
	c, err := g.takeCensus(ctx)
	if err != nil {
		return nil, false, err
	}
	cold := g.cold()
	how := choice{func(w wide) bool { return w.Key <= cold && w.requests >= timelyRequests }, timelyOverlap, timelyGain}
	if g.c.Eager {
		how = choice{func(w wide) bool { return w.Key <= cold }, math.Nextafter(1, 2), 0}
	}
	classes, err := g.classes(ctx, c, how)
	if err != nil {
		return nil, false, err
	}
	pass := widest(g.sorted.next(g.batches(classes, how)))
	chosen = atMost(pass, min(most, max(timelyBatches*batch, share)))
	if len(chosen) > 0 && chosen[0].passes < g.sorted.passes && cold < g.sorted.last {
		return nil, false, nil // what came of the last pass is sorted on with these, once it is cold
	}
	return chosen, len(chosen) == len(pass), nil
}

// class is what a collection by time has sorted last.
type class struct {
	passes int     // that its objects needed
	whole  bool    // none of them were left
	last   key.Key // of those that came of them
}

// next returns those of the batches that are sorted next. What came of a pass comes
// before what was written meanwhile and needs more passes, or the last pass would not
// be made while somebody writes.
func (c class) next(batches []batch) []batch {
	i := slices.IndexFunc(batches, func(b batch) bool { return b.passes < c.passes || b.passes == c.passes && !c.whole })
	return batches[max(0, i):]
}

// tidiness is what a collection by time that found nothing to tidy depended on.
type tidiness struct{ next, cold key.Key }

// allowance returns how many bytes may be moved to merge and sort without being
// asked: MaxMoves of what was written, before the open as far as the store had it then.
func (g *Collector) allowance() int64 {
	written := g.c.Log.Written()
	g.mu.Lock()
	defer g.mu.Unlock()
	return int64(g.c.MaxMoves*float64(g.mu.found+written)) - g.mu.tidied
}

// tidy is what a collection by time does for reads: it merges small objects and
// sorts scattered ones, as far as MaxMoves allows. Where nothing has changed since
// it found nothing, it does not look again.
func (g *Collector) tidy(ctx context.Context) (Report, error) {
	most := uint64(max(0, g.allowance()) / int64(g.c.BlockSize))
	written := g.c.Log.Written()
	busy := float64(written-g.writtenAt) > rewritten*float64(g.c.Map.Mapped())*float64(g.c.BlockSize) && !g.c.Eager
	if g.writtenAt = written; most == 0 {
		return Report{}, nil
	}
	_, _, _, next := g.c.Log.Objects(0, 0)
	now := tidiness{next, g.cold()}
	if now == g.tidyAt {
		return Report{}, nil
	}
	objects, tooMany, err := g.small(ctx, most)
	if err != nil {
		return Report{}, err
	}
	var chosen []batch
	whole, sorts := false, false
	if len(objects) > 0 {
		chosen = []batch{{objects: objects}}
	} else if !tooMany && !busy { // or a census would take much memory
		if chosen, whole, err = g.scattered(ctx, most); err != nil {
			return Report{}, err
		}
		sorts = true
	}
	if len(chosen) == 0 {
		if !busy {
			g.tidyAt = now
		}
		return Report{}, nil
	}
	report, err := g.compactUnlessStuck(ctx, chosen...)
	g.tidied(report)
	if sorts && report.Compacted > 0 {
		_, _, _, next = g.c.Log.Objects(0, 0)
		g.sorted = class{chosen[0].passes, whole, next - 1}
	}
	return report, err
}

// tidied counts what was moved to merge and sort.
func (g *Collector) tidied(r Report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.tidied += r.MovedBytes
}
