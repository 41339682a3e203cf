package gc

import (
	"cmp"
	"context"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/volume"
)

// Spread tells how the live blocks of a volume are spread over objects. Its JSON
// form is a contract.
type Spread struct {
	Objects      int `json:"objects"`       // that hold live blocks
	FullObjects  int `json:"full_objects"`  // that would do, were they full
	Requests     int `json:"requests"`      // that a cold read of all in order takes, about
	FullRequests int `json:"full_requests"` // were all in order
}

// census is a walk over the map. Places are counted in live blocks: what is
// unmapped does not part its neighbours.
type census struct {
	Spread
	extents     map[key.Key]*extent
	place       uint64
	chunkBlocks uint32
	gap         uint32 // blocks between two runs of an object that one request fetches

	window []sectormap.Run // a chunk of live blocks, or less
	left   uint32          // of it
}

// extent is the part of the volume that the live blocks of an object lie in.
type extent struct {
	live        uint32 // blocks
	first, last uint64 // places
	scattered   bool   // what lies beside its blocks comes from other objects
}

// width returns how many blocks lie between its ends for each of its own.
func (e *extent) width() float64 { return float64(e.last-e.first+1) / float64(e.live) }

// step is how many blocks of the map are looked up at a time.
const step = 1 << 15

// inOrder is how many requests a chunk of live blocks may take where the volume is
// in order: it need not begin where an object does, and not all objects are full.
const inOrder = 3

// takeCensus walks over the map while it changes. Errors: that of ctx.
func (g *Collector) takeCensus(ctx context.Context) (*census, error) {
	c := &census{
		extents: make(map[key.Key]*extent), chunkBlocks: uint32(g.c.ChunkBlocks), left: uint32(g.c.ChunkBlocks),
		gap: uint32(volume.RequestBytes / layout.Stride(g.c.BlockSize)),
	}
	var runs []sectormap.Run
	for block, blocks := uint64(0), g.c.Map.Blocks(); block < blocks; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n := min(step, blocks-block)
		runs = g.c.Map.Lookup(block, uint32(n), runs[:0])
		for _, r := range runs {
			if r.Loc.Mapped() {
				c.add(r)
			}
		}
		block += n
	}
	c.endWindow()
	c.Objects = len(c.extents)
	c.FullObjects = int((c.place + uint64(c.chunkBlocks) - 1) / uint64(c.chunkBlocks))
	c.FullRequests = c.FullObjects
	return c, nil
}

// add takes a run of live blocks, in order.
func (c *census) add(r sectormap.Run) {
	k := r.Loc.Key()
	e := c.extents[k]
	if e == nil {
		e = &extent{first: c.place}
		c.extents[k] = e
	}
	e.live += r.N
	c.place += uint64(r.N)
	e.last = c.place - 1
	for r.N > 0 {
		some := r
		some.N = min(r.N, c.left)
		c.window = append(c.window, some)
		c.left -= some.N
		r.Loc, r.N = r.Loc.Add(some.N), r.N-some.N
		if c.left == 0 {
			c.endWindow()
		}
	}
}

// endWindow counts the requests that a read of the window takes.
func (c *census) endWindow() {
	w := c.window
	c.window, c.left = w[:0], c.chunkBlocks
	if len(w) == 0 {
		return
	}
	slices.SortFunc(w, func(a, b sectormap.Run) int { return cmp.Compare(a.Loc, b.Loc) })
	requests := 1
	for i := 1; i < len(w); i++ {
		before := w[i-1].Loc
		if w[i].Loc.Key() != before.Key() || w[i].Loc.Index() > before.Index()+w[i-1].N+c.gap {
			requests++
		}
	}
	c.Requests += requests
	if requests > inOrder {
		for _, r := range w {
			c.extents[r.Loc.Key()].scattered = true
		}
	}
}
