package nbd

import (
	"context"
	"sync"
	"sync/atomic"
)

// overlaps orders read-modify-writes with everything else that changes the
// same blocks, on whatever connection.
//
// A request that is no multiple of the block size is served by reading the
// blocks at its edges and writing them back whole. A write to such a block
// that took effect between the two would be undone. So:
//
//   - A read-modify-write holds its blocks exclusively.
//   - Every other change that may wait (it runs on a goroutine of its own)
//     holds its blocks shared.
//   - A write through device.Fast, on the goroutine of its connection, holds
//     nothing. It only looks, inside the connection's gate, whether any
//     read-modify-write has been announced, and goes the other way if so.
//
// Why no write is lost. Let R be a read-modify-write and W another change of
// one of its blocks. If W holds a span, the table orders the two: both enter
// it under mu, and the later one waits for the earlier. If W went through
// Fast, it did so inside the gate of its connection and read announced == 0
// there. R adds to announced first (1), then takes and releases the gate of
// every connection (2), and only then reads (3). W's turn in the gate is
// either before R's, so W took effect before (3) and R reads it; or it is
// after, and then W must have seen (1), since the gate orders (1) before W's
// look, and announced stays above zero until R has written. A connection that
// R does not find in (2) was added to the server's set after R held its lock,
// which orders (1) before all that connection does. Fast never blocks, so (2)
// waits for nothing but processor time.
//
// A write that overlaps nothing pays one uncontended lock and one load of a
// cache line that nobody writes.
type overlaps struct {
	announced atomic.Int64 // read-modify-writes under way or waiting

	mu    sync.Mutex
	spans []*span // held or waiting; each was added after those it waits for
}

// span is a run of blocks, first to last, that a change holds.
type span struct {
	first, last int64
	exclusive   bool
	index       int           // in overlaps.spans
	freed       chan struct{} // made by the first who waits for this one
}

func (s *span) conflicts(o *span) bool {
	return (s.exclusive || o.exclusive) && s.first <= o.last && o.first <= s.last
}

// acquire waits for every conflicting span that was there before s, or gives
// up with ctx and then holds nothing. Waiting only for earlier ones, it cannot
// deadlock or starve.
func (l *overlaps) acquire(ctx context.Context, s *span) error {
	var before []chan struct{}
	l.mu.Lock()
	for _, o := range l.spans {
		if o.conflicts(s) {
			if o.freed == nil {
				o.freed = make(chan struct{})
			}
			before = append(before, o.freed)
		}
	}
	s.index = len(l.spans)
	l.spans = append(l.spans, s)
	l.mu.Unlock()
	for _, freed := range before {
		select {
		case <-freed:
		case <-ctx.Done():
			l.release(s)
			return ctx.Err()
		}
	}
	return nil
}

// release gives s back, or withdraws it while it waits: whoever waits for s
// waits for those before it as well.
func (l *overlaps) release(s *span) {
	l.mu.Lock()
	last := len(l.spans) - 1
	l.spans[s.index] = l.spans[last]
	l.spans[s.index].index = s.index
	l.spans[last] = nil
	l.spans = l.spans[:last]
	freed := s.freed
	l.mu.Unlock()
	if freed != nil {
		close(freed)
	}
}

// beginRMW announces a read-modify-write and returns when no write through
// Fast that has not seen it is under way. endRMW has to follow.
func (s *Server) beginRMW() {
	s.overlaps.announced.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.gate.Lock()
		//lint:ignore SA2001 passing the gate is the point, see overlaps
		c.gate.Unlock()
	}
}

func (s *Server) endRMW() { s.overlaps.announced.Add(-1) }
