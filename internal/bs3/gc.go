package bs3

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// GCOptions govern the garbage collection.
type GCOptions struct {
	Wait        time.Duration // between two collections by time; 0 = none by time
	Step        int           // blocks looked at or moved before the foreground gets its turn
	IdleTimeout time.Duration // how long a step gives way while the foreground is busy
	LiveData    float64       // objects with a smaller share of live blocks are compacted
	MaxGarbage  float64       // share of garbage in the log above which compaction starts by itself; 0 = never
}

// GCReport says what a collection did.
type GCReport struct {
	Compacted   int   `json:"compacted"`    // objects whose live blocks were moved
	MovedBytes  int64 `json:"moved_bytes"`  // live blocks written again
	Deleted     int   `json:"deleted"`      // objects removed from the store
	FreedBytes  int64 `json:"freed_bytes"`  // their data blocks
	FailedReads int   `json:"failed_reads"` // objects that could not be read or did not verify: left as they are
}

func (r *GCReport) add(o GCReport) {
	r.Compacted += o.Compacted
	r.MovedBytes += o.MovedBytes
	r.Deleted += o.Deleted
	r.FreedBytes += o.FreedBytes
	r.FailedReads += o.FailedReads
}

type gcAnswer struct {
	report GCReport
	err    error
}

// GC compacts thinly used objects, writes the checkpoints needed, and deletes
// what is dead. One collection runs at a time; the others wait for their turn.
func (e *Engine) GC(ctx context.Context) (GCReport, error) {
	answer := make(chan gcAnswer, 1)
	select {
	case e.gcRequests <- answer:
	case <-e.failed:
		return GCReport{}, e.Err()
	case <-ctx.Done():
		return GCReport{}, context.Cause(ctx)
	}
	select {
	case a := <-answer:
		return a.report, a.err
	case <-e.failed:
		return GCReport{}, e.Err()
	case <-ctx.Done():
		return GCReport{}, context.Cause(ctx)
	}
}

// collector is the one worker of all background work on the map: it collects
// on request and by time, until the engine stops.
func (e *Engine) collector() {
	var tick <-chan time.Time
	if e.opts.GC.Wait > 0 {
		t := time.NewTicker(e.opts.GC.Wait)
		defer t.Stop()
		tick = t.C
	}
	ctx := objproxy.Background(e.idle)
	for {
		select {
		case answer := <-e.gcRequests:
			report, err := e.collect(ctx)
			e.account(report)
			answer <- gcAnswer{report, err}
			e.background("garbage collection", err)
		case <-tick:
			report, err := e.collectByTime(ctx)
			e.account(report)
			e.background("garbage collection", err)
		case <-e.idle.Done():
			return
		}
	}
}

// account adds a collection to what Status tells.
func (e *Engine) account(r GCReport) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.collected.add(r)
}

// collect is a whole collection: everything that can be given back now is.
func (e *Engine) collect(ctx context.Context) (GCReport, error) {
	report, err := e.compact(ctx, e.thin())
	if err != nil {
		return report, err
	}
	if err := e.checkpointIfLonger(ctx); err != nil {
		return report, err
	}
	deleted, err := e.settleDead(ctx)
	report.add(deleted)
	e.log.Info().Int("compacted", report.Compacted).Int64("moved_bytes", report.MovedBytes).Int("deleted", report.Deleted).
		Int64("freed_bytes", report.FreedBytes).Int("failed_reads", report.FailedReads).Msg("garbage collection")
	return report, err
}

// collectByTime compacts only when there is too much garbage. While the volume
// is written it leaves the checkpoints to their own rhythm; on an idle one it
// goes on until nothing more can be deleted, and then sends no request.
func (e *Engine) collectByTime(ctx context.Context) (report GCReport, err error) {
	if max := e.opts.GC.MaxGarbage; max > 0 && max < 1 {
		if report, err = e.compact(ctx, e.excess(max)); err != nil {
			return report, err
		}
	}
	e.mu.Lock()
	idle := e.sinceCheckpoint.objects == 0 && e.cur == nil
	e.mu.Unlock()
	var deleted GCReport
	if idle {
		deleted, err = e.settleDead(ctx)
	} else {
		deleted, err = e.deleteDead(ctx)
	}
	report.add(deleted)
	return report, err
}

// excess chooses what to compact so that no more than the share most of the log
// is garbage; nothing if that is so already. Objects without any live block do
// not count: they are as good as deleted. Objects that could not be read the
// last time wait for somebody to ask.
func (e *Engine) excess(most float64) []layout.ObjectInfo {
	objects, used := e.survey()
	allowed := uint64(float64(used.live) / (1 - most))
	var chosen []layout.ObjectInfo
	for _, o := range objects {
		if used.total <= allowed {
			break
		}
		if !e.unmovable[o.Key] {
			chosen = append(chosen, o)
			used.total -= uint64(o.Total - o.Live)
		}
	}
	return chosen
}

