package reader

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// gapBytes is how far apart two runs of one object may lie to be fetched with
// one request: at usual speeds these bytes cost less than a request's latency.
const gapBytes = 64 << 10

// fetch fills all misses from the disk cache and the store, from that in
// parallel. An error comes with the location that it is about.
func (r *Reader) fetch(ctx context.Context, misses []miss) (layout.Location, error) {
	if r.c.Disk != nil {
		misses = r.fromDisk(misses)
	}
	groups := r.group(misses)
	if len(groups) == 1 && !groups[0][0].ahead {
		return groups[0][0].loc, r.fetchGroup(ctx, groups[0])
	}
	errs := make([]error, len(groups))
	var wg sync.WaitGroup
	for i, g := range groups {
		if !g[0].ahead {
			wg.Go(func() { errs[i] = r.fetchGroup(ctx, g) })
			continue
		}
		select {
		case r.ahead.turns <- struct{}{}:
			wg.Go(func() {
				defer func() { <-r.ahead.turns }()
				errs[i] = r.fetchGroup(ctx, g)
			})
		case <-ctx.Done():
			errs[i] = context.Cause(ctx)
		}
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return groups[i][0].loc, err
		}
	}
	return 0, nil
}

// group sorts misses so that what lies close together in one object is
// fetched with one request.
func (r *Reader) group(misses []miss) [][]miss {
	slices.SortFunc(misses, func(a, b miss) int {
		return int(min(1, max(-1, int64(a.loc)-int64(b.loc))))
	})
	var groups [][]miss
	for _, m := range misses {
		if n := len(groups) - 1; n >= 0 {
			last := groups[n][len(groups[n])-1]
			if gap := r.byteOffset(m.loc) - r.byteOffset(last.loc) - int64(len(last.dst)); last.loc.Key() == m.loc.Key() && gap <= gapBytes {
				groups[n] = append(groups[n], m)
				continue
			}
		}
		groups = append(groups, []miss{m})
	}
	return groups
}

// byteOffset is where a location's block begins in its object.
func (r *Reader) byteOffset(l layout.Location) int64 { return int64(l.Index()) * int64(r.c.BlockSize) }

// fetchGroup reads one range of one object and spreads it over its misses.
func (r *Reader) fetchGroup(ctx context.Context, g []miss) error {
	first, last := g[0], g[len(g)-1]
	from := r.byteOffset(first.loc)
	buf := first.dst
	if len(g) > 1 {
		buf = make([]byte, r.byteOffset(last.loc)+int64(len(last.dst))-from)
	}
	if err := r.get(ctx, first.loc.Key(), buf, from); err != nil {
		return err
	}
	for _, m := range g {
		if len(g) > 1 {
			copy(m.dst, buf[r.byteOffset(m.loc)-from:])
		}
		r.cachePut(m)
	}
	return nil
}

// get reads data of an object the durable key covers.
func (r *Reader) get(ctx context.Context, k key.Key, p []byte, off int64) error {
	ctx, release := r.c.Life.Limit(ctx)
	defer release()
	if _, _, err := r.c.Store.Get(ctx, k.Name(), p, off); err != nil {
		if stopped := r.c.Life.Err(); stopped != nil {
			return stopped
		}
		return fmt.Errorf("object %d (%s), %d bytes at %d: %w", k, k.Name(), len(p), off, err)
	}
	return nil
}
