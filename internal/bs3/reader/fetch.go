package reader

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
)

// How far apart two runs of one object may lie, in bytes, to be fetched with one
// request. What is read ahead is not held up by the latency of a request but by the
// number of them, so that one costs more.
const (
	requestGap = volume.RequestBytes
	aheadGap   = 2 * volume.RequestBytes
)

// fetch fills misses that the disk cache does not have from the store, in parallel. An
// error comes with the location that it is about.
func (r *Reader) fetch(ctx context.Context, misses []miss, gap int) (layout.Location, error) {
	if len(misses) == 0 {
		return 0, nil
	}
	groups := r.group(misses, gap)
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
		release, ok := r.ahead.takeTurns(ctx, int(span(g))*r.buffers.stride)
		if !ok {
			errs[i] = context.Cause(ctx)
			continue
		}
		wg.Go(func() {
			defer release()
			errs[i] = r.fetchGroup(ctx, g)
		})
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
func (r *Reader) group(misses []miss, gapBytes int) [][]miss {
	slices.SortFunc(misses, func(a, b miss) int {
		return int(min(1, max(-1, int64(a.loc)-int64(b.loc))))
	})
	gap := uint32(gapBytes / r.buffers.stride)
	var groups [][]miss
	for _, m := range misses {
		if n := len(groups) - 1; n >= 0 {
			last := groups[n][len(groups[n])-1]
			if last.loc.Key() == m.loc.Key() && m.loc.Index() <= last.loc.Index()+last.n+gap {
				groups[n] = append(groups[n], m)
				continue
			}
		}
		groups = append(groups, []miss{m})
	}
	return groups
}

// span returns how many stored blocks a request for g gets.
func span(g []miss) uint32 {
	last := g[len(g)-1]
	return last.loc.Index() + last.n - g[0].loc.Index()
}

// fetchGroup reads one range of one object, verifies what was missed of it, and
// spreads that over its misses and the caches.
func (r *Reader) fetchGroup(ctx context.Context, g []miss) error {
	first := g[0].loc
	buf := r.buffers.get(span(g))
	if err := r.getVerified(ctx, g, *buf); err != nil {
		return err // and leave the buffer to a request that may have been given up
	}
	for _, m := range g {
		var few [takeBlocks]uint64
		r.diskPut(m.loc, m.epoch, m.blocks(few[:0]), r.buffers.part(*buf, first, m))
	}
	r.buffers.put(buf)
	return nil
}

// getVerified reads what the misses of g need into stored, and takes it. An answer that is not
// what was written is asked for once more. Errors: layout.ErrDamaged (wrapped) if
// it stays wrong, those of get.
func (r *Reader) getVerified(ctx context.Context, g []miss, stored []byte) error {
	for again := false; ; again = true {
		err := r.get(ctx, g[0].loc, stored)
		switch {
		case err == nil:
			err = r.take(g, stored)
		case volume.IsUnreadable(err):
			err = volume.WrongObject(err, g[0].block)
		}
		if !volume.IsUnreadable(err) {
			return err
		}
		r.wrong.Add(1)
		if again {
			if !g[0].ahead {
				r.c.Log.Error().Err(err).Msg("data is damaged: the read fails")
			}
			return err
		}
		r.c.Log.Warn().Err(err).Msg("the store returned other bytes than were written; asking once more")
	}
}

// takeBlocks is how many blocks are verified before they are copied: few, so that they
// are still in the processor's cache.
const takeBlocks = 32

// take verifies the blocks of all misses of g, and copies them to where they are
// wanted and into the cache in memory; what does not verify gets no further. What lies
// between the misses may be damaged: nobody needs it.
func (r *Reader) take(g []miss, stored []byte) error {
	first := g[0].loc
	checks := layout.NewChecks(r.c.UUID, first.Key())
	for _, m := range g {
		for at := uint32(0); at < m.n; at += takeBlocks {
			some := m.part(at, min(takeBlocks, m.n-at), r.c.BlockSize)
			part := r.buffers.part(stored, first, some)
			for i := range some.n {
				if _, ok := checks.Verify(some.loc.Index()+i, part[int(i)*r.buffers.stride:][:r.buffers.stride]); !ok {
					return volume.WrongBlock(first.Key(), some.loc.Index()+i, some.block+uint64(i))
				}
			}
			if some.dst != nil {
				layout.CopyBlocks(some.dst, part, r.c.BlockSize)
			}
			r.memoryPut(some, part, r.buffers.stride)
		}
	}
	return nil
}

// get reads stored blocks from loc on, in an object the durable key covers.
func (r *Reader) get(ctx context.Context, loc layout.Location, stored []byte) error {
	ctx, release := r.c.Life.Limit(ctx)
	defer release()
	k, off := loc.Key(), int64(loc.Index())*int64(r.buffers.stride)
	if _, _, err := r.c.Store.Get(ctx, k.Name(), stored, off); err != nil {
		if stopped := r.c.Life.Err(); stopped != nil {
			return stopped
		}
		return fmt.Errorf("object %d (%s), %d bytes at %d: %w", k, k.Name(), len(stored), off, err)
	}
	return nil
}
