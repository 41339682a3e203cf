package writer

import (
	"sync/atomic"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// chunk is an object that is still in memory: the open one, which takes
// writes, or a sealed one on its way to the store.
type chunk struct {
	slot *wlog.Slot
	obj  layout.Object // footer and records so far

	// Under the chunk lock:
	stored  bool
	kept    []uint64 // what is to be lent to the read cache on the disk: see Config.Lend
	linger  *time.Timer
	gather  *time.Timer // runs since the first flush that wants it sealed, if it gathers others
	ripe    bool        // it has gathered for long enough
	flushed bool        // a flush sealed it
	// What of it was given to the local log:
	loggedRecords int
	loggedBlocks  uint32

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

// get returns the chunk of k if it is in memory. Inside an era its slot stays
// what it was.
func (r ring) get(k key.Key) *chunk {
	if c := r.at(k).Load(); c != nil && c.obj.Key == k {
		return c
	}
	return nil
}

// room reports whether the open chunk takes one more record with n blocks.
// Under the chunk lock.
func (l *Log) room(n int) bool {
	c := l.mu.cur
	return c != nil && c.slot.Blocks()+n <= l.c.ChunkBlocks && len(c.obj.Records) < layout.MaxRecords(l.c.ChunkBlocks)
}

// begin opens a chunk on slot. Under the chunk lock; there is no open chunk.
func (l *Log) begin(slot *wlog.Slot) {
	c := &chunk{slot: slot}
	l.place(c)
	l.mu.cur = c
	if l.c.Linger > 0 {
		c.linger = time.AfterFunc(l.c.Linger, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.mu.cur == c {
				l.seal()
			}
		})
	}
}

// place gives c the next key, and its place in the log and in memory, and begins
// its slot. Under the chunk lock.
func (l *Log) place(c *chunk) {
	o := l.c.Owner
	c.obj.Footer = layout.Footer{UUID: o.UUID, Key: l.mu.keys.Take(), Epoch: o.Epoch, Nonce: o.Nonce, BlockSize: uint32(l.c.BlockSize), FirstSeq: l.mu.seq}
	c.slot.Begin(layout.SlotHeader{Key: c.obj.Key, Nonce: o.Nonce, Epoch: o.Epoch, FirstSeq: l.mu.seq})
	c.refs.Store(1)
	l.inMemory.Add(1)
	l.mu.maps.AddObject(layout.ObjectInfo{Key: c.obj.Key, Epoch: o.Epoch})
	l.ring.at(c.obj.Key).Store(c)
}

// seal closes the open chunk, if there is one, and gives it to the upload
// workers. Under the chunk lock.
func (l *Log) seal() {
	c := l.mu.cur
	if c == nil {
		return
	}
	l.mu.cur = nil
	c.stopTimers()
	l.enqueue(c)
}

// sealThrough seals the open chunk and returns the last key of the log. Under
// the chunk lock.
func (l *Log) sealThrough() key.Key {
	l.seal()
	return l.mu.keys.Next() - 1
}

// stopTimers ends what would seal c later.
func (c *chunk) stopTimers() {
	for _, t := range []*time.Timer{c.linger, c.gather} {
		if t != nil {
			t.Stop()
		}
	}
}

// enqueue gives c, which is complete, to the upload workers. Under the chunk
// lock.
func (l *Log) enqueue(c *chunk) {
	c.obj.Blocks, c.obj.Sum = uint32(c.slot.Blocks()), c.slot.Sum()
	l.mu.maps.SetTotal(c.obj.Key, c.obj.Blocks)
	l.mu.grown.Add(volume.LengthOf(c.slot.Blocks(), l.c.BlockSize, len(c.obj.Records)))
	l.uploads.add(c)
	if l.c.Grew != nil {
		l.c.Grew(l.growth())
	}
}

// addRecord puts one record, with its data and the CRCs of its blocks, into the
// open chunk. Under the chunk lock; there is room.
func (l *Log) addRecord(r layout.Record, data []byte, crcs []uint32) {
	c := l.mu.cur
	r.Seq = l.mu.seq
	l.mu.seq++
	c.slot.Add(r, data, crcs)
	c.obj.Records = append(c.obj.Records, r)
}
