package reader

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"bs3/internal/bs3/layout"
)

// flights are the blocks that are being fetched from the store now, so that
// identical misses share one request. They are used with a read cache only,
// which is where the others find what one has fetched.
type flights struct {
	mu struct {
		sync.Mutex
		blocks map[layout.Location]*flight
	}
}

// flight is one fetch of some blocks.
type flight struct {
	blocks []layout.Location
	begun  atomic.Bool // false: others are fetched before it
	done   chan struct{}
}

// take registers a fetch of all blocks of the misses and returns it, or, if
// one of them is being fetched already, that fetch: other.
func (f *flights) take(misses []miss) (own, other *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own = &flight{done: make(chan struct{})}
	for _, m := range misses {
		for i := range m.n {
			if other := f.mu.blocks[m.loc.Add(i)]; other != nil {
				return nil, other
			}
			own.blocks = append(own.blocks, m.loc.Add(i))
		}
	}
	if f.mu.blocks == nil {
		f.mu.blocks = make(map[layout.Location]*flight)
	}
	for _, l := range own.blocks {
		f.mu.blocks[l] = own
	}
	return own, nil
}

// takeRest registers a fetch of those blocks of the misses that are not being
// fetched, and returns it with them.
func (f *flights) takeRest(misses []miss, blockSize int) (own *flight, rest []miss) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.blocks == nil {
		f.mu.blocks = make(map[layout.Location]*flight)
	}
	own = &flight{done: make(chan struct{})}
	for _, m := range misses {
		m.without(func(i uint32) bool { return f.mu.blocks[m.loc.Add(i)] != nil }, blockSize, func(m miss) {
			rest = append(rest, m)
			for i := range m.n {
				own.blocks = append(own.blocks, m.loc.Add(i))
			}
		})
	}
	for _, l := range own.blocks {
		f.mu.blocks[l] = own
	}
	return own, rest
}

// land ends a fetch, however it went.
func (f *flights) land(own *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range own.blocks {
		delete(f.mu.blocks, l)
	}
	close(own.done)
}

// fetchOnce fetches the misses of a read, unless somebody else is fetching one of
// them: then it waits for that and returns errAgain, for the cache may have all of it
// now. Where that has not begun, only a stream waits, for which it may be, and not
// for ever. Objects that are better fetched whole are awaited in the same way. Other
// errors come with the location that they are about.
func (r *Reader) fetchOnce(ctx context.Context, misses []miss, last *attempt) (layout.Location, error) {
	if r.c.Cache == nil {
		return r.fetch(ctx, r.fromDisk(misses), requestGap)
	}
	own, other := r.flights.take(misses)
	switch {
	case own != nil:
		own.begun.Store(true)
		defer r.flights.land(own)
	case other.begun.Load() || last.stream && last.waited < patience:
		began := time.Now()
		timeout := time.NewTimer(patience)
		defer timeout.Stop()
		select {
		case <-other.done:
		case <-timeout.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		last.waited += time.Since(began)
		return 0, errAgain
	}
	misses = r.fromDisk(misses)
	if err := r.awaitWholes(ctx, misses, last); err != nil {
		return 0, err
	}
	return r.fetch(ctx, misses, requestGap)
}
