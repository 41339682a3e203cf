package writer

import (
	"context"
	"fmt"
	"slices"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

// Write writes p, which is whole blocks within the volume, at off. A write
// larger than a chunk becomes several, in order; any other is one record. It
// waits for chunk memory. Errors: device.ErrStopped, that of ctx.
func (l *Log) Write(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		piece := p[:min(len(p), l.c.ChunkBlocks*l.c.BlockSize)]
		var few [64]uint32
		crcs := l.checksums(few[:0], piece)
		if err := l.inTurn(ctx, len(crcs), func() { l.write(uint64(off)/uint64(l.c.BlockSize), piece, crcs) }); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
		}
		p, off = p[len(piece):], off+int64(len(piece))
	}
	return nil
}

// TryWrite is Write, but does nothing and returns false when it would have to
// wait for chunk memory.
func (l *Log) TryWrite(p []byte, off int64) bool {
	if len(p) > l.c.ChunkBlocks*l.c.BlockSize {
		return false
	}
	if len(p) == 0 {
		return true
	}
	var few [64]uint32
	crcs := l.checksums(few[:0], p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c.Life.Err() != nil || !l.mu.line.first(nil) || !l.makeRoom(len(crcs)) {
		return false
	}
	l.write(uint64(off)/uint64(l.c.BlockSize), p, crcs)
	return true
}

// Zero makes n bytes at off, whole blocks within the volume, unmapped. Errors:
// as Write.
func (l *Log) Zero(ctx context.Context, off, n int64) error {
	block, blocks := uint64(off)/uint64(l.c.BlockSize), uint64(n)/uint64(l.c.BlockSize)
	for blocks > 0 {
		some := min(blocks, layout.MaxZeroBlocks)
		var pending *mapproxy.Unsettled
		if err := l.inTurn(ctx, 0, func() { pending = l.zero(block, some) }); err != nil {
			return fmt.Errorf("zero %d bytes at %d: %w", n, off, err)
		}
		l.settle(pending)
		block, blocks = block+some, blocks-some
	}
	return nil
}

// zero appends a record that unmaps the blocks, and unmaps them. Under the chunk
// lock; there is room.
func (l *Log) zero(block, blocks uint64) *mapproxy.Unsettled {
	l.addRecord(layout.Record{Block: block, Blocks: uint32(blocks), Kind: layout.KindZero}, nil, nil)
	return l.mu.maps.Zero(block, blocks)
}

// settle takes what a discard detached off the live counts, a leaf at a time.
func (l *Log) settle(pending *mapproxy.Unsettled) {
	for done := pending == nil; !done; {
		l.mu.Lock()
		done = l.mu.maps.Settle(pending)
		l.mu.Unlock()
	}
}

// checksums appends the CRC of each block of p to crcs.
func (l *Log) checksums(crcs []uint32, p []byte) []uint32 {
	for ; len(p) > 0; p = p[l.c.BlockSize:] {
		crcs = append(crcs, layout.CRC(p[:l.c.BlockSize]))
	}
	return crcs
}

// write appends data, the blocks of the volume from block on, to the open chunk
// and shows it to readers. Under the chunk lock; there is room.
func (l *Log) write(block uint64, data []byte, crcs []uint32) {
	c, index := l.mu.cur, uint32(l.mu.cur.slot.Blocks())
	l.addRecord(layout.Record{Block: block, Blocks: uint32(len(crcs)), Kind: layout.KindWrite, Index: index}, data, crcs)
	l.mu.maps.Write(block, uint32(len(crcs)), layout.Loc(c.obj.Key, index))
	l.mu.written += int64(len(data))
	if !l.room(1) {
		l.seal()
	}
}

// inTurn runs put under the chunk lock with an open chunk that has room for a
// record with n data blocks. It waits for chunk memory behind those that came
// before; a ctx that ends while it waits means that nothing was done.
func (l *Log) inTurn(ctx context.Context, n int, put func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := &l.mu.line
	var turn chan struct{}
	defer func() { line.quit(turn) }()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.c.Life.Err(); err != nil {
			return err
		}
		if line.first(turn) && l.makeRoom(n) {
			put()
			return nil
		}
		if turn == nil {
			turn = line.join()
		}
		l.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
		case <-l.c.Life.Done():
		}
		l.mu.Lock()
	}
}

// makeRoom sees to an open chunk with room for a record of n blocks; false if
// that needs a slot and none is free. Under the chunk lock.
func (l *Log) makeRoom(n int) bool {
	if l.room(n) {
		return true
	}
	l.seal() // also if there is no slot: nobody else may fill it
	slot := l.takeSlot()
	if slot == nil {
		return false
	}
	l.begin(slot)
	return true
}

// queue is a line of writers that wait for chunk memory, first come first
// served. The chunk lock covers it.
type queue struct{ writers []chan struct{} }

// join puts a writer at the end of the line. It may try when its channel
// yields and it is first.
func (q *queue) join() chan struct{} {
	w := make(chan struct{}, 1)
	q.writers = append(q.writers, w)
	return w
}

// first reports whether w is at the head of the line; nil, a writer that has not
// joined, is if there is no line.
func (q *queue) first(w chan struct{}) bool { return len(q.writers) == 0 || q.writers[0] == w }

// wake lets the first writer try.
func (q *queue) wake() {
	if len(q.writers) > 0 {
		select {
		case q.writers[0] <- struct{}{}:
		default: // told already
		}
	}
}

// quit takes w off the line, and lets the next one try what w left.
func (q *queue) quit(w chan struct{}) {
	if i := slices.Index(q.writers, w); i >= 0 {
		q.writers = slices.Delete(q.writers, i, i+1)
		q.wake()
	}
}
