package wlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"bs3/internal/bs3/layout"
)

// Slot is the memory of one chunk: its data, and all else that replay needs. It
// has one writer at a time. Add may run while others read what was added before,
// because it never touches that.
type Slot struct {
	mem       []byte
	off       layout.SlotLayout
	uuid      layout.UUID
	blockSize int
	head      layout.SlotHeader
	checks    *layout.Checks // of the chunk that was begun
	blocks    uint32         // added so far
	count     uint32         // records added so far
	sum       uint32         // of the blocks
	pooled    bool
}

// NewHeapSlot returns a slot on the heap for a chunk of volume u, for what must
// not wait for the pool. Its bytes do not outlive the process.
func NewHeapSlot(u layout.UUID, chunkBlocks, blockSize int) *Slot {
	off := layout.SlotOffsets(chunkBlocks, blockSize)
	return &Slot{mem: make([]byte, off.Size), off: off, uuid: u, blockSize: blockSize}
}

// Pooled reports whether the slot belongs to a Memory.
func (s *Slot) Pooled() bool { return s.pooled }

// Begin empties the slot and makes it the memory of the chunk that h describes.
// It does not touch the data.
func (s *Slot) Begin(h layout.SlotHeader) {
	s.Clear()
	s.head = h
	s.checks = layout.NewChecks(s.uuid, h.Key)
	layout.EncodeSlotHeader(s.mem, h)
}

// Add appends one record with the data and the CRCs of its blocks (both empty
// for a zero record). The caller must have checked that there is room.
func (s *Slot) Add(r layout.Record, data []byte, crcs []uint32) {
	for _, crc := range crcs {
		s.Lay(s.blocks, data[:s.blockSize])
		s.Take(crc)
		data = data[s.blockSize:]
	}
	rec := s.mem[s.off.Records+layout.RecordSize*int64(s.count):][:layout.RecordSize]
	layout.PutRecord(rec, r)
	binary.LittleEndian.PutUint32(s.mem[s.off.RecordCRCs+4*int64(s.count):], layout.RecordCRC(rec, s.sum, s.head.Nonce, s.head.Key))
	s.count++
	layout.PutSlotCount(s.mem, s.count) // last: what is not counted was not acknowledged
}

// Lay copies a block to the place of block index, above all blocks that were
// added, where Take finds it.
func (s *Slot) Lay(index uint32, block []byte) { copy(s.Stored(index, 1), block) }

// Take makes the block that lies above those that were added one of them. crc is
// its CRC.
func (s *Slot) Take(crc uint32) {
	stored := s.Stored(s.blocks, 1)
	binary.LittleEndian.PutUint32(stored[s.blockSize:], s.checks.Value(s.blocks, crc))
	s.sum = layout.AddSum(s.sum, stored, s.blockSize)
	s.blocks++
}

// Blocks returns how many blocks were added.
func (s *Slot) Blocks() int { return int(s.blocks) }

// Sum returns the sum of the blocks that were added, see layout.AddSum.
func (s *Slot) Sum() uint32 { return s.sum }

// Stored returns the memory of n blocks from block index, with their check
// values (layout.Stride).
func (s *Slot) Stored(index, n uint32) []byte {
	stride := int64(layout.Stride(s.blockSize))
	from, to := s.off.Data+int64(index)*stride, s.off.Data+int64(index+n)*stride
	return s.mem[from:to:to]
}

// Read copies whole blocks from block index on to dst.
func (s *Slot) Read(dst []byte, index uint32) {
	layout.CopyBlocks(dst, s.Stored(index, uint32(len(dst)/s.blockSize)), s.blockSize)
}

// Clear empties the slot, so that replay finds nothing in it.
func (s *Slot) Clear() {
	layout.PutSlotCount(s.mem, 0)
	s.blocks, s.count, s.sum = 0, 0, 0
}

// Count returns the number of records in the slot as an earlier process left it:
// more than any slot has if the number is damaged.
func (s *Slot) Count() uint32 {
	n, ok := layout.SlotCount(s.mem)
	switch {
	case ok:
		return n
	case n == 0 && s.unused():
		return 0
	}
	return math.MaxUint32
}

