package buse

import (
	"context"
	"sync/atomic"
)

// sequences has for each block the number of the newest write that the volume has
// taken.
//
// The module has a counter for each collision area and gives every write in it the
// next number, beginning with 1, at the moment when it acknowledges the write. So
// of two writes to a block the one with the higher number is newer, and it has to
// win in whatever order their chunks come.
//
// Why it does. For each area there is a turn, which one goroutine at a time holds
// from before it compares a record with what is known of its blocks until the
// volume has taken what is newer and that is noted here. Let A and B be records
// with a common block b, B with the higher number.
//
//   - A has its turn first: B finds the number of A or a still older one, below
//     its own, and writes b after A did.
//   - B has its turn first: the volume has taken B when A gets its turn. A finds a
//     number that is not below its own, and leaves b alone. So a block that A
//     skips is already in the volume, and the flush at the end of A's chunk covers
//     it: nothing of an acknowledged flush depends on a write that may never be
//     taken.
//   - B fails: its number is not noted, A writes b, and B is not acknowledged.
//
// A goroutine has one turn at a time, during which it waits only for the volume, so
// this cannot deadlock.
//
// The counters have 32 bits, and that of a busy area wraps around within days. So
// numbers are compared by their difference as a signed number, which is right as
// long as the two are less than 2^31 apart. Numbers in flight are: the memory that
// is shared with the kernel holds less than 2^25 records. The number of a block
// that was not written for long is forgotten before it comes near that: it cannot
// be needed, since every older write has long arrived.
type sequences struct {
	areaBlocks int64
	areas      []atomic.Pointer[area] // made by the first record
}

// area is a collision area.
type area struct {
	turn    chan struct{} // holds one value, which the holder of the turn takes
	highest uint32        // of all numbers
	swept   uint32        // what highest was at the last sweep
	newest  []uint32      // for each block; none if no write matters
}

const (
	// none is no number. A write that has it gets one less, which is as good: no
	// write lies between.
	none = 0
	// sweepEvery is by how much the highest number grows between two sweeps, and
	// the age at which a number is forgotten. Twice that is well below 2^31.
	sweepEvery = 1 << 29
)

func newSequences(f format) *sequences {
	return &sequences{
		areaBlocks: f.areaBlocks,
		areas:      make([]atomic.Pointer[area], (f.blocks+f.areaBlocks-1)/f.areaBlocks),
	}
}

// enter waits for the turn in the area of block. leave has to follow.
func (s *sequences) enter(ctx context.Context, block int64) (*area, error) {
	p := &s.areas[block/s.areaBlocks]
	a := p.Load()
	if a == nil {
		fresh := &area{turn: make(chan struct{}, 1), newest: make([]uint32, s.areaBlocks)}
		fresh.turn <- struct{}{}
		if p.CompareAndSwap(nil, fresh) {
			a = fresh
		} else {
			a = p.Load()
		}
	}
	select {
	case <-a.turn:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *area) leave() { a.turn <- struct{}{} }

// newer returns how many of the blocks from i to end (exclusive), counted in the
// area, have to be skipped because a newer write was taken, and how many behind
// those have not.
func (a *area) newer(i, end int64, number uint32) (skip, take int64) {
	for i < end && !a.older(i, number) {
		skip, i = skip+1, i+1
	}
	for i < end && a.older(i, number) {
		take, i = take+1, i+1
	}
	return skip, take
}

// older reports whether what was taken for block i is older than number.
func (a *area) older(i int64, number uint32) bool {
	last := a.newest[i]
	return last == none || int32(number-last) > 0
}

// note records that the write of the blocks from i to end was taken.
func (a *area) note(i, end int64, number uint32) {
	if int32(number-a.highest) > 0 {
		a.highest = number
	}
	if number == none {
		number--
	}
	for ; i < end; i++ {
		a.newest[i] = number
	}
	if a.highest-a.swept >= sweepEvery {
		a.sweep()
	}
}

// sweep forgets old numbers.
func (a *area) sweep() {
	for i, number := range a.newest {
		if age := int32(a.highest - number); age >= sweepEvery {
			a.newest[i] = none
		}
	}
	a.swept = a.highest
}
