package bs3

import (
	"context"
	"fmt"
	"slices"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

// WriteAt implements device.Volume. A write larger than a chunk becomes
// several, in order; any other is one record.
func (e *Engine) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := e.check(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		piece := p[:min(len(p), e.chunkBlocks*e.blockSize)]
		var few [64]uint32
		crcs := e.checksums(few[:0], piece)
		if err := e.append(ctx, len(crcs), func() { e.write(off, piece, crcs) }); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
		}
		p, off = p[len(piece):], off+int64(len(piece))
	}
	return nil
}

// TryWriteAt implements device.Fast: false when the write has to wait for
// chunk memory.
func (e *Engine) TryWriteAt(p []byte, off int64) bool {
	if len(p) > e.chunkBlocks*e.blockSize || e.check(off, int64(len(p))) != nil {
		return false
	}
	if len(p) == 0 {
		return true
	}
	var few [64]uint32
	crcs := e.checksums(few[:0], p)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed != nil || !e.writers.first(nil) || !e.makeRoom(len(crcs)) {
		return false
	}
	e.write(off, p, crcs)
	return true
}

// Discard implements device.Volume.
func (e *Engine) Discard(ctx context.Context, off, n int64) error { return e.zero(ctx, off, n) }

// WriteZeroes implements device.Volume.
func (e *Engine) WriteZeroes(ctx context.Context, off, n int64) error { return e.zero(ctx, off, n) }

func (e *Engine) zero(ctx context.Context, off, n int64) error {
	if err := e.check(off, n); err != nil {
		return err
	}
	block, blocks := uint64(off)/uint64(e.blockSize), uint64(n)/uint64(e.blockSize)
	for blocks > 0 {
		some := min(blocks, layout.MaxZeroBlocks)
		var pending *mapproxy.Unsettled
		err := e.append(ctx, 0, func() {
			e.appendRecord(layout.Record{Block: block, Blocks: uint32(some), Kind: layout.KindZero}, nil, nil)
			pending = e.maps.Zero(block, some)
		})
		if err != nil {
			return fmt.Errorf("zero %d bytes at %d: %w", n, off, err)
		}
		e.settle(pending)
		block, blocks = block+some, blocks-some
	}
	return nil
}

// settle takes what a discard detached off the live counts, a leaf at a time.
func (e *Engine) settle(pending *mapproxy.Unsettled) {
	for done := pending == nil; !done; {
		e.mu.Lock()
		done = e.maps.Settle(pending)
		e.mu.Unlock()
	}
}

// checksums appends the CRC of each block of p to crcs.
func (e *Engine) checksums(crcs []uint32, p []byte) []uint32 {
	for ; len(p) > 0; p = p[e.blockSize:] {
		crcs = append(crcs, layout.CRC(p[:e.blockSize]))
	}
	return crcs
}

// write appends data to the open chunk and shows it to readers. Under the
// chunk lock; there is room.
func (e *Engine) write(off int64, data []byte, crcs []uint32) {
	c, index := e.cur, uint32(len(e.cur.obj.CRCs))
	block := uint64(off) / uint64(e.blockSize)
	e.appendRecord(layout.Record{Block: block, Blocks: uint32(len(crcs)), Kind: layout.KindWrite, Index: index}, data, crcs)
	e.maps.Write(block, uint32(len(crcs)), layout.Loc(c.obj.Key, index))
	e.written += int64(len(data))
	if !e.room(1) {
		e.seal()
	}
}

// append runs put under the chunk lock with an open chunk that has room for a
// record with n data blocks. It waits for chunk memory behind those that came
// before; a ctx that ends while it waits means that nothing was done.
func (e *Engine) append(ctx context.Context, n int, put func()) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var turn chan struct{}
	defer func() { e.writers.quit(turn) }()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.closed != nil {
			return e.closed
		}
		if e.writers.first(turn) && e.makeRoom(n) {
			put()
			return nil
		}
		if turn == nil {
			turn = e.writers.join()
		}
		e.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
		case <-e.failed:
		}
		e.mu.Lock()
	}
}

// makeRoom sees to an open chunk with room for a record of n blocks; false if
// that needs a slot and none is free. Under the chunk lock.
func (e *Engine) makeRoom(n int) bool {
	if e.room(n) {
		return true
	}
	e.seal() // also if there is no slot: nobody else may fill it
	if len(e.free) == 0 {
		return false
	}
	last := len(e.free) - 1
	slot := e.free[last]
	e.free = e.free[:last]
	e.begin(slot)
	return true
}

// queue is a line of writers that wait for chunk memory, first come first
// served. The engine's chunk lock covers it.
type queue struct{ line []chan struct{} }

// join puts a writer at the end of the line. It may try when its channel
// yields and it is first.
func (q *queue) join() chan struct{} {
	w := make(chan struct{}, 1)
	q.line = append(q.line, w)
	return w
}

// first says whether w is at the head of the line; nil, a writer that has not
// joined, is if there is no line.
func (q *queue) first(w chan struct{}) bool { return len(q.line) == 0 || q.line[0] == w }

// wake lets the first writer try.
func (q *queue) wake() {
	if len(q.line) > 0 {
		select {
		case q.line[0] <- struct{}{}:
		default: // told already
		}
	}
}

// quit takes w off the line, and lets the next one try what w left.
func (q *queue) quit(w chan struct{}) {
	if i := slices.Index(q.line, w); i >= 0 {
		q.line = slices.Delete(q.line, i, i+1)
		q.wake()
	}
}
