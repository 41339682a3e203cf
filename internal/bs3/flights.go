package bs3

import (
	"context"
	"sync"

	"bs3/internal/bs3/layout"
)

// flights are the blocks that are being fetched from the store now, so that
// identical misses share one request. They are used with a read cache only,
// which is where the others find what one has fetched.
type flights struct {
	mu     sync.Mutex
	blocks map[layout.Location]*flight
}

// flight is one fetch of some blocks.
type flight struct {
	blocks []layout.Location
	done   chan struct{}
}

// take registers a fetch of all blocks of the misses and returns it, or, if
// one of them is being fetched already, that fetch: other.
func (f *flights) take(misses []miss, blockSize int) (own, other *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own = &flight{done: make(chan struct{})}
	for _, m := range misses {
		for i := range uint32(len(m.dst) / blockSize) {
			if other := f.blocks[m.loc.Add(i)]; other != nil {
				return nil, other
			}
			own.blocks = append(own.blocks, m.loc.Add(i))
		}
	}
	if f.blocks == nil {
		f.blocks = make(map[layout.Location]*flight)
	}
	for _, l := range own.blocks {
		f.blocks[l] = own
	}
	return own, nil
}

// land ends a fetch, however it went.
func (f *flights) land(own *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range own.blocks {
		delete(f.blocks, l)
	}
	close(own.done)
}

// fetchOnce fetches the misses, unless somebody else is fetching one of them:
// then it waits for that and says again, for the cache may have all of it now.
func (e *Engine) fetchOnce(ctx context.Context, misses []miss) (again bool, at layout.Location, err error) {
	if len(misses) == 0 {
		return false, 0, nil
	}
	if e.cache == nil {
		at, err = e.fetch(ctx, misses)
		return false, at, err
	}
	own, other := e.flights.take(misses, e.blockSize)
	if other != nil {
		select {
		case <-other.done:
			return true, 0, nil
		case <-ctx.Done():
			return false, 0, context.Cause(ctx)
		}
	}
	defer e.flights.land(own)
	at, err = e.fetch(ctx, misses)
	return false, at, err
}
