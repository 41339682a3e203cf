package wlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"bs3/internal/bs3/layout"
)

// Slot is the memory of one chunk: its data, and all else that replay needs. It
// has one writer at a time. Add may run while others read Data, because it never
// touches what was added before.
type Slot struct {
	mem       []byte
	off       layout.SlotLayout
	blockSize int
	head      layout.SlotHeader
	blocks    uint32 // added so far
	count     uint32 // records added so far
	pooled    bool
}

func newSlot(mem []byte, off layout.SlotLayout, blockSize int, pooled bool) *Slot {
	return &Slot{mem: mem, off: off, blockSize: blockSize, pooled: pooled}
}

// NewHeapSlot returns a slot on the heap, for what must not wait for the pool.
// Its bytes do not outlive the process.
func NewHeapSlot(chunkBlocks, blockSize int) *Slot {
	off := layout.SlotOffsets(chunkBlocks, blockSize)
	return newSlot(make([]byte, off.Size), off, blockSize, false)
}

// Pooled reports whether the slot belongs to a Memory.
func (s *Slot) Pooled() bool { return s.pooled }

// Begin empties the slot and makes it the memory of the chunk that h describes.
func (s *Slot) Begin(h layout.SlotHeader) {
	s.Clear()
	s.head = h
	layout.EncodeSlotHeader(s.mem, h)
}

// Add appends one record with the data and the checksums of its blocks (both
// empty for a zero record). The caller must have checked that there is room.
func (s *Slot) Add(r layout.Record, data []byte, crcs []uint32) {
	copy(s.mem[s.off.Data+int64(s.blocks)*int64(s.blockSize):s.off.CRCs], data)
	table := s.mem[s.off.CRCs+4*int64(s.blocks):][:4*len(crcs)]
	for i, c := range crcs {
		binary.LittleEndian.PutUint32(table[4*i:], c)
	}
	rec := s.mem[s.off.Records+layout.RecordSize*int64(s.count):][:layout.RecordSize]
	layout.PutRecord(rec, r)
	binary.LittleEndian.PutUint32(s.mem[s.off.RecordCRCs+4*int64(s.count):], layout.RecordCRC(rec, table, s.head.Nonce, s.head.Key))
	s.blocks += uint32(len(crcs))
	s.count++
	layout.PutSlotCount(s.mem, s.count) // last: what is not counted was not acknowledged
}

// Data returns the bytes of n blocks from block index.
func (s *Slot) Data(index, n uint32) []byte {
	from := s.off.Data + int64(index)*int64(s.blockSize)
	return s.mem[from : from+int64(n)*int64(s.blockSize) : from+int64(n)*int64(s.blockSize)]
}

// Clear empties the slot, so that replay finds nothing in it.
func (s *Slot) Clear() {
	layout.PutSlotCount(s.mem, 0)
	s.blocks, s.count = 0, 0
}

// Count returns the number of records in the slot as an earlier process left it.
func (s *Slot) Count() uint32 { return layout.SlotCount(s.mem) }

// Header returns the slot's header as an earlier process left it. The error
// wraps ErrDamaged if the header does not verify or if Count is more than fits.
func (s *Slot) Header() (layout.SlotHeader, error) {
	h, err := layout.DecodeSlotHeader(s.mem)
	if err != nil {
		return h, fmt.Errorf("slot header: %w: %w", ErrDamaged, err)
	}
	if room := (s.off.RecordCRCs - s.off.Records) / layout.RecordSize; int64(s.Count()) > room {
		return h, fmt.Errorf("slot of key %d counts %d records, at most %d fit: %w", h.Key, s.Count(), room, ErrDamaged)
	}
	return h, nil
}

// Entry is one record found in a slot or in the local log, with its data and the
// checksum of each of its blocks. The data of a slot's entry is the slot's memory.
type Entry struct {
	layout.Record
	Data []byte
	CRCs []uint32
}

// Entries returns the counted records of a slot in order, up to the first that
// does not verify. If there is one, err wraps ErrDamaged.
func (s *Slot) Entries() (entries []Entry, err error) {
	h, err := s.Header()
	if err != nil {
		return nil, err
	}
	var blocks uint32
	for i := range s.Count() {
		e, err := s.entry(h, i, blocks)
		if err != nil {
			return entries, fmt.Errorf("slot of key %d, record %d of %d: %w: %w", h.Key, i, s.Count(), ErrDamaged, err)
		}
		blocks += uint32(len(e.CRCs))
		entries = append(entries, e)
	}
	return entries, nil
}

func (s *Slot) entry(h layout.SlotHeader, i, from uint32) (Entry, error) {
	raw := s.mem[s.off.Records+layout.RecordSize*int64(i):][:layout.RecordSize]
	r, err := layout.DecodeRecord(raw)
	if err != nil {
		return Entry{}, err
	}
	var n uint32
	if r.Kind == layout.KindWrite {
		n = r.Blocks
	}
	if room := (s.off.CRCs - s.off.Data) / int64(s.blockSize); int64(from)+int64(n) > room || n > 0 && r.Index != from {
		return Entry{}, fmt.Errorf("data of %d blocks at index %d does not follow %d of %d blocks", n, r.Index, from, room)
	}
	table := s.mem[s.off.CRCs+4*int64(from):][:4*int64(n)]
	if want := binary.LittleEndian.Uint32(s.mem[s.off.RecordCRCs+4*int64(i):]); layout.RecordCRC(raw, table, h.Nonce, h.Key) != want {
		return Entry{}, errors.New("checksum of the record differs")
	}
	e := Entry{Record: r, Data: s.Data(from, n), CRCs: make([]uint32, n)}
	for b := range e.CRCs {
		e.CRCs[b] = binary.LittleEndian.Uint32(table[4*b:])
		if layout.CRC(e.Data[b*s.blockSize:(b+1)*s.blockSize]) != e.CRCs[b] {
			return Entry{}, fmt.Errorf("checksum of data block %d differs", b)
		}
	}
	return e, nil
}
