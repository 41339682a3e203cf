package reader

import (
	"context"
	"sync"

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

// land ends a fetch, however it went.
func (f *flights) land(own *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range own.blocks {
		delete(f.mu.blocks, l)
	}
	close(own.done)
}

// fetchOnce fetches the misses, unless somebody else is fetching one of them:
// then it waits for that and returns errAgain, for the cache may have all of it
// now. Other errors come with the location that they are about.
func (r *Reader) fetchOnce(ctx context.Context, misses []miss) (layout.Location, error) {
	if len(misses) == 0 {
		return 0, nil
	}
	if r.c.Cache == nil {
		return r.fetch(ctx, misses)
	}
	own, other := r.flights.take(misses)
	if other != nil {
		select {
		case <-other.done:
			return 0, errAgain
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	defer r.flights.land(own)
	return r.fetch(ctx, misses)
}
