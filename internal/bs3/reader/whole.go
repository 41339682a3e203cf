package reader

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/volume"
)

const (
	// mostOrders bounds the objects that are to be fetched whole.
	mostOrders = 1 << 12
	// patience is how long a read of a stream waits for what is fetched for the
	// stream, before it asks for what it wants itself.
	patience = 4 * time.Second
)

// wholes are the objects that are fetched whole: with what somebody wants of them
// comes what else lives in them, for the price of its bytes. That is worth while as
// long as the cache has room for all of the volume that is mapped, so that nothing
// gives way to what may never be read.
type wholes struct {
	orders  chan *order   // nil: nothing is fetched whole
	fetched chan struct{} // holds something when buffers were used
	mu      struct {
		sync.Mutex
		underWay map[key.Key]*order
		// tried are those that were fetched while the cache had room for them: what is
		// missing of them was written later, or is damaged.
		tried  map[key.Key]bool
		blocks int64 // of those under way
		ended  bool  // nothing is ordered any more
	}
}

// order is an object to be fetched whole.
type order struct {
	key    key.Key
	blocks int64         // live ones
	begun  atomic.Bool   // a worker has taken it
	done   chan struct{} // closed when it is in the cache, or has failed
}

// want is what somebody wants of an object: so many blocks, in so many requests.
type want struct {
	key      key.Key
	blocks   uint32
	requests int
}

// orderWhole has an object fetched whole of which something is wanted, if that is
// worth while. It returns nil if it is not.
func (r *Reader) orderWhole(of want) *order {
	w, k := &r.wholes, of.key
	if w.orders == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.mu.underWay[k]
	if o == nil {
		if w.mu.ended {
			return nil
		}
		all, free := r.c.Cache.Blocks()
		if w.mu.tried[k] || free <= w.mu.blocks || int64(r.c.Map.Mapped()) > all {
			return nil
		}
		info := r.c.Memory.Object(k)
		if !worthWhole(info, of, r.c.BlockSize) || w.mu.blocks+int64(info.Live) > free {
			return nil
		}
		o = &order{key: k, blocks: int64(info.Live), done: make(chan struct{})}
		select {
		case w.orders <- o:
		default:
			return nil
		}
		w.mu.underWay[k] = o
		w.mu.blocks += o.blocks
	}
	return o
}

// worthWhole reports whether an object of which something is wanted is worth fetching
// whole: little of it is wanted, or in several requests, and one request for all of its
// blocks, dead ones and all, costs less than one for each that lives.
func worthWhole(o layout.ObjectInfo, of want, blockSize int) bool {
	return (of.blocks <= o.Live/2 || of.requests > 1) && int64(o.Total)*int64(blockSize) <= int64(o.Live)*volume.RequestBytes
}

// fulfilled ends an order.
func (w *wholes) fulfilled(o *order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.mu.underWay, o.key)
	w.mu.blocks -= o.blocks
	if len(w.mu.tried) > mostOrders*16 {
		clear(w.mu.tried)
	}
	w.mu.tried[o.key] = true
	close(o.done)
}

// runWholes carries out orders until ctx ends. Several may run.
func (r *Reader) runWholes(ctx context.Context) {
	for {
		select {
		case o := <-r.wholes.orders:
			if release, ok := r.ahead.takeTurns(ctx, r.c.ChunkSize); ok {
				o.begun.Store(true)
				if err := r.fetchWhole(ctx, o.key); err != nil && ctx.Err() == nil {
					r.c.Log.Debug().Err(err).Msg("an object was not fetched whole")
				}
				release()
			}
			r.wholes.fulfilled(o)
			select {
			case r.wholes.fetched <- struct{}{}:
			default:
			}
		case <-ctx.Done():
			return
		}
	}
}

// end ends all orders. No worker may run any more.
func (w *wholes) end() {
	w.mu.Lock()
	w.mu.ended = true
	w.mu.Unlock()
	for {
		select {
		case o := <-w.orders:
			w.fulfilled(o)
		default:
			return
		}
	}
}