// unused reports whether the slot is as it was made.
func (s *Slot) unused() bool {
	for _, b := range s.mem[:s.off.Data] {
		if b != 0 {
			return false
		}
	}
	return true
}

// Header returns the slot's header as an earlier process left it. The error
// wraps ErrDamaged if the header does not verify or if Count is more than fits.
func (s *Slot) Header() (layout.SlotHeader, error) {
	h, err := layout.DecodeSlotHeader(s.mem)
	if err != nil {
		return h, fmt.Errorf("slot header: %w: %w", ErrDamaged, err)
	}
	if _, ok := layout.SlotCount(s.mem); !ok {
		return h, fmt.Errorf("slot of key %d: the number of its records is not what its complement says: %w", h.Key, ErrDamaged)
	}
	if room := (s.off.RecordCRCs - s.off.Records) / layout.RecordSize; int64(s.Count()) > room {
		return h, fmt.Errorf("slot of key %d counts %d records, at most %d fit: %w", h.Key, s.Count(), room, ErrDamaged)
	}
	return h, nil
}

// Entry is one record found in a slot or in the local log, with the CRC of each
// of its blocks.
type Entry struct {
	layout.Record
	CRCs []uint32

	stored    []byte // the slot's memory, or a frame's
	blockSize int
}

// NewEntry returns an entry whose data is stored blocks of blockSize bytes with
// these CRCs.
func NewEntry(r layout.Record, stored []byte, crcs []uint32, blockSize int) Entry {
	return Entry{Record: r, CRCs: crcs, stored: stored, blockSize: blockSize}
}

// Data returns a copy of the entry's data.
func (e *Entry) Data() []byte {
	data := make([]byte, len(e.CRCs)*e.blockSize)
	layout.CopyBlocks(data, e.stored, e.blockSize)
	return data
}

// Entries returns the counted records of a slot in order, up to the first that
// does not verify. If there is one, err wraps ErrDamaged.
func (s *Slot) Entries() (entries []Entry, err error) {
	h, err := s.Header()
	if err != nil {
		return nil, err
	}
	found := slotReader{s, h, layout.NewChecks(s.uuid, h.Key), 0, 0}
	for i := range s.Count() {
		e, err := found.next(i)
		if err != nil {
			return entries, fmt.Errorf("slot of key %d, record %d of %d: %w: %w", h.Key, i, s.Count(), ErrDamaged, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// slotReader reads the records of a slot in order.
type slotReader struct {
	*Slot
	head        layout.SlotHeader
	checks      *layout.Checks
	blocks, sum uint32 // of the records before
}

func (s *slotReader) next(i uint32) (Entry, error) {
	raw := s.mem[s.off.Records+layout.RecordSize*int64(i):][:layout.RecordSize]
	r, err := layout.DecodeRecord(raw)
	if err != nil {
		return Entry{}, err
	}
	var n uint32
	if r.Kind == layout.KindWrite {
		n = r.Blocks
	}
	stride := layout.Stride(s.blockSize)
	room := (s.off.Records - s.off.Data) / int64(stride)
	if int64(s.blocks)+int64(n) > room || n > 0 && r.Index != s.blocks {
		return Entry{}, fmt.Errorf("data of %d blocks at index %d does not follow %d of at most %d blocks", n, r.Index, s.blocks, room)
	}
	stored := s.Stored(s.blocks, n)
	s.sum = layout.AddSum(s.sum, stored, s.blockSize)
	if want := binary.LittleEndian.Uint32(s.mem[s.off.RecordCRCs+4*int64(i):]); layout.RecordCRC(raw, s.sum, s.head.Nonce, s.head.Key) != want {
		return Entry{}, errors.New("checksum of the record differs")
	}
	crcs := make([]uint32, n)
	for b := range crcs {
		var ok bool
		if crcs[b], ok = s.checks.Verify(s.blocks+uint32(b), stored[b*stride:][:stride]); !ok {
			return Entry{}, fmt.Errorf("check value of data block %d differs", b)
		}
	}
	s.blocks += n
	return NewEntry(r, stored, crcs, s.blockSize), nil
}
