package gc

import (
	"context"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
)

// What requests cost, relative to each other: stores charge about twelve times as
// much for a PUT as for a GET.
const (
	getCost = 1
	putCost = 12
	// again is the chance that what was read in order will be read in order again
	// before it changes: what a scan may pay for the next one.
	again = 0.1
)

// gathered is a part of the volume that is in the read cache, for which so many
// requests were needed.
type gathered struct {
	block    uint64
	blocks   uint64
	requests int
}

// Gathered tells the collector that a scan has brought blocks into the read cache
// with so many requests. If their next scan is worth it, and MaxMoves allows it, they
// are written again in order. It does not wait, and may be called by anybody.
func (g *Collector) Gathered(block, blocks uint64, requests int) {
	if g.c.Cached == nil || g.c.MaxMoves <= 0 {
		return
	}
	select {
	case g.gathered <- gathered{block, blocks, requests}:
	default: // the next scan will tell
	}
}

// rewrite writes what was gathered in order, as far as it is cold and still in the
// cache.
func (g *Collector) rewrite(ctx context.Context, p gathered) (Report, error) {
	puts := g.full(p.blocks)
	if again*getCost*float64(p.requests) <= putCost*float64(puts) || g.allowance() < int64(p.blocks)*int64(g.c.BlockSize) {
		return Report{}, nil
	}
	if _, _, durable, _ := g.c.Log.Objects(0, 0); durable < g.rewritten {
		return Report{}, nil // or a slow store would get more and more to do
	}
	if stuck, err := g.stuck(ctx); err != nil || stuck {
		return Report{}, err // what is moved would have to be stored before anything that makes room
	}
	c := &compaction{g: g}
	err := c.addCached(ctx, p)
	g.tidied(c.report)
	_, _, _, next := g.c.Log.Objects(0, 0)
	g.rewritten = next - 1
	return c.report, err
}

// addCached moves what of p is cold and in the cache.
func (c *compaction) addCached(ctx context.Context, p gathered) error {
	cold := c.g.cold()
	b := make([]byte, c.g.c.BlockSize)
	for block := p.block; block < p.block+p.blocks; block++ {
		m := volume.Move{Block: block, Source: c.g.c.Map.Get(block)}
		if !m.Source.Mapped() || m.Source.Key() > cold || !c.g.c.Cached(m.Source, b) {
			continue
		}
		m.CRC = layout.CRC(b)
		if err := c.add(ctx, m, b); err != nil {
			return err
		}
	}
	return c.install(ctx)
}
