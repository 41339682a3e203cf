package bs3

import (
	"context"
	"sync/atomic"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/wlog"
)

// chunk is an object that is still in memory: the open one, which takes
// writes, or a sealed one on its way to the store.
type chunk struct {
	slot *wlog.Slot
	obj  layout.Object // footer, checksums and records so far

	// Under the chunk lock:
	stored  bool
	linger  *time.Timer
	gather  *time.Timer // runs since the first flush that wants it sealed, if it gathers others
	ripe    bool        // it has gathered for long enough
	flushed bool        // a flush sealed it
	// What of it was given to the local log:
	loggedRecords, loggedBlocks int

	// refs counts what keeps the slot from being used again besides readers:
	// one until the durable key covers the chunk, one for each reader of the
	// upload's body that is not closed.
	refs atomic.Int32
}

// ring holds the chunks above the durable key. Their keys are contiguous and
// fewer than its length, so a key's place is its low bits. A chunk that the
// durable key covers may stay for a while, until its place is needed.
type ring []atomic.Pointer[chunk]

func newRing(chunks int) ring {
	n := 1
	for n < chunks {
		n *= 2
	}
	return make(ring, n)
}

func (r ring) at(k key.Key) *atomic.Pointer[chunk] { return &r[uint64(k)&uint64(len(r)-1)] }

// get finds the chunk of k if it is in memory. Inside an era its slot stays
// what it was.
func (r ring) get(k key.Key) *chunk {
	if c := r.at(k).Load(); c != nil && c.obj.Key == k {
		return c
	}
	return nil
}

// room says whether the open chunk takes one more record with n blocks.
func (e *Engine) room(n int) bool {
	return e.cur != nil && len(e.cur.obj.CRCs)+n <= e.chunkBlocks && len(e.cur.obj.Records) < layout.MaxRecords(e.chunkBlocks)
}

// begin opens a chunk on slot. Under the chunk lock; there is no open chunk.
func (e *Engine) begin(slot *wlog.Slot) {
	c := &chunk{slot: slot}
	e.place(c)
	slot.Begin(layout.SlotHeader{Key: c.obj.Key, Nonce: e.nonce, Epoch: e.epoch, FirstSeq: e.seq})
	e.cur = c
	if e.opts.Linger > 0 {
		c.linger = time.AfterFunc(e.opts.Linger, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			if e.cur == c {
				e.seal()
			}
		})
	}
}

// place gives c the next key and its place in the log and in memory. Under the
// chunk lock.
func (e *Engine) place(c *chunk) {
	c.obj.Footer = layout.Footer{UUID: e.uuid, Key: e.keys.Take(), Epoch: e.epoch, Nonce: e.nonce, BlockSize: uint32(e.blockSize), FirstSeq: e.seq}
	c.refs.Store(1)
	e.inMemory.Add(1)
	e.maps.AddObject(layout.ObjectInfo{Key: c.obj.Key, Epoch: e.epoch})
	e.ring.at(c.obj.Key).Store(c)
}

// seal closes the open chunk, if there is one, and gives it to the upload
// pool. Under the chunk lock.
func (e *Engine) seal() {
	c := e.cur
	if c == nil {
		return
	}
	e.cur = nil
	c.stopTimers()
	e.enqueue(c)
}

// stopTimers ends what would seal c later.
func (c *chunk) stopTimers() {
	for _, t := range []*time.Timer{c.linger, c.gather} {
		if t != nil {
			t.Stop()
		}
	}
}

// enqueue gives c, which is complete, to the upload pool. Under the chunk lock.
func (e *Engine) enqueue(c *chunk) {
	e.maps.SetTotal(c.obj.Key, uint32(len(c.obj.CRCs)))
	e.sinceCheckpoint.objects++
	e.sinceCheckpoint.bytes += int64(len(c.obj.CRCs)*e.blockSize + layout.TailSize(len(c.obj.CRCs), len(c.obj.Records)))
	e.uploads.add(c)
	e.kickCheckpoint()
}