// usage sums up objects that have live blocks.
type usage struct{ live, total uint64 }

// thin gives the objects that are worth compacting, best first.
func (e *Engine) thin() []layout.ObjectInfo {
	objects, _ := e.survey()
	return objects
}

// survey gives the objects with a share of live blocks below the threshold,
// best first: cold ones (of low keys) are worth more than hot ones, which die
// by themselves. The newest object is never among them. It also sums up all
// objects that have live blocks.
func (e *Engine) survey() ([]layout.ObjectInfo, usage) {
	var used usage
	var found []layout.ObjectInfo
	benefit := make(map[key.Key]float64)
	for from, more := key.Key(0), true; more; from += key.Key(e.opts.GC.Step) {
		var some []layout.ObjectInfo
		e.mu.Lock()
		some, more = e.maps.Objects(from, e.opts.GC.Step)
		durable, next := e.durable, e.keys.Next()
		e.mu.Unlock()
		for _, o := range some {
			if o.Live == 0 || o.Key > durable {
				continue
			}
			used.live += uint64(o.Live)
			used.total += uint64(o.Total)
			if live := float64(o.Live) / float64(o.Total); o.Key+1 < next && live < e.opts.GC.LiveData {
				found = append(found, o)
				benefit[o.Key] = (1 - live) * float64(next-o.Key) / (1 + live)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b layout.ObjectInfo) int { return cmp.Compare(benefit[b.Key], benefit[a.Key]) })
	return found, used
}

// settleDead deletes all that is dead in the newest checkpoint. Only the older
// of the two says what may go, so if the newest knows more, another one is
// written first, at the same key.
func (e *Engine) settleDead(ctx context.Context) (GCReport, error) {
	checkpoints, err := e.keptCheckpoints(ctx)
	if err != nil {
		return GCReport{}, err
	}
	if n := len(checkpoints); n > 0 {
		newest := e.deletable(checkpoints[n-1])
		if n > 1 {
			newest = slices.DeleteFunc(newest, func(k key.Key) bool { return checkpoints[0].dead[k] })
		}
		if len(newest) > 0 {
			if err := e.checkpoint(ctx); err != nil {
				return GCReport{}, err
			}
		}
	}
	return e.deleteDead(ctx)
}

// keptCheckpoints gives the checkpoints that the record names, oldest first.
func (e *Engine) keptCheckpoints(ctx context.Context) ([]kept, error) {
	select {
	case e.checkpointing <- struct{}{}:
		defer func() { <-e.checkpointing }()
		return e.kept, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// deletable gives the objects that are dead in k and not deleted yet, by key.
func (e *Engine) deletable(k kept) []key.Key {
	dead := slices.Sorted(maps.Keys(k.dead))
	keys := dead[:0]
	for some := range slices.Chunk(dead, e.opts.GC.Step) {
		e.mu.Lock()
		for _, k := range some {
			if o, here := e.maps.Object(k); here && o.Live == 0 { // or a discard still counts it off
				keys = append(keys, k)
			}
		}
		e.mu.Unlock()
	}
	return keys
}

// deleteDead deletes the objects that were dead already in the older of the
// two committed checkpoints: whichever of them an open starts from, it needs
// none of them. Fences are never among them.
func (e *Engine) deleteDead(ctx context.Context) (GCReport, error) {
	var report GCReport
	checkpoints, err := e.keptCheckpoints(ctx)
	if err != nil || len(checkpoints) < layout.MaxCheckpoints {
		return report, err
	}
	keys := e.deletable(checkpoints[0])
	if len(keys) == 0 {
		return report, nil
	}
	// Who may have looked up an object that is dead by now is to be done with it.
	if err := e.fetches.gone(ctx); err != nil {
		return report, err
	}
	for some := range slices.Chunk(keys, 1000) {
		names := make([]string, len(some))
		for i, k := range some {
			names[i] = k.Name()
		}
		if err := e.store.Delete(ctx, names); err != nil {
			return report, err // asked again another time: the table still has them
		}
		e.mu.Lock()
		for _, k := range some {
			o, _ := e.maps.Object(k)
			report.Deleted++
			report.FreedBytes += int64(o.Total) * int64(e.blockSize)
			e.maps.RemoveObject(k)
		}
		e.mu.Unlock()
	}
	return report, nil
}
