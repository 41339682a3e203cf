package ublk

import (
	"math/bits"
	"unsafe"

	"bs3/internal/device"
)

// sectorShift converts bytes to the sectors of 512 bytes in which Linux counts
// whatever the block size.
const sectorShift = 9

const (
	// maxIOBytes bounds a read or write. The kernel splits larger ones.
	maxIOBytes = 1 << 20
	// defaultDiscard bounds a discard in bytes when the volume does not: the
	// kernel counts the bytes of a request in 32 bits.
	defaultDiscard = 1 << 31
)

// newParams describes a volume to the kernel.
func newParams(g device.Geometry) params {
	block := log2(g.BlockSize)
	ioMin := max(block, log2(g.IOMin))
	discard := g.MaxDiscard
	if discard <= 0 || discard > defaultDiscard {
		discard = defaultDiscard
	}
	discard512 := uint32((discard - discard%int64(g.BlockSize)) >> sectorShift)
	p := params{
		len:   uint32(unsafe.Sizeof(params{})),
		types: paramTypeBasic | paramTypeDiscard,
		basic: paramBasic{
			logicalShift:  block,
			physicalShift: block,
			ioMinShift:    ioMin,
			// There is no "none"; the value of io_min adds nothing.
			ioOptShift:    max(ioMin, log2(g.IOOpt)),
			maxSectors512: maxIOBytes >> sectorShift,
			devSectors512: uint64(g.Size) >> sectorShift,
		},
		discard: paramDiscard{
			granularity:       uint32(g.BlockSize),
			maxSectors512:     discard512,
			maxWriteZeroes512: discard512,
			maxSegments:       1, // the most that the driver accepts
		},
	}
	if g.ReadOnly {
		p.basic.attrs = attrReadOnly
		p.discard.maxSectors512, p.discard.maxWriteZeroes512 = 0, 0
	} else {
		p.basic.attrs = attrVolatileCache | attrFUA
	}
	return p
}

// fits reports whether a device with parameters p shows a volume of geometry g: the
// same blocks, to be used in the same way.
func (p params) fits(g device.Geometry) bool {
	want := newParams(g)
	return p.types&want.types == want.types && p.basic.attrs == want.basic.attrs &&
		p.basic.logicalShift == want.basic.logicalShift && p.basic.devSectors512 == want.basic.devSectors512 &&
		p.discard.maxSectors512 <= want.discard.maxSectors512 && p.discard.maxWriteZeroes512 <= want.discard.maxWriteZeroes512
}

// log2 rounds down: the kernel takes only powers of two.
func log2(n int) uint8 {
	if n <= 0 {
		return 0
	}
	return uint8(bits.Len(uint(n)) - 1)
}
