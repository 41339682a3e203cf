package bs3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/wlog"
)

// position is a place in the log: the next key to read, and the epoch of the
// object before it.
type position struct {
	next  key.Key
	epoch uint64
}

// reach is a key that the log ends at or above: the record names no checkpoint
// before all that it holds is in the store.
func reach(v *layout.Volume) (end key.Key) {
	for _, name := range v.Checkpoints {
		k, _, _, _ := layout.ParseCheckpointName(name) // the record was checked
		end = max(end, k+1)
	}
	return end
}

// rollForward applies the log from p on and stores our fence at its end, which
// is not below least. It returns the fence's key. ErrFenced (wrapped) if a newer
// writer is there.
func (e *Engine) rollForward(ctx context.Context, p position, least key.Key) (key.Key, error) {
	ahead := e.tails().ahead(ctx, p.next)
	defer ahead.close()
	read := ahead.next
	var denied denials
	for {
		k := p.next
		found, err := read()
		var cond objproxy.Condition
		switch {
		case errors.Is(err, objproxy.ErrNotFound):
			cond = objproxy.IfAbsent()
		case err != nil:
			return 0, e.unreadable(err)
		case found.obj.UUID != e.uuid:
			cond = objproxy.IfVersion(found.version)
		case found.obj.Epoch == e.epoch && found.obj.Nonce == e.nonce:
			return k, nil // our fence: the answer was lost
		case found.obj.Epoch == e.epoch:
			return 0, fmt.Errorf("%w: object %d has our epoch %d, but writer %s, not us (%s)", ErrRefused, k, e.epoch, found.obj.Nonce, e.nonce)
		case found.obj.Epoch > e.epoch:
			return 0, fmt.Errorf("%w: object %d has epoch %d, ours is %d", ErrFenced, k, found.obj.Epoch, e.epoch)
		case found.obj.Epoch >= p.epoch:
			if err := e.apply(found.obj); err != nil {
				return 0, e.unreadable(err)
			}
			p = position{k + 1, found.obj.Epoch}
			e.opening("reading the log", e.sinceCheckpoint.objects, 0)
			read, denied = ahead.next, 0
			continue
		default: // a leftover of a writer that was fenced before it
			cond = objproxy.IfVersion(found.version)
		}
		if k < least {
			return 0, fmt.Errorf("%w: read the log: object %d (%s): %w: it is missing or a leftover, but a checkpoint was made of the objects up to %d", ErrRefused, k, k.Name(), layout.ErrDamaged, least-1)
		}
		err = e.putFence(ctx, k, cond)
		if err == nil {
			return k, nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return 0, fmt.Errorf("store our fence: %w", err)
		}
		if err := e.again(ctx, &denied, k.Name()); err != nil {
			return 0, err
		}
		read = func() (tail, error) { return e.tails().read(ctx, k) } // judge what came in between
	}
}

// unreadable makes an error of the log itself a refusal: nothing is replaced,
// and asking again would not help.
func (e *Engine) unreadable(err error) error {
	if errors.Is(err, layout.ErrMagic) || errors.Is(err, layout.ErrVersion) || errors.Is(err, layout.ErrDamaged) {
		return fmt.Errorf("%w: read the log: %w", ErrRefused, err)
	}
	return fmt.Errorf("read the log: %w", err)
}

// apply takes one object of the log into the map.
func (e *Engine) apply(o *layout.Object) error {
	if err := e.fits(o); err != nil {
		return err
	}
	if o.FirstSeq != e.seq {
		return fmt.Errorf("object %d: %w: sequence number %d where %d is next", o.Key, layout.ErrDamaged, o.FirstSeq, e.seq)
	}
	e.maps.Apply(o)
	e.seq = o.NextSeq()
	e.sinceCheckpoint.objects++
	e.sinceCheckpoint.bytes += int64(o.Blocks)*int64(o.BlockSize) + int64(layout.TailSize(int(o.Blocks), len(o.Records)))
	return nil
}

// fits says whether an object is made for this volume. Error: layout.ErrDamaged.
func (e *Engine) fits(o *layout.Object) error {
	if int(o.BlockSize) != e.blockSize {
		return fmt.Errorf("object %d: %w: blocks of %d bytes", o.Key, layout.ErrDamaged, o.BlockSize)
	}
	for i, r := range o.Records {
		if r.Block+uint64(r.Blocks) > e.maps.Blocks() {
			return fmt.Errorf("object %d: %w: record %d reaches to block %d of %d", o.Key, layout.ErrDamaged, i, r.Block+uint64(r.Blocks), e.maps.Blocks())
		}
	}
	return nil
}

