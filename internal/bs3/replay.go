package bs3

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
	"bs3/internal/bs3/writer"
)

// replay writes again, to log, what chunk memory and local log hold beyond the
// end of the log, from sequence number first on, and waits until the store has
// it.
func (o *opening) replay(ctx context.Context, log *writer.Log, first uint64) error {
	if !o.files.holdRecords() {
		return nil
	}
	found, seq := o.left, first
	for ; ; seq++ {
		r, ok, err := o.nextLeft(&found, seq)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := log.Replay(ctx, r); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		o.progress("replaying writes", int(seq+1-first), found.upTo(first))
	}
	if err := o.judgeGap(&found, seq); err != nil {
		return err
	}
	if err := log.FlushToStore(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	o.log.Info().Uint64("writes", seq-first).Int("from_log", found.fromLog).Uint64("first", first).Msg("replayed chunk memory")
	o.tellLeftOut(&found, seq)
	return nil
}

// judgeReplay refuses what replay could not replay behind the log that was found.
// Should more of it be stored until then, less is to be replayed.
func (o *opening) judgeReplay() error {
	found, seq := o.left, o.found.Seq
	for {
		_, ok, err := o.nextLeft(&found, seq)
		if err != nil {
			return err
		}
		if !ok {
			return o.judgeGap(&found, seq)
		}
		seq++
	}
}

// nextLeft returns the write with sequence number seq; ok is false if there is
// none.
func (o *opening) nextLeft(l *leftover, seq uint64) (r wlog.Entry, ok bool, err error) {
	r, ok, err = l.at(seq)
	if err != nil {
		return r, false, fmt.Errorf("%w: %w; without what it holds: --forget-local-log, and move the file away", volume.ErrRefused, err)
	}
	if end, blocks := r.Block+uint64(r.Blocks), o.opts.blocks(); ok && end > blocks {
		return r, false, fmt.Errorf("%w: %w: write %d reaches to block %d of %d", volume.ErrRefused, wlog.ErrDamaged, r.Seq, end, blocks)
	}
	return r, ok, nil
}

// judgeGap judges what lies behind seq, the first sequence number that neither
// chunk memory nor local log has. A machine that went down may have torn what
// was not synced; anything else that is missing was lost.
func (o *opening) judgeGap(l *leftover, seq uint64) error {
	f := o.files
	if len(l.memory) > 0 && f.sameBoot(o.opts.Host) {
		return fmt.Errorf("%w: chunk memory %s: %w: write %d is missing", volume.ErrRefused, f.memory.Path(), wlog.ErrDamaged, seq)
	}
	if l.log != nil && l.log.Synced() > seq && !o.opts.ForgetLocalLog {
		return fmt.Errorf("%w: local log %s: %w: write %d is missing, and those up to %d were flushed; to go on without them: --forget-local-log",
			volume.ErrRefused, l.log.Path(), wlog.ErrDamaged, seq, l.log.Synced()-1)
	}
	return nil
}

// leftHere returns what chunk memory and local log of ours hold. Only a machine
// that went down may have torn something.
func (o *opening) leftHere() (l leftover, err error) {
	f := o.files
	if !o.others.local {
		l.log = f.local
	}
	if f.memory == nil || o.others.memory {
		return l, nil
	}
	for _, s := range f.memory.Slots() {
		if s.Count() == 0 {
			continue
		}
		if h, err := s.Header(); err == nil && !o.writersHere[h.Nonce] {
			l.passed++
			continue
		}
		entries, err := s.Entries()
		if err != nil && f.sameBoot(o.opts.Host) {
			return l, fmt.Errorf("%w: chunk memory %s: %w; move the file away to go on without what it holds", volume.ErrRefused, f.memory.Path(), err)
		}
		if err != nil {
			l.torn = append(l.torn, err)
		} else if r, ok := s.Behind(entries); ok {
			l.behind = append(l.behind, r.Seq)
		}
		l.memory = append(l.memory, entries...)
	}
	slices.SortFunc(l.memory, func(a, b wlog.Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	return l, nil
}

// leftover is what chunk memory and the local log hold, merged by sequence
// number.
type leftover struct {
	memory []wlog.Entry // by sequence number
	log    *wlog.Log    // nil = none
	logged []wlog.Entry // of its current frame

	fromLog int // entries that only the log had

	torn   []error  // why slots of chunk memory hold less than they count
	behind []uint64 // sequence numbers of writes that verify and that no slot counts
	passed int      // slots of earlier writers, which were stored
}

// upTo returns how many entries there may be from sequence number first on.
func (l *leftover) upTo(first uint64) int {
	next := first
	if n := len(l.memory); n > 0 {
		next = l.memory[n-1].Seq + 1
	}
	if l.log != nil {
		next = max(next, l.log.Last())
	}
	return int(next - first)
}

// at returns the entry with sequence number seq; ok is false if neither has it.
// It is called with ascending numbers.
func (l *leftover) at(seq uint64) (entry wlog.Entry, ok bool, err error) {
	for len(l.memory) > 0 && l.memory[0].Seq < seq { // the store has it
		l.memory = l.memory[1:]
	}
	if len(l.memory) > 0 && l.memory[0].Seq == seq {
		return l.memory[0], true, nil
	}
	for len(l.logged) > 0 && l.logged[0].Seq < seq {
		l.logged = l.logged[1:]
	}
	if len(l.logged) == 0 && l.log != nil {
		if l.logged, err = l.log.Entries(seq); err != nil {
			return entry, false, err
		}
	}
	if len(l.logged) == 0 || l.logged[0].Seq != seq {
		return entry, false, nil
	}
	l.fromLog++
	return l.logged[0], true, nil
}
