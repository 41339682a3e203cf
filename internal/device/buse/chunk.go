package buse

import (
	"encoding/binary"
	"errors"
	"fmt"

	"bs3/internal/device"
)

// A chunk, as the module's wqueue fills it, little-endian:
//
//	0                     chunk size / block size records, of which the call
//	                      says how many, from the first, are in use
//	after all of these    the data of the writes, in the order of the records
//
// and a record:
//
//	 0  8  first sector, of 512 bytes
//	 8  8  sectors of 512 bytes
//	16  8  number of the write in its collision area, 32 bits with their sign
//	24  8  operation, as linux/blk_types.h numbers them
//
// Only writes have data. No record goes beyond its collision area.
const (
	recordSize = 32  // bytes
	sectorSize = 512 // bytes
)

// operation is what a record asks for. Secure erase and write same are refused: a
// log cannot keep what the first promises, and the module does not pass on the
// data of the second. The library has the module offer only writes.
type operation uint64

const (
	opWrite       operation = 1
	opDiscard     operation = 3
	opWriteZeroes operation = 9
)

// errChunk is returned (wrapped) for a malformed chunk.
var errChunk = errors.New("damaged chunk of writes")

// record is a request in a chunk.
type record struct {
	op     operation
	first  int64  // block
	blocks int64  // > 0
	number uint32 // see sequence.go
	data   []byte // in the chunk; of writes only
}

// format is what reading the chunks of a device requires.
type format struct {
	blockSize  int64 // bytes
	blocks     int64 // of the device
	areaBlocks int64 // of a collision area
}

func newFormat(g device.Geometry, collisionArea int64) format {
	bs := int64(g.BlockSize)
	return format{blockSize: bs, blocks: g.Size / bs, areaBlocks: collisionArea / bs}
}

// parse reads the first n records of a chunk, or returns an error if any of them is
// malformed. The records point to the chunk's data.
func (f format) parse(n int64, chunk []byte) ([]record, error) {
	slots := int64(len(chunk)) / f.blockSize
	if n < 0 || n > slots {
		return nil, fmt.Errorf("%w: %d records where there is space for %d", errChunk, n, slots)
	}
	records := make([]record, n)
	data := chunk[slots*recordSize:]
	for i := range records {
		r, err := f.record(chunk[i*recordSize:][:recordSize])
		if err == nil && r.op == opWrite {
			bytes := r.blocks * f.blockSize
			if bytes > int64(len(data)) {
				err = fmt.Errorf("%w: write of %d bytes where %d are left", errChunk, bytes, len(data))
			} else {
				r.data, data = data[:bytes], data[bytes:]
			}
		}
		if err != nil {
			return nil, fmt.Errorf("record %d of %d: %w", i, n, err)
		}
		records[i] = r
	}
	return records, nil
}

// record reads one record.
func (f format) record(p []byte) (record, error) {
	first512 := binary.LittleEndian.Uint64(p)
	sectors512 := binary.LittleEndian.Uint64(p[8:])
	r := record{
		number: uint32(binary.LittleEndian.Uint64(p[16:])),
		op:     operation(binary.LittleEndian.Uint64(p[24:])),
	}
	switch r.op {
	case opWrite, opDiscard, opWriteZeroes:
	default:
		return record{}, fmt.Errorf("%w: operation %d", errChunk, r.op)
	}
	block512 := uint64(f.blockSize / sectorSize)
	size512 := uint64(f.blocks) * block512
	switch {
	case sectors512 == 0 || sectors512%block512 != 0 || first512%block512 != 0:
		return record{}, fmt.Errorf("%w: %d sectors from %d are not whole blocks of %d bytes", errChunk, sectors512, first512, f.blockSize)
	case first512 >= size512 || sectors512 > size512-first512:
		return record{}, fmt.Errorf("%w: %d sectors from %d, of a device of %d", errChunk, sectors512, first512, size512)
	}
	r.first, r.blocks = int64(first512/block512), int64(sectors512/block512)
	if r.first/f.areaBlocks != (r.first+r.blocks-1)/f.areaBlocks {
		return record{}, fmt.Errorf("%w: %d blocks from %d go beyond their collision area of %d", errChunk, r.blocks, r.first, f.areaBlocks)
	}
	return r, nil
}