// appendRecord puts one record, with its data and the data's checksums, into
// the open chunk. Under the chunk lock; there is room.
func (e *Engine) appendRecord(r layout.Record, data []byte, crcs []uint32) {
	c := e.cur
	r.Seq = e.seq
	e.seq++
	c.slot.Add(r, data, crcs)
	c.obj.Records = append(c.obj.Records, r)
	c.obj.CRCs = append(c.obj.CRCs, crcs...)
}

// stored notes that c is in the store, moves the durable key on as far as it
// goes, and releases what it covers now. The put took that long.
func (e *Engine) stored(c *chunk, took time.Duration) {
	e.mu.Lock()
	c.stored = true
	e.flushes.observe(took)
	if c.flushed {
		e.flushes.underWay--
		e.sealRipe()
	}
	var covered []*chunk
	for k := e.durable; ; {
		k++
		next := e.ring.get(k)
		if next == nil || !next.stored {
			break
		}
		e.durable = k
		covered = append(covered, next)
	}
	if len(covered) > 0 {
		close(e.progress)
		e.progress = make(chan struct{})
		if e.logging.log != nil {
			e.logging.log.Release(e.durable)
		}
	}
	e.mu.Unlock()
	for _, c := range covered {
		e.keepForReaders(c)
		e.ring.at(c.obj.Key).CompareAndSwap(c, nil) // a newer chunk may have the place
		e.unref(c)
	}
}

// streamed is how large a write is, in bytes, that the read caches are spared:
// what is written in such pieces will be read in such pieces, which the store
// gives fast, and copying it costs as much as all else of a write together.
const streamed = 128 << 10

// keepForReaders puts what was written to c, which the durable key covers, into
// the read caches.
func (e *Engine) keepForReaders(c *chunk) {
	if e.cache == nil && e.disk == nil {
		return
	}
	var from, to uint32 // blocks to be put
	put := func() {
		if from < to {
			e.cachePut(miss{loc: layout.Loc(c.obj.Key, from), dst: c.slot.Data(from, to-from), epoch: e.epoch})
		}
	}
	for _, r := range c.obj.Records {
		if r.Kind == layout.KindZero || int(r.Blocks)*e.blockSize >= streamed {
			continue
		}
		if r.Index != to {
			put()
			from = r.Index
		}
		to = r.Index + r.Blocks
	}
	put()
}

// unref drops one reference; the last one gives the slot back, once no reader
// can still see it.
func (e *Engine) unref(c *chunk) {
	if c.refs.Add(-1) > 0 {
		return
	}
	e.eras.retire(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.inMemory.Done()
		if !c.slot.Pooled() {
			e.freeHeapSlot()
			return
		}
		c.slot.Clear()
		e.free = append(e.free, c.slot)
		e.writers.wake()
	})
}

// heapSlot makes a slot outside the pool, when fewer than heapChunks are in use.
func (e *Engine) heapSlot(ctx context.Context) (*wlog.Slot, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.heapFree == 0 {
		if e.heapWait == nil {
			e.heapWait = make(chan struct{})
		}
		wait := e.heapWait
		e.mu.Unlock()
		var err error
		select {
		case <-wait:
		case <-e.failed:
			err = e.Err()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		e.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	e.heapFree--
	return wlog.NewHeapSlot(e.chunkBlocks, e.blockSize), nil
}

// freeHeapSlot lets another slot be made outside the pool. Under the chunk lock.
func (e *Engine) freeHeapSlot() {
	e.heapFree++
	if e.heapWait != nil {
		close(e.heapWait)
		e.heapWait = nil
	}
}

// waitDurable waits until the durable key covers k.
func (e *Engine) waitDurable(ctx context.Context, k key.Key) error {
	for {
		e.mu.Lock()
		durable, progress := e.durable, e.progress
		e.mu.Unlock()
		if durable >= k {
			return nil
		}
		select {
		case <-progress:
		case <-e.failed:
			return e.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
