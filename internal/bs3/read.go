package bs3

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/device"
)

// miss is a run of blocks whose bytes have to come from the store.
type miss struct {
	loc   layout.Location
	dst   []byte
	epoch uint64 // of the object, where it is needed and known
	ahead bool   // nobody has asked for it yet
}

// TryReadAt implements device.Fast: true when nothing of it is in the store.
func (e *Engine) TryReadAt(p []byte, off int64) bool {
	if e.stopped() != nil || e.check(off, int64(len(p))) != nil {
		return false
	}
	var few [16]sectormap.Run
	if !e.readMemory(p, off, few[:0], nil) {
		return false
	}
	if e.ahead != nil {
		e.ahead.passed(off, int64(len(p)))
	}
	return true
}

// readMemory fills p with what is unmapped or in chunk memory. It hands other
// runs to missed, or, if that is nil, gives up at the first.
func (e *Engine) readMemory(p []byte, off int64, runs []sectormap.Run, missed func(miss)) bool {
	v := e.eras.enter()
	defer e.eras.leave(v)
	runs = e.maps.Lookup(uint64(off)/uint64(e.blockSize), uint32(len(p)/e.blockSize), runs)
	for _, r := range runs {
		dst := p[:int(r.N)*e.blockSize]
		p = p[len(dst):]
		if !r.Loc.Mapped() {
			clear(dst)
			continue
		}
		// A chunk is in the ring before the map shows it, and until the durable
		// key covers it: not found here means that the store has it for good.
		if c := e.ring.get(r.Loc.Key()); c != nil {
			copy(dst, c.slot.Data(r.Loc.Index(), r.N))
		} else if !e.readCache(dst, r.Loc, missed) {
			return false
		}
	}
	return true
}

// readCache fills dst, the blocks at loc and after it, from the read cache. It
// hands runs that are not there to missed, or, if that is nil, gives up.
func (e *Engine) readCache(dst []byte, loc layout.Location, missed func(miss)) bool {
	var open miss // the run of misses that the last block belongs to
	for i := uint32(0); len(dst) > 0; i++ {
		block := dst[:e.blockSize]
		switch {
		case e.cache != nil && e.cache.Get(loc.Add(i), block):
			if open.dst != nil {
				missed(open)
				open = miss{}
			}
		case missed == nil:
			return false
		case open.dst == nil:
			open = miss{loc: loc.Add(i), dst: block}
		default:
			open.dst = open.dst[:len(open.dst)+len(block)]
		}
		dst = dst[e.blockSize:]
	}
	if open.dst != nil {
		missed(open)
	}
	return true
}

// ReadAt implements device.Volume. Bytes that are in the store are waited for
// as long as ctx allows.
func (e *Engine) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := e.check(off, int64(len(p))); err != nil {
		return err
	}
	if e.ahead != nil {
		e.ahead.passed(off, int64(len(p)))
	}
	var gone error // the last object that was not there
	var goneAt layout.Location
	for first := true; ; first = false {
		if err := e.stopped(); err != nil {
			return err
		}
		again, at, err := e.readOnce(ctx, p, off, goneAt, first)
		switch {
		case again:
			continue
		case err == nil:
			return nil
		case errors.Is(err, errUnchanged):
			e.log.Error().Err(gone).Int64("offset", off).Msg("an object that the map needs is not in the store: data is missing")
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, gone)
		case !errors.Is(err, objproxy.ErrNotFound):
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		gone, goneAt = err, at // the map may have moved on while we asked
	}
}

// errUnchanged says that the map still shows the location that was not there.
var errUnchanged = errors.New("the map still needs the object")

// readOnce looks up and reads. If the map still shows the location gone (0 =
// none), which is not in the store, it gives errUnchanged; on other errors it
// says which location they are about. It may ask for another try. The first
// try of a read counts for reading ahead.
func (e *Engine) readOnce(ctx context.Context, p []byte, off int64, gone layout.Location, first bool) (again bool, at layout.Location, err error) {
	v := e.fetches.enter()
	defer e.fetches.leave(v)
	var misses []miss
	e.readMemory(p, off, nil, func(m miss) { misses = append(misses, m) })
	// Anywhere in a run: where the runs begin depends on what the caches have.
	if slices.ContainsFunc(misses, func(m miss) bool { return m.loc <= gone && gone < m.loc.Add(uint32(len(m.dst)/e.blockSize)) }) {
		return false, gone, errUnchanged
	}
	if len(misses) == 0 {
		return false, 0, nil
	}
	e.misses.Add(1)
	if e.ahead != nil && first {
		e.ahead.missed(off, int64(len(p)))
	}
	return e.fetchOnce(ctx, misses)
}

// Allocation implements device.Allocator.
func (e *Engine) Allocation(_ context.Context, off, n int64) ([]device.Extent, error) {
	if err := e.check(off, n); err != nil {
		return nil, err
	}
	const most = 4096 // runs looked at in one answer; the rest is asked for again
	var extents []device.Extent
	var few [64]sectormap.Run
	for block, left := uint64(off)/uint64(e.blockSize), uint64(n)/uint64(e.blockSize); left > 0 && len(extents) < most; {
		some := min(left, most) // a run for each of them, if it comes to that
		for _, r := range e.maps.Lookup(block, uint32(some), few[:0]) {
			x := device.Extent{Length: int64(r.N) * int64(e.blockSize), Hole: !r.Loc.Mapped()}
			if last := len(extents) - 1; last >= 0 && extents[last].Hole == x.Hole {
				extents[last].Length += x.Length
			} else {
				extents = append(extents, x)
			}
		}
		block, left = block+some, left-some
	}
	return extents, nil
}
