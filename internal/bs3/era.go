package bs3

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// eras tell when no reader can still look at something that was taken out of
// its sight: readers enter and leave, what is retired runs once every reader
// that was inside has left. Entering costs one add on a counter that few
// others touch; there is no lock on the way of a reader.
type eras struct {
	now     atomic.Uint64 // the current era; its parity picks the counters
	shards  [16]eraShard
	pending atomic.Bool // something waits for the era before now to drain

	mu    sync.Mutex
	older []func() // retired before now began; they wait for the era before
	newer []func() // retired in now
}

type eraShard struct {
	inside [2]atomic.Int64
	_      [48]byte // a cache line of its own
}

// visit is one reader's stay.
type visit struct {
	shard  *eraShard
	parity uint64
}

// enter begins a stay: until leave, nothing retired from now on runs.
func (e *eras) enter() visit {
	s := &e.shards[rand.Uint32()%uint32(len(e.shards))]
	for {
		now := e.now.Load()
		s.inside[now&1].Add(1)
		if e.now.Load() == now {
			return visit{s, now & 1}
		}
		e.leave(visit{s, now & 1}) // the era changed: we may have come too late for it
	}
}

func (e *eras) leave(v visit) {
	v.shard.inside[v.parity].Add(-1)
	if e.pending.Load() {
		e.advance(nil)
	}
}

// retire runs f, on some goroutine, when every reader inside now has left.
// What f frees must be out of the sight of new readers already. f must not
// block, nor call retire.
func (e *eras) retire(f func()) { e.advance(f) }

// gone waits until every reader inside now has left.
func (e *eras) gone(ctx context.Context) error {
	left := make(chan struct{})
	e.retire(func() { close(left) })
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *eras) advance(f func()) {
	var ready []func()
	e.mu.Lock()
	if f != nil {
		e.newer = append(e.newer, f)
	}
	for len(e.older)+len(e.newer) > 0 {
		if len(e.older) == 0 {
			e.older, e.newer = e.newer, nil
			e.pending.Store(true) // before the era turns, so that its last reader sees it
			e.now.Add(1)
		}
		if !e.drained() {
			break
		}
		ready = append(ready, e.older...)
		e.older = nil
	}
	e.pending.Store(len(e.older) > 0)
	e.mu.Unlock()
	for _, f := range ready {
		f()
	}
}

// drained says whether no reader of the era before now is left. A reader that
// counts itself there after this looked sees that the era has turned.
func (e *eras) drained() bool {
	parity := (e.now.Load() - 1) & 1
	var n int64
	for i := range e.shards {
		n += e.shards[i].inside[parity].Load()
	}
	return n == 0
}
