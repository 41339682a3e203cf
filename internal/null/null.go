// Package null is the volume that does nothing, correctly: it acknowledges and
// drops writes, and reads zeros. It is the floor that transports are measured
// against.
package null

import (
	"context"

	"bs3/internal/device"
)

// Volume drops writes and reads zeros. It never blocks and never fails, and
// has no state, so all of it is safe for concurrent use.
type Volume struct{ geometry device.Geometry }

var (
	_ device.Volume    = (*Volume)(nil)
	_ device.Fast      = (*Volume)(nil)
	_ device.Allocator = (*Volume)(nil)
)

// New returns a null volume of the given geometry.
func New(g device.Geometry) *Volume { return &Volume{geometry: g} }

// Geometry returns what New was given.
func (v *Volume) Geometry() device.Geometry { return v.geometry }

// ReadAt fills p with zeros.
func (v *Volume) ReadAt(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}

// WriteAt drops p.
func (v *Volume) WriteAt(context.Context, []byte, int64) error { return nil }

// Flush does nothing: there is nothing to keep.
func (v *Volume) Flush(context.Context) error { return nil }

// Discard does nothing: there is nothing to free.
func (v *Volume) Discard(context.Context, int64, int64) error { return nil }

// WriteZeroes does nothing: all is zeros already.
func (v *Volume) WriteZeroes(context.Context, int64, int64) error { return nil }

// TryReadAt fills p with zeros.
func (v *Volume) TryReadAt(p []byte, _ int64) bool {
	clear(p)
	return true
}

// TryWriteAt drops p.
func (v *Volume) TryWriteAt([]byte, int64) bool { return true }

// Allocation returns one hole.
func (v *Volume) Allocation(_ context.Context, _, n int64) ([]device.Extent, error) {
	return []device.Extent{{Length: n, Hole: true}}, nil
}
