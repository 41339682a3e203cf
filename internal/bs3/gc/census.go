package gc

import (
	"cmp"
	"context"
	"slices"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// Spread tells how the live blocks of a volume are spread over objects. Its JSON
// form is a contract.
type Spread struct {
	Objects      int       `json:"objects"`       // that hold live blocks
	FullObjects  int       `json:"full_objects"`  // that would do, were they full
	Requests     int       `json:"requests"`      // that a cold read of all in order takes, about
	FullRequests int       `json:"full_requests"` // were all in order
	At           time.Time `json:"at"`            // when it was looked at
}

// census is a walk over the map. Places are counted in live blocks: what is
// unmapped does not part its neighbours. It takes as much memory as the object
// table does.
type census struct {
	Spread
	pages       []*extentPage // by key / pageObjects; nil: no object there has live blocks
	place       uint64
	chunkBlocks uint32
	gap         uint32 // blocks between two runs of an object that one request fetches

	window []sectormap.Run // a chunk of live blocks, or less
	left   uint32          // of it
	next   layout.Location // that would go on where the window before has ended
}

const pageObjects = 1 << 10

type extentPage [pageObjects]extent

// extent is the part of the volume that the live blocks of an object lie in.
type extent struct {
	first, last uint64 // places
	live        uint32 // blocks
	requests    uint32 // in which a read in order fetches them
	scattered   bool   // where some of them lie such a read takes many, also of other objects
}

// span returns how many places lie between the ends of the extent.
func (e *extent) span() uint64 { return e.last - e.first + 1 }

const (
	// step is how many blocks of the map are looked up at a time.
	step = 1 << 15
	// orderly is how many requests a chunk of live blocks takes at most where the
	// volume is in order: it need not begin where an object does, but what only goes
	// on does not count.
	orderly = 1
	// censusShare: while the foreground is busy, a census takes about one part in so
	// many of a processor.
	censusShare = 5
)

// takeCensus walks over the map while it changes, and notes what it has seen.
// Errors: that of ctx.
func (g *Collector) takeCensus(ctx context.Context) (*census, error) {
	c := &census{
		chunkBlocks: uint32(g.c.ChunkBlocks), left: uint32(g.c.ChunkBlocks),
		gap: uint32(volume.RequestBytes / layout.Stride(g.c.BlockSize)),
	}
	var runs []sectormap.Run
	var turn turn
	for block, blocks := uint64(0), g.c.Map.Blocks(); block < blocks; {
		begun := time.Now()
		n := min(step, blocks-block)
		runs = g.c.Map.Lookup(block, uint32(n), runs[:0])
		for _, r := range runs {
			if r.Loc.Mapped() {
				c.add(r)
			}
		}
		block += n
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if g.busy(&turn) {
			if err := objproxy.Sleep(ctx, min(g.c.IdleTimeout, (censusShare-1)*time.Since(begun))); err != nil {
				return nil, err
			}
		}
	}
	c.endWindow()
	c.FullObjects = g.full(c.place)
	c.FullRequests = c.FullObjects
	c.At = time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.spread = c.Spread
	return c, nil
}

// full returns how many full objects hold so many blocks.
func (g *Collector) full(blocks uint64) int {
	return int((blocks + uint64(g.c.ChunkBlocks) - 1) / uint64(g.c.ChunkBlocks))
}

// extent returns what was seen of object k; live is 0 if that is nothing.
func (c *census) extent(k key.Key) extent {
	if i := k / pageObjects; i < key.Key(len(c.pages)) && c.pages[i] != nil {
		return c.pages[i][k%pageObjects]
	}
	return extent{}
}

// at returns the extent of object k, to be changed.
func (c *census) at(k key.Key) *extent {
	i := int(k / pageObjects)
	if i >= len(c.pages) {
		c.pages = append(c.pages, make([]*extentPage, i+1-len(c.pages))...)
	}
	if c.pages[i] == nil {
		c.pages[i] = new(extentPage)
	}
	return &c.pages[i][k%pageObjects]
}

// add takes a run of live blocks, in order.
func (c *census) add(r sectormap.Run) {
	e := c.at(r.Loc.Key())
	if e.live == 0 {
		e.first = c.place
		c.Objects++
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

// endWindow counts the requests that a read of the window takes. One that only
// goes on where the window before has ended is counted there.
func (c *census) endWindow() {
	w := c.window
	c.window, c.left = w[:0], c.chunkBlocks
	if len(w) == 0 {
		return
	}
	goesOn, last := c.next, w[len(w)-1]
	c.next = last.Loc.Add(last.N)
	slices.SortFunc(w, func(a, b sectormap.Run) int { return cmp.Compare(a.Loc, b.Loc) })
	requests := 0
	count := func(k key.Key, n int) {
		requests += n
		c.at(k).requests += uint32(n)
	}
	for i, r := range w {
		k := r.Loc.Key()
		if i == 0 || k != w[i-1].Loc.Key() || r.Loc.Index() > w[i-1].Loc.Index()+w[i-1].N+c.gap {
			count(k, 1)
		}
		if r.Loc == goesOn {
			count(k, -1)
		}
	}
	c.Requests += requests
	if requests > orderly {
		for _, r := range w {
			c.at(r.Loc.Key()).scattered = true
		}
	}
}

// Look returns how the live blocks are spread over objects now. Errors:
// device.ErrStopped, that of ctx.
func (g *Collector) Look(ctx context.Context) (Spread, error) {
	if err := g.c.Life.Err(); err != nil {
		return Spread{}, err
	}
	c, err := g.takeCensus(ctx)
	if err != nil {
		return Spread{}, err
	}
	return c.Spread, nil
}

// Spread returns what was seen when somebody looked last; the zero value if
// nobody has.
func (g *Collector) Spread() Spread {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.spread
}
