package writer

import (
	"context"
	"slices"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// stored notes that c is in the store, moves the durable key on as far as it
// goes, and releases what it covers now. The put took that long.
func (l *Log) stored(c *chunk, took time.Duration) {
	var few [4]*chunk
	for _, c := range l.advance(few[:0], c, took) {
		l.keep(c)
		l.ring.at(c.obj.Key).CompareAndSwap(c, nil) // a newer chunk may have the place
		l.unref(c)
	}
}

// advance notes that c is stored, and appends to covered the chunks that the
// durable key covers for the first time.
func (l *Log) advance(covered []*chunk, c *chunk, took time.Duration) []*chunk {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &l.mu
	c.stored = true
	m.flushes.observe(took)
	if c.flushed {
		m.flushes.underWay--
		l.sealRipe()
	}
	for k := m.durable; ; {
		k++
		next := l.ring.get(k)
		if next == nil || !next.stored {
			break
		}
		m.durable = k
		covered = append(covered, next)
	}
	if len(covered) > 0 {
		close(m.progress)
		m.progress = make(chan struct{})
		if m.local.log != nil {
			m.local.log.Release(m.durable)
		}
	}
	return covered
}

// streamed is how large a write is, in bytes, that the read caches are spared:
// what is written in such pieces will be read in such pieces, which the store
// returns fast, and copying it costs as much as all else of a write together.
const streamed = 128 << 10

// keep puts what was written to c, which the durable key covers, into the read
// caches. What lies in chunk memory is lent to the one on the disk later, by giveBack.
func (l *Log) keep(c *chunk) {
	if l.c.Keep == nil {
		return
	}
	var blocks []uint64 // of the volume, by their indexes in the object
	for _, r := range c.obj.Records {
		if r.Kind == layout.KindZero || int(r.Blocks)*l.c.BlockSize >= streamed {
			continue
		}
		if blocks == nil {
			blocks = slices.Repeat([]uint64{layout.NoBlock}, int(c.obj.Blocks))
		}
		for i := range r.Blocks {
			blocks[r.Index+i] = r.Block + uint64(i)
		}
	}
	if blocks == nil {
		return
	}
	lend := c.slot.Pooled()
	if lend {
		c.kept = blocks
	}
	l.c.Keep(layout.Loc(c.obj.Key, 0), blocks, c.slot.Stored(0, c.obj.Blocks), l.c.Owner.Epoch, lend)
}

// unref drops one reference; the last one gives the slot back, once no reader
// can still see it.
func (l *Log) unref(c *chunk) {
	if c.refs.Add(-1) > 0 {
		return
	}
	l.readers.Retire(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		defer l.inMemory.Done() // nobody looks at the slot after that
		if !c.slot.Pooled() {
			<-l.heap
			return
		}
		c.slot.Clear()
		l.giveBack(c)
	})
}

// WaitDurable waits until the durable key covers k. Errors: device.ErrStopped,
// that of ctx.
func (l *Log) WaitDurable(ctx context.Context, k key.Key) error {
	for {
		l.mu.Lock()
		durable, progress := l.mu.durable, l.mu.progress
		l.mu.Unlock()
		if durable >= k {
			return nil
		}
		select {
		case <-progress:
		case <-l.c.Life.Done():
			return l.c.Life.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
