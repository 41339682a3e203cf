package layout

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Kind is what a record does to its blocks.
type Kind uint8

// The kinds of records. Their numbers are part of the format.
const (
	KindWrite Kind = 1 // the blocks are data of this object
	KindZero  Kind = 2 // the blocks read as zeros: discard or write zeroes
	KindMove  Kind = 3 // the blocks that still lie at Source are data of this object
)

func (k Kind) String() string {
	switch k {
	case KindWrite:
		return "write"
	case KindZero:
		return "zero"
	case KindMove:
		return "move"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Record is one step of the log: what happens to the Blocks blocks from Block.
type Record struct {
	Block  uint64   // first block of the volume
	Blocks uint32   // number of blocks, at least 1
	Kind   Kind     //
	Index  uint32   // first data block in the object; 0 in zeros
	Seq    uint64   // sequence number; 0 in moves
	Source Location // where the first block lay before; only in moves
}

const (
	// RecordSize is the size of an encoded Record in bytes.
	RecordSize = 32
	// MaxZeroBlocks is the most blocks that one zero record covers.
	MaxZeroBlocks = 1 << 20
	// MaxBlocks is the most blocks of a volume: leaves are numbered by 32 bits.
	MaxBlocks = LeafBlocks << 32
	// NoBlock is no number of a block.
	NoBlock = math.MaxUint64
)

// MaxRecords returns the most records of an object whose chunk holds chunkBlocks
// data blocks. It bounds a slot of chunk memory and the read of a tail.
func MaxRecords(chunkBlocks int) int { return chunkBlocks + 256 }

// AppendRecord appends r in its 32 bytes.
func AppendRecord(dst []byte, r Record) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, r.Block)
	dst = binary.LittleEndian.AppendUint32(dst, r.Blocks)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.Kind)|r.Index<<8)
	dst = binary.LittleEndian.AppendUint64(dst, r.Seq)
	return binary.LittleEndian.AppendUint64(dst, uint64(r.Source))
}

// PutRecord writes r into the first 32 bytes of dst.
func PutRecord(dst []byte, r Record) {
	_ = dst[RecordSize-1]
	binary.LittleEndian.PutUint64(dst[0:], r.Block)
	binary.LittleEndian.PutUint32(dst[8:], r.Blocks)
	binary.LittleEndian.PutUint32(dst[12:], uint32(r.Kind)|r.Index<<8)
	binary.LittleEndian.PutUint64(dst[16:], r.Seq)
	binary.LittleEndian.PutUint64(dst[24:], uint64(r.Source))
}

// DecodeRecord decodes the record in the first 32 bytes of b. It checks what can
// be checked without the object: kind, ranges, and that fields which its kind
// does not use are zero. Error: ErrDamaged.
func DecodeRecord(b []byte) (Record, error) {
	if len(b) < RecordSize {
		return Record{}, damaged("record of %d bytes, not %d", len(b), RecordSize)
	}
	var r Record
	r.decode(b)
	return r, r.check()
}

func (r *Record) decode(b []byte) {
	_ = b[RecordSize-1]
	kindIndex := binary.LittleEndian.Uint32(b[12:])
	r.Block = binary.LittleEndian.Uint64(b[0:])
	r.Blocks = binary.LittleEndian.Uint32(b[8:])
	r.Kind = Kind(kindIndex & 0xff)
	r.Index = kindIndex >> 8
	r.Seq = binary.LittleEndian.Uint64(b[16:])
	r.Source = Location(binary.LittleEndian.Uint64(b[24:]))
}

func (r *Record) check() error {
	if r.Blocks == 0 {
		return damaged("%v record of no blocks", r.Kind)
	}
	if r.Block >= MaxBlocks || uint64(r.Blocks) > MaxBlocks-r.Block {
		return damaged("%v record of %d blocks from %d on is beyond any volume", r.Kind, r.Blocks, r.Block)
	}
	switch r.Kind {
	case KindWrite:
		if r.Source != 0 {
			return damaged("write record with a source, %#x", uint64(r.Source))
		}
	case KindZero:
		if r.Index != 0 || r.Source != 0 {
			return damaged("zero record with data (index %d, source %#x)", r.Index, uint64(r.Source))
		}
		if r.Blocks > MaxZeroBlocks {
			return damaged("zero record of %d blocks, more than %d", r.Blocks, MaxZeroBlocks)
		}
		return nil
	case KindMove:
		if r.Seq != 0 {
			return damaged("move record with sequence number %d", r.Seq)
		}
		if !r.Source.Mapped() || !r.Source.valid() || uint64(r.Source.Index())+uint64(r.Blocks) > MaxObjectBlocks {
			return damaged("move record of %d blocks from source %#x", r.Blocks, uint64(r.Source))
		}
	default:
		return damaged("record of unknown %v", r.Kind)
	}
	if uint64(r.Index)+uint64(r.Blocks) > MaxObjectBlocks {
		return damaged("%v record of %d blocks from data block %d on is beyond any object", r.Kind, r.Blocks, r.Index)
	}
	return nil
}
