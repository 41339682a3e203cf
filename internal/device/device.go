// Package device is the small interface between a volume and the transports
// that show it to Linux. The engine and the null volume implement Volume; nbd,
// ublk and buse serve one. Neither side knows the other.
//
// All offsets and lengths are bytes and multiples of Geometry.BlockSize; a
// transport that accepts finer requests converts them first.
package device

import (
	"context"
	"errors"
)

// ErrStopped is returned (wrapped) by a Volume that serves no more requests: it
// was closed, was fenced by another writer, or failed for good.
var ErrStopped = errors.New("volume has stopped")

// Geometry describes a volume. It does not change while the volume is open.
type Geometry struct {
	Size       int64 // bytes, a multiple of BlockSize
	BlockSize  int   // bytes, 512 or 4096: the smallest unit of a request
	IOMin      int   // bytes, preferred smallest request; 0 = BlockSize
	IOOpt      int   // bytes, preferred request size; 0 = none
	MaxDiscard int64 // bytes, the largest Discard or WriteZeroes; 0 = no limit
	ReadOnly   bool
}

// Pieces calls do for [off, off+n) in pieces of at most MaxDiscard, in order,
// until one fails.
func (g Geometry) Pieces(off, n int64, do func(off, n int64) error) error {
	most := g.MaxDiscard - g.MaxDiscard%int64(g.BlockSize)
	if most <= 0 {
		most = n
	}
	for n > 0 {
		piece := min(n, most)
		if err := do(off, piece); err != nil {
			return err
		}
		off, n = off+piece, n-piece
	}
	return nil
}

// Volume is what a transport serves. off and len(p) are bytes and multiples
// of BlockSize, inside [0, Size). It is safe for concurrent use. A nil error
// is an acknowledgement. An error for a write, discard or flush means that
// nothing is promised about it. A cancelled ctx ends the wait, and a request that
// has not taken effect by then never will.
type Volume interface {
	Geometry() Geometry
	// ReadAt fills p with the newest acknowledged bytes, and zeros where there are none.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes p, which the caller may reuse when it returns.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush returns when everything acknowledged before the call survives what
	// the volume's mode promises.
	Flush(ctx context.Context) error
	// Discard makes [off, off+n) read as zeros and frees its space.
	Discard(ctx context.Context, off, n int64) error
	// WriteZeroes makes [off, off+n) read as zeros.
	WriteZeroes(ctx context.Context, off, n int64) error
}

// Fast is the path that never blocks, which a Volume may offer. The methods
// return false, and have done nothing, if they would block or have failed; the
// transport then calls the Volume on another goroutine. The caller has checked
// that its client is still there.
type Fast interface {
	TryReadAt(p []byte, off int64) bool
	TryWriteAt(p []byte, off int64) bool
}

// Extent is a run of bytes that is either all data or all hole.
type Extent struct {
	Length int64 // bytes
	Hole   bool  // reads as zeros and takes no space
}

// Allocator is a Volume that knows where it holds data. Allocation describes
// [off, off+n), in order and without gaps, from the map alone: it sends no
// request to a store. It may describe less than n bytes, but never nothing.
type Allocator interface {
	Allocation(ctx context.Context, off, n int64) ([]Extent, error)
}
