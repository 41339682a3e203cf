package reader

import (
	"context"
	"fmt"
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

// orderWhole has object k fetched whole, of which so many blocks are wanted, if that
// is worth while. It returns nil if it is not.
func (r *Reader) orderWhole(k key.Key, wanted uint32) *order {
	w := &r.wholes
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
		if !worthWhole(info, wanted, r.c.BlockSize) || w.mu.blocks+int64(info.Live) > free {
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

// worthWhole reports whether an object of which so many blocks are wanted is worth
// fetching whole: little of it is wanted, and one request for all of its blocks, dead
// ones and all, costs less than one for each that lives.
func worthWhole(o layout.ObjectInfo, wanted uint32, blockSize int) bool {
	return wanted <= o.Live/2 && int64(o.Total)*int64(blockSize) <= int64(o.Live)*volume.RequestBytes
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
	n, info, err := r.c.Store.Get(ctx, k.Name(), *buf, -1)
	if err != nil {
		return fmt.Errorf("object %d (%s): %w", k, k.Name(), err) // and leave the buffer to a request that may have been given up
	}
	defer r.buffers.put(buf)
	o, err := layout.DecodeTail((*buf)[:n], info.Size)
	if err != nil {
		return fmt.Errorf("object %d (%s): %w", k, k.Name(), err)
	}
	if o.UUID != r.c.UUID || o.Key != k || o.Epoch != entry.Epoch || int64(n) != info.Size {
		return fmt.Errorf("object %d (%s): %w: it is object %d of volume %s", k, k.Name(), layout.ErrDamaged, o.Key, o.UUID)
	}
	if err := volume.Fits(o, r.c.BlockSize, r.c.Map.Blocks()); err != nil {
		return err
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
				stored := (*buf)[int(m.loc.Index())*stride:][:int(m.n)*stride]
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

// byObject calls f for each object that has some of misses, in that order, with how many
// blocks that are.
func byObject(misses []miss, f func(k key.Key, wanted uint32)) {
	wanted := make(map[key.Key]uint32)
	var keys []key.Key
	for _, m := range misses {
		k := m.loc.Key()
		if wanted[k] == 0 {
			keys = append(keys, k)
		}
		wanted[k] += m.n
	}
	for _, k := range keys {
		f(k, wanted[k])
	}
}

// awaitWholes orders objects of which a read misses something, and waits for those
// that are about to come; of a stream's, for all. It returns errAgain if the caches may
// have more now. Other errors: that of ctx. What is read ahead is ordered elsewhere.
func (r *Reader) awaitWholes(ctx context.Context, misses []miss, last *attempt) error {
	if r.wholes.orders == nil || last.waited >= patience || len(misses) == 0 || misses[0].ahead {
		return nil
	}
	var await []*order
	byObject(misses, func(k key.Key, wanted uint32) {
		if o := r.orderWhole(k, wanted); o != nil && (last.stream || o.begun.Load()) {
			await = append(await, o)
		}
	})
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

// orderWholes orders objects of which a stream will want little at a time, and
// returns the orders and the misses of other objects.
func (r *Reader) orderWholes(misses []miss) (orders []*order, rest []miss) {
	if r.wholes.orders == nil {
		return nil, misses
	}
	ordered := make(map[key.Key]bool)
	byObject(misses, func(k key.Key, wanted uint32) {
		if o := r.orderWhole(k, wanted); o != nil {
			orders = append(orders, o)
			ordered[k] = true
		}
	})
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
