package bs3

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
)

// What an open goes on without it says, here.

// tellLeftOut says what replay has left out: seq is the first write that is not
// there.
func (o *opening) tellLeftOut(l *leftover, seq uint64) {
	path := ""
	if o.files.memory != nil {
		path = o.files.memory.Path()
	}
	if len(l.torn) > 0 {
		o.log.Warn().Errs("slots", l.torn).Str("file", path).Msg("chunk memory was torn when the machine went down: it holds less than it counts")
	}
	if len(l.behind) > 0 {
		o.log.Warn().Uints64("writes", l.behind).Str("file", path).
			Msg("chunk memory holds writes that it does not count: they were not acknowledged, or the count is wrong; they are left out")
	}
	if l.passed > 0 {
		o.log.Info().Int("slots", l.passed).Str("file", path).Msg("passed over chunks of earlier writers in chunk memory, which were stored")
	}
	dropped := uint64(len(l.memory))
	if l.log != nil && l.log.Last() > seq {
		dropped = max(dropped, l.log.Last()-seq-1)
	}
	switch {
	case l.log != nil && l.log.Synced() > seq:
		o.log.Error().Uint64("missing", seq).Uint64("dropped", dropped).Uint64("flushed", l.log.Synced()).Str("file", l.log.Path()).
			Msg("the local log lacks writes that were flushed, and is forgotten: what follows the first missing write is lost to the volume")
	case dropped > 0:
		o.log.Warn().Uint64("missing", seq).Uint64("dropped", dropped).
			Msg("what was not flushed was torn when the machine went down: what follows the first missing write is dropped")
	}
}

// tellLost says what the last writer may have acknowledged that nobody has any
// more. seq is the sequence number of the next write.
func (o *opening) tellLost(v *layout.Volume, above *aboveEnd, seq uint64) {
	w := &o.last
	if !w.Released && o.notWhole != "" {
		o.log.Warn().Str("why", o.notWhole).Str("writer", w.Hostname).Str("state_path", w.StatePath).Time("since", w.Since).
			Uint64("epoch", v.Epoch-1).Uint64("replayed", seq-o.found.Seq).
			Msg("the last writer did not release the volume, and its chunk memory is missing or may lack something: what it acknowledged is lost where neither the store nor the local log has it; how much that is cannot be known")
	}
	if above.next > seq {
		o.log.Warn().Uint64("missing", uint64(above.end)).Str("name", above.end.Name()).Int("objects", len(above.keys)).Uints64("keys", above.keys).
			Uint64("writes", above.next-seq).Uint64("first", seq).Bool("released", w.Released).
			Msg("objects of the last writer lie above the end of the log and are left out: the object at its end was never stored, or the store has lost it")
	}
}

// aboveEnd are the objects of the last writers that lie above the end of the log.
type aboveEnd struct {
	end  key.Key // where the log ended before our fence
	keys []uint64
	next uint64 // the highest sequence number that follows one of them
}

const (
	// aboveAtOnce is how many keys above the end are asked for at a time; if none
	// is there, no more are. A gap is as wide as the uploads that were under way.
	aboveAtOnce = 32
	// mostAbove bounds how many are asked for.
	mostAbove = 1024
	// lookAboveFor bounds how long that may take: the volume needs none of it.
	lookAboveFor = time.Minute
)

// lookAbove looks for objects above our fence that were not fenced before it.
// What a writer has stored when it releases the volume ends with a checkpoint,
// unless it writes none.
func (o *opening) lookAbove(ctx context.Context, v *layout.Volume) (*aboveEnd, error) {
	r := o.found
	a := &aboveEnd{end: r.Last}
	if v.Epoch == 1 || o.last.Released && len(v.Checkpoints) > 0 {
		return a, nil
	}
	tails := volume.Tails{Store: o.opts.Store, UUID: r.uuid, ChunkBlocks: o.opts.chunkBlocks()}
	looking, cancel := context.WithTimeout(ctx, lookAboveFor)
	defer cancel()
	for from := r.Last + 1; from < r.Last+mostAbove; from += aboveAtOnce {
		var found [aboveAtOnce]*layout.Object
		group, looking := errgroup.WithContext(looking)
		for i := range found {
			group.Go(func() error {
				t, err := tails.Read(looking, from+key.Key(i))
				if err == nil {
					found[i] = t.Object
				}
				if err == nil || volume.IsDamage(err) {
					return nil
				}
				return err
			})
		}
		err := group.Wait()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("look above the end of the log: %w", ctx.Err())
		}
		if err != nil {
			o.log.Warn().Err(err).Uint64("from", uint64(from)).Msg("cannot see whether objects of the last writer lie above the end of the log; if there are any, they are left out")
		}
		any := false
		for i, obj := range found {
			if obj == nil || !tails.Continues(r.at, obj) || obj.Epoch >= o.owner.Epoch {
				continue
			}
			any = true
			a.keys = append(a.keys, uint64(from)+uint64(i))
			a.next = max(a.next, obj.NextSeq())
		}
		if !any || err != nil {
			break
		}
	}
	return a, nil
}