// fetchWhole brings what lives of object k into the caches. What does not verify
// gets no further: who wants it will ask for it.
func (r *Reader) fetchWhole(ctx context.Context, k key.Key) error {
	v := r.fetches.Enter()
	defer r.fetches.Leave(v)
	entry := r.c.Memory.Object(k)
	if entry.Live == 0 {
		return nil
	}
	ctx, release := r.c.Life.Limit(ctx)
	defer release()
	stride := r.buffers.stride
	chunk := r.c.ChunkSize / r.c.BlockSize
	buf := r.buffers.get(uint32(chunk + (layout.MaxTailSize(chunk)+stride-1)/stride))
	whole := volume.Objects{Store: r.c.Store, UUID: r.c.UUID, BlockSize: r.c.BlockSize, Blocks: r.c.Map.Blocks()}
	o, data, err := whole.Read(ctx, k, *buf)
	if err != nil {
		return err // and leave the buffer to a request that may have been given up
	}
	defer r.buffers.put(buf)
	if o.Epoch != entry.Epoch {
		return fmt.Errorf("object %d (%s): %w: it is of epoch %d, not %d", k, k.Name(), layout.ErrDamaged, o.Epoch, entry.Epoch)
	}
	var runs []sectormap.Run
	for _, rec := range o.Records {
		if rec.Kind == layout.KindZero {
			continue
		}
		runs = r.c.Map.Lookup(rec.Block, rec.Blocks, runs[:0])
		for _, run := range runs {
			at := layout.Loc(k, rec.Index+uint32(run.Block-rec.Block))
			if run.Loc != at {
				continue
			}
			has := func(i uint32) bool { return r.c.Cache.Has(at.Add(i)) }
			all := miss{block: run.Block, loc: at, n: run.N, epoch: o.Epoch, ahead: true}
			all.without(has, r.c.BlockSize, func(m miss) {
				stored := data[int(m.loc.Index())*stride:][:int(m.n)*stride]
				if r.take([]miss{m}, stored) == nil {
					r.diskPut(m.loc, m.epoch, m.blocks(nil), stored)
				} else {
					r.wrong.Add(1)
				}
			})
		}
	}
	return nil
}

// wants returns what misses want of each object, where gap is how far apart runs may
// lie that one request fetches. It sorts misses.
func (r *Reader) wants(misses []miss, gap int) (wants []want) {
	for _, g := range r.group(misses, gap) {
		if k, n := g[0].loc.Key(), len(wants); n == 0 || wants[n-1].key != k {
			wants = append(wants, want{key: k})
		}
		w := &wants[len(wants)-1]
		w.requests++
		for _, m := range g {
			w.blocks += m.n
		}
	}
	return wants
}

// awaitWholes orders objects of which a read misses something, and waits for those
// that are about to come; of a stream's, for all. It returns errAgain if the caches may
// have more now. Other errors: that of ctx.
func (r *Reader) awaitWholes(ctx context.Context, misses []miss, last *attempt) error {
	if r.wholes.orders == nil || last.waited >= patience {
		return nil
	}
	var await []*order
	for _, w := range r.wants(misses, requestGap) {
		if o := r.orderWhole(w); o != nil && (last.stream || o.begun.Load()) {
			await = append(await, o)
		}
	}
	if len(await) == 0 {
		return nil
	}
	began := time.Now()
	defer func() { last.waited += time.Since(began) }()
	timeout := time.NewTimer(patience - last.waited)
	defer timeout.Stop()
	for _, o := range await {
		select {
		case <-o.done:
		case <-timeout.C:
			return errAgain
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errAgain
}

// orderWholes orders objects of which misses want at most so many blocks, but none of
// not, and returns the orders and the misses of other objects.
func (r *Reader) orderWholes(misses []miss, most uint32, not []key.Key) (orders []*order, rest []miss) {
	if r.wholes.orders == nil || most == 0 {
		return nil, misses
	}
	ordered := make(map[key.Key]bool)
	for _, w := range r.wants(misses, aheadGap) {
		if w.blocks > most || slices.Contains(not, w.key) {
			continue
		}
		if o := r.orderWhole(w); o != nil {
			orders = append(orders, o)
			ordered[w.key] = true
		}
	}
	for _, m := range misses {
		if !ordered[m.loc.Key()] {
			rest = append(rest, m)
		}
	}
	return orders, rest
}

// await waits for orders, or until ctx ends.
func await(ctx context.Context, orders []*order) {
	for _, o := range orders {
		select {
		case <-o.done:
		case <-ctx.Done():
			return
		}
	}
}
