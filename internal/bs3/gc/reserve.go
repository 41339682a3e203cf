package gc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// reserve is an object that takes room and means nothing. A store that is full
// would need some to give any back: what says that blocks were discarded has to
// be stored, and two checkpoints after it. So a collection that was asked for
// gives the reserve up when nothing gets into the store, and makes it again when
// it is done. One by time does not: writes that nobody stops would take the room.
type reserve struct {
	turn chan struct{} // holds a token while it is stored or deleted
	have int64         // bytes that are there; 0 = none, or nobody has looked. Of who has the token
}

const (
	// reservePerEntry is what two checkpoints take for each object of the table and
	// each leaf of the map, about. After a discard that is most of them: few leaves
	// have to be written.
	reservePerEntry = 2 * 32
	// reserveWithin bounds how long is tried to store the reserve.
	reserveWithin = 10 * time.Second
)

// stuckAfter is for how long nothing gets into a store before it is taken for
// full.
const stuckAfter = 5 * time.Second

// stuck reports whether what was written does not get into the store. It seals
// what is open. Errors: those of Log.FlushToStore, but for running out of time.
func (g *Collector) stuck(ctx context.Context) (bool, error) {
	_, _, before, _ := g.c.Log.Objects(0, 0)
	waiting, cancel := context.WithTimeout(ctx, stuckAfter)
	defer cancel()
	if err := g.c.Log.FlushToStore(waiting); err == nil || waiting.Err() == nil || ctx.Err() != nil {
		return false, err
	}
	_, _, after, _ := g.c.Log.Objects(0, 0)
	return after == before, nil
}

// makeRoom gives up the reserve if nothing gets into the store, and reports
// whether that is so. Errors: as stuck, and that of ctx.
func (g *Collector) makeRoom(ctx context.Context) (stuck bool, err error) {
	if stuck, err = g.stuck(ctx); err != nil || !stuck || g.c.Reserve <= 0 {
		return stuck, err
	}
	if err := take(ctx, g.reserve.turn); err != nil {
		return true, err
	}
	defer func() { <-g.reserve.turn }()
	g.reserve.have = 0
	if err := g.c.Store.Delete(ctx, []string{layout.ReserveName}); err != nil {
		g.c.Logger.Warn().Err(err).Msg("nothing gets into the store, and the reserve cannot be deleted: a discard may need other room")
		return true, nil // it waits for that
	}
	g.c.Logger.Warn().Msg("nothing gets into the store: gave up the reserve, so that what was discarded can be given back")
	return true, nil
}

// keepReserve stores the reserve if it is missing or has become too small. If it
// cannot, nothing is lost until the store is full.
func (g *Collector) keepReserve(ctx context.Context) {
	if g.c.Reserve <= 0 {
		return
	}
	if take(ctx, g.reserve.turn) != nil {
		return
	}
	defer func() { <-g.reserve.turn }()
	within, cancel := context.WithTimeout(ctx, reserveWithin)
	defer cancel()
	if err := g.storeReserve(within); err != nil && ctx.Err() == nil {
		g.c.Logger.Warn().Err(err).Msg("the reserve cannot be stored: should the store become full, a discard may need other room")
	}
}

func (g *Collector) storeReserve(ctx context.Context) error {
	entries := int64(g.c.Log.Grown().Table) + int64(g.c.Map.Blocks()/layout.LeafBlocks)
	want := g.c.Reserve + reservePerEntry*entries
	if g.reserve.have == 0 { // a writer before may have left one
		if _, info, err := g.c.Store.Get(ctx, layout.ReserveName, nil, 0); err == nil {
			g.reserve.have = info.Size
		}
	}
	if g.reserve.have >= want {
		return nil
	}
	b := make([]byte, want+want/4)             // or it would be made anew all the time
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // zeros take no room where a store compresses; it never fails
	if _, err := g.c.Store.Put(ctx, layout.ReserveName, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		return fmt.Errorf("store %s: %w", layout.ReserveName, err)
	}
	g.reserve.have = int64(len(b))
	return nil
}
