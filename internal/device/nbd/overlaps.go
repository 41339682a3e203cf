package nbd

import (
	"context"
	"sync"
	"sync/atomic"
)

// overlaps orders changes of the same blocks. It makes two promises:
//
//   - A request that is not a multiple of the block size is served by reading the
//     blocks at its edges and writing them back whole (a read-modify-write).
//     That loses no other change of those blocks, on whatever connection.
//   - Changes of the same blocks by one connection take effect in the order in
//     which they were received. The protocol does not require it, but there are
//     clients that trim a block and write it without waiting in between.
//
// There are two kinds of changes. Those that may wait run on goroutines of
// their own (tasks) and hold a span of blocks in a table from when they are
// received until they are done; of two spans with a common block the later
// waits for the earlier. A write through device.Fast runs on the goroutine
// that received it and holds nothing. Inside the gate of its connection it only
// checks whether it may: no read-modify-write is announced, and no span with a
// common block is in the table if the connection has any there. Otherwise it
// becomes a task.
//
// Why no change W is lost to a read-modify-write R of one of its blocks. If W
// is a task, the table orders the two. If W went through Fast, it did so
// inside the gate of its connection and saw announced == 0 there. R adds to
// announced first (1), then takes and releases the gate of every connection
// (2), and only then reads (3). If W has the gate before R, W took effect before
// (3) and R reads it. If W has it after R, W must have seen (1), since the gate
// orders (1) before W's check, and announced stays above zero until R has
// written. A connection that R does not find in (2) was added to the server's set
// after R held its lock, which orders (1) before all that this connection does.
// Fast never blocks, so (2) waits for nothing but processor time.
//
// Why the order of a connection holds. Only the receiving goroutine adds spans
// and writes through Fast. A change whose span it does not find has taken effect.
//
// All this costs a write through Fast one uncontended lock and the load of two
// counters that nobody writes unless there are such requests.
type overlaps struct {
	announced atomic.Int64 // read-modify-writes between (1) and their end

	mu    sync.Mutex
	spans []*span // in no order
}

// span is a run of blocks, first to last, that a task changes.
type span struct {
	first, last int64
	index       int             // in overlaps.spans
	before      []chan struct{} // of the earlier spans that it waits for
	freed       chan struct{}   // made by the first later one that waits for this
}

// add adds s behind all spans that have a block in common with it.
func (l *overlaps) add(s *span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.spans {
		if s.first <= o.last && o.first <= s.last {
			if o.freed == nil {
				o.freed = make(chan struct{})
			}
			s.before = append(s.before, o.freed)
		}
	}
	s.index = len(l.spans)
	l.spans = append(l.spans, s)
}

// wait returns when s is the first of those that it overlaps, or when ctx is
// cancelled. It waits only for earlier spans, so it cannot deadlock.
func (s *span) wait(ctx context.Context) error {
	for _, freed := range s.before {
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// remove removes s, which need not have finished its wait: whoever waits for s
// also waits for those before it.
func (l *overlaps) remove(s *span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.spans) - 1
	l.spans[s.index] = l.spans[last]
	l.spans[s.index].index = s.index
	l.spans[last] = nil
	l.spans = l.spans[:last]
	if s.freed != nil {
		close(s.freed)
	}
}

// taken reports whether a span has a block from first to last.
func (l *overlaps) taken(first, last int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.spans {
		if first <= o.last && o.first <= last {
			return true
		}
	}
	return false
}

// beginRMW announces a read-modify-write and returns when no write through Fast
// is running that has not seen it. endRMW has to follow.
func (s *Server) beginRMW() {
	s.overlaps.announced.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.gate.Lock()
		c.gate.Unlock() //nolint:staticcheck // passing the gate is the point, see overlaps
	}
}

func (s *Server) endRMW() { s.overlaps.announced.Add(-1) }

// enlist gives t its place in the order of changes. The receiving goroutine calls
// it; change ends it.
func (c *conn) enlist(t *task) {
	var off, n int64
	switch t.cmd {
	case cmdWrite, cmdWriteZeroes:
		off, n, _ = c.srv.cover(t.request)
	case cmdTrim:
		off, n = c.srv.inner(t.request)
	}
	if n <= 0 {
		return
	}
	bs := int64(c.srv.geometry.BlockSize)
	t.span = &span{first: off / bs, last: (off+n)/bs - 1}
	c.changes.Add(1)
	c.srv.overlaps.add(t.span)
}

// delist gives up the place of t.
func (c *conn) delist(t *task) {
	c.srv.overlaps.remove(t.span)
	c.changes.Add(-1)
}

// tryWrite writes whole blocks if that needs no wait (see overlaps), and reports
// whether it did.
func (c *conn) tryWrite(p []byte, off int64) bool {
	s := c.srv
	if s.fast == nil || c.hungUp {
		return false
	}
	if c.changes.Load() > 0 {
		bs := int64(s.geometry.BlockSize)
		if s.overlaps.taken(off/bs, (off+int64(len(p)))/bs-1) {
			return false
		}
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	return s.overlaps.announced.Load() == 0 && s.fast.TryWriteAt(p, off)
}
