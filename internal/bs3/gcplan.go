package bs3

import (
	"context"

	"bs3/internal/bs3/key"
)

// PlanGC says what GC would do now, and changes nothing: the objects whose live
// blocks it would move, and those it would delete, which are the same ones and
// all that have no live block. It does not read them, so it can not tell which
// are damaged and would be left alone. On a volume that is written it is an
// estimate.
func (e *Engine) PlanGC(ctx context.Context) (GCReport, error) {
	if err := e.stopped(); err != nil {
		return GCReport{}, err
	}
	var plan GCReport
	bytes := func(blocks uint32) int64 { return int64(blocks) * int64(e.blockSize) }
	for _, o := range e.thin() {
		plan.add(GCReport{Compacted: 1, MovedBytes: bytes(o.Live), Deleted: 1, FreedBytes: bytes(o.Total)})
	}
	for from, more := key.Key(0), true; more; from += key.Key(e.opts.GC.Step) {
		if err := ctx.Err(); err != nil {
			return GCReport{}, err
		}
		e.mu.Lock()
		some, left := e.maps.Objects(from, e.opts.GC.Step)
		e.mu.Unlock()
		more = left
		for _, o := range some {
			if o.Live == 0 && !o.Fence {
				plan.add(GCReport{Deleted: 1, FreedBytes: bytes(o.Total)})
			}
		}
	}
	return plan, nil
}
