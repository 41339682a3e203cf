// Package era tells when no reader can still look at something that was taken
// out of its sight. Readers enter and leave; what is retired runs once every
// reader that was inside has left. Entering costs one add on a counter that few
// others touch: readers take no lock.
package era

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Readers are the readers of one kind of thing. The zero value is ready for
// use, by any number of goroutines.
type Readers struct {
	now     atomic.Uint64 // the current era; its parity picks the counters
	shards  [16]shard
	pending atomic.Bool // something waits for the era before now to drain

	mu struct {
		sync.Mutex
		older []func() // retired before now began; they wait for the era before
		newer []func() // retired in now
	}
}

type shard struct {
	inside [2]atomic.Int64
	_      [48]byte // a cache line of its own
}

// Visit is one reader's stay.
type Visit struct {
	shard  *shard
	parity uint64
}

// Enter begins a stay: until it ends by Leave, nothing that is retired from now
// on runs.
func (e *Readers) Enter() Visit {
	s := &e.shards[rand.Uint32()%uint32(len(e.shards))]
	for {
		now := e.now.Load()
		s.inside[now&1].Add(1)
		if e.now.Load() == now {
			return Visit{s, now & 1}
		}
		e.Leave(Visit{s, now & 1}) // the era changed: this may have come too late for it
	}
}

// Leave ends a stay.
func (e *Readers) Leave(v Visit) {
	v.shard.inside[v.parity].Add(-1)
	if e.pending.Load() {
		e.advance(nil)
	}
}

// Retire runs f once every reader that is inside now has left: before it
// returns if there is none, otherwise on the goroutine of a later Leave or
// Retire. So neither its caller nor that of Leave may hold a lock that f takes.
// What f frees must be out of the sight of new readers already. f must not
// block, nor call Retire.
func (e *Readers) Retire(f func()) { e.advance(f) }

// Gone waits until every reader inside now has left, or ctx ends.
func (e *Readers) Gone(ctx context.Context) error {
	left := make(chan struct{})
	e.Retire(func() { close(left) })
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *Readers) advance(f func()) {
	var ready []func()
	m := &e.mu
	m.Lock()
	if f != nil {
		m.newer = append(m.newer, f)
	}
	for len(m.older)+len(m.newer) > 0 {
		if len(m.older) == 0 {
			m.older, m.newer = m.newer, nil
			e.pending.Store(true) // before the era turns, so that its last reader sees it
			e.now.Add(1)
		}
		if !e.drained() {
			break
		}
		ready = append(ready, m.older...)
		m.older = nil
	}
	e.pending.Store(len(m.older) > 0)
	m.Unlock()
	for _, f := range ready {
		f()
	}
}

// drained reports whether no reader of the era before now is left. A reader
// that counts itself there after this has looked sees that the era has turned.
func (e *Readers) drained() bool {
	parity := (e.now.Load() - 1) & 1
	var n int64
	for i := range e.shards {
		n += e.shards[i].inside[parity].Load()
	}
	return n == 0
}