// putFence stores the empty object that ends the log of all writers before.
func (e *Engine) putFence(ctx context.Context, k key.Key, cond objproxy.Condition) error {
	o := &layout.Object{Footer: layout.Footer{UUID: e.uuid, Key: k, Epoch: e.epoch, Nonce: e.nonce, BlockSize: uint32(e.blockSize), FirstSeq: e.seq, Fence: true}}
	_, err := e.store.Put(ctx, k.Name(), objproxy.Body{Data: layout.AppendTail(nil, o)}, cond)
	return err
}

// replay writes again, as objects of ours, what chunk memory and local log
// hold beyond the end of the log, and waits until the store has it.
func (e *Engine) replay(ctx context.Context) error {
	if !e.holdsRecords() {
		return nil
	}
	memory, err := e.leftInMemory()
	if err != nil {
		return err
	}
	found := leftover{memory: memory, log: e.leftLog}
	first, replayed := e.seq, 0
	for {
		r, ok, err := found.at(e.seq)
		if err != nil {
			return fmt.Errorf("%w: %w; without what it holds: --forget-local-log, and move the file away", ErrRefused, err)
		}
		if !ok {
			break
		}
		if r.Block+uint64(r.Blocks) > e.maps.Blocks() {
			return fmt.Errorf("%w: %w: write %d reaches to block %d of %d", ErrRefused, wlog.ErrDamaged, r.Seq, r.Block+uint64(r.Blocks), e.maps.Blocks())
		}
		if err := e.replayEntry(ctx, r); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		replayed++
		e.opening("replaying writes", replayed, found.upTo(first))
	}
	if err := e.judgeGap(&found); err != nil {
		return err
	}
	if err := e.flushToStore(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	e.log.Info().Int("writes", replayed).Int("from_log", found.fromLog).Uint64("first", first).Msg("replayed chunk memory")
	return nil
}

// judgeGap judges what lies behind the first sequence number that neither chunk
// memory nor local log has. A machine that went down may have torn what was not
// synced; anything else that is missing was lost.
func (e *Engine) judgeGap(l *leftover) error {
	if len(l.memory) > 0 && e.sameBoot() {
		return fmt.Errorf("%w: chunk memory %s: %w: write %d is missing", ErrRefused, e.memory.Path(), wlog.ErrDamaged, e.seq)
	}
	if l.log != nil && l.log.Synced() > e.seq && !e.opts.ForgetLocalLog {
		return fmt.Errorf("%w: local log %s: %w: write %d is missing, and those up to %d were flushed; to go on without them: --forget-local-log",
			ErrRefused, l.log.Path(), wlog.ErrDamaged, e.seq, l.log.Synced()-1)
	}
	if len(l.memory) > 0 || l.log != nil && l.log.Last() > e.seq {
		e.log.Warn().Uint64("missing", e.seq).Msg("what was not flushed was torn when the machine went down: what follows the first missing write is dropped")
	}
	return nil
}

// leftInMemory gives what verifies in the slots of chunk memory, by sequence
// number. Only a machine that went down may have torn something.
func (e *Engine) leftInMemory() ([]wlog.Entry, error) {
	var found []wlog.Entry
	if e.memory == nil {
		return nil, nil
	}
	for _, s := range e.memory.Slots() {
		if s.Count() == 0 {
			continue
		}
		if h, err := s.Header(); err == nil && !e.writersHere[h.Nonce] {
			continue
		}
		entries, err := s.Entries()
		if err != nil && e.sameBoot() {
			return nil, fmt.Errorf("%w: chunk memory %s: %w; move the file away to go on without what it holds", ErrRefused, e.memory.Path(), err)
		}
		if err != nil {
			e.log.Warn().Err(err).Msg("chunk memory was torn when the machine went down")
		}
		found = append(found, entries...)
	}
	slices.SortFunc(found, func(a, b wlog.Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	return found, nil
}

// replayEntry appends one entry. Its chunks are built on the heap: what is
// replayed may fill the whole pool.
func (e *Engine) replayEntry(ctx context.Context, r wlog.Entry) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for !e.room(len(r.CRCs)) {
		e.seal()
		e.mu.Unlock()
		slot, err := e.heapSlot(ctx)
		e.mu.Lock()
		if err != nil {
			return err
		}
		e.begin(slot)
	}
	if r.Kind == layout.KindZero {
		e.appendRecord(layout.Record{Block: r.Block, Blocks: r.Blocks, Kind: layout.KindZero}, nil, nil)
		for u := e.maps.Zero(r.Block, uint64(r.Blocks)); !e.maps.Settle(u); {
			continue
		}
		return nil
	}
	e.write(int64(r.Block)*int64(e.blockSize), r.Data, r.CRCs)
	return nil
}
