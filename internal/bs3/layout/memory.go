package layout

import (
	"encoding/binary"
	"fmt"

	"bs3/internal/bs3/key"
)

// MemoryHeader is the header of the file of chunk memory. Slots slots of equal
// size follow it.
type MemoryHeader struct {
	UUID        UUID     // of the volume
	BootID      [16]byte // of the kernel that ran when the file was made
	BlockSize   uint32   // bytes, 512 or 4096
	ChunkBlocks uint32   // data blocks of a slot
	Slots       uint32
}

// SlotHeader identifies the chunk that lies in a slot.
type SlotHeader struct {
	Key      key.Key
	Nonce    Nonce // of the writer
	Epoch    uint64
	FirstSeq uint64 // of its first record
}

// SlotLayout holds where the parts of a slot are, in bytes from its start. The
// header page is at 0; every part starts on a page.
type SlotLayout struct {
	Data       int64 // stored blocks, see Stride
	Records    int64 // RecordSize bytes each
	RecordCRCs int64 // RecordCRC of each record, 4 bytes each
	Size       int64 // of the whole slot
}

const (
	// MemoryHeaderSize is the size of an encoded MemoryHeader in bytes.
	MemoryHeaderSize = 4096
	// SlotHeaderSize is the size of an encoded SlotHeader in bytes.
	SlotHeaderSize = 64
	// SlotCountOffset is the offset in a slot of its count of records (4 bytes)
	// and the count's complement (4). They are not in the header because they are
	// stored with every record, as the last step.
	SlotCountOffset = 2048
	// MaxSlots is the largest number of slots of a file.
	MaxSlots = 1 << 16

	memoryMagic   = "bs3-cmem"
	memoryVersion = 2
	memoryUsed    = 56
	memoryCRC     = MemoryHeaderSize - 4

	slotMagic   = "bs3-slot"
	slotVersion = 2
	slotUsed    = 56
	slotCRC     = SlotHeaderSize - 4
)

// SlotOffsets returns the layout of a slot of chunkBlocks blocks of blockSize
// bytes.
func SlotOffsets(chunkBlocks, blockSize int) SlotLayout {
	var s SlotLayout
	records := int64(MaxRecords(chunkBlocks))
	s.Data = pageSize
	s.Records = alignPage(s.Data + int64(chunkBlocks)*int64(Stride(blockSize)))
	s.RecordCRCs = alignPage(s.Records + RecordSize*records)
	s.Size = alignPage(s.RecordCRCs + 4*records)
	return s
}

// FileSize returns the size in bytes of a file with the header h.
func (h *MemoryHeader) FileSize() int64 {
	return MemoryHeaderSize + int64(h.Slots)*SlotOffsets(int(h.ChunkBlocks), int(h.BlockSize)).Size
}

// AppendMemoryHeader appends h in MemoryHeaderSize bytes.
func AppendMemoryHeader(dst []byte, h *MemoryHeader) []byte {
	start := len(dst)
	dst = append(dst, memoryMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, memoryVersion)
	dst = append(dst, h.UUID[:]...)
	dst = append(dst, h.BootID[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, h.BlockSize)
	dst = binary.LittleEndian.AppendUint32(dst, h.ChunkBlocks)
	dst = binary.LittleEndian.AppendUint32(dst, h.Slots)
	dst = append(dst, make([]byte, start+memoryCRC-len(dst))...)
	return binary.LittleEndian.AppendUint32(dst, CRC(dst[start:]))
}

// DecodeMemoryHeader decodes the header of a file of chunk memory. Errors:
// ErrMagic, ErrVersion, ErrDamaged.
func DecodeMemoryHeader(b []byte) (*MemoryHeader, error) {
	const what = "chunk memory"
	b, err := checkHead(what, b, MemoryHeaderSize, memoryCRC, memoryMagic, memoryVersion)
	if err != nil {
		return nil, err
	}
	h := &MemoryHeader{
		UUID:        UUID(b[12:]),
		BootID:      [16]byte(b[28:]),
		BlockSize:   binary.LittleEndian.Uint32(b[44:]),
		ChunkBlocks: binary.LittleEndian.Uint32(b[48:]),
		Slots:       binary.LittleEndian.Uint32(b[52:]),
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !allZero(b[memoryUsed:memoryCRC]) {
		return nil, fmt.Errorf("%s: %w", what, damaged("reserved bytes in use"))
	}
	return h, nil
}

func (h *MemoryHeader) check() error {
	if err := checkBlockSize(h.BlockSize); err != nil {
		return err
	}
	if h.ChunkBlocks == 0 || h.ChunkBlocks > MaxObjectBlocks {
		return damaged("%d blocks per chunk, not 1 to %d", h.ChunkBlocks, MaxObjectBlocks)
	}
	if h.Slots == 0 || h.Slots > MaxSlots {
		return damaged("%d slots, not 1 to %d", h.Slots, MaxSlots)
	}
	return nil
}

// EncodeSlotHeader writes h into the first SlotHeaderSize bytes of dst, the
// header page of a slot. It does not touch the count.
func EncodeSlotHeader(dst []byte, h SlotHeader) {
	dst = dst[:SlotHeaderSize]
	copy(dst, slotMagic)
	binary.LittleEndian.PutUint32(dst[8:], slotVersion)
	binary.LittleEndian.PutUint32(dst[12:], 0)
	binary.LittleEndian.PutUint64(dst[16:], uint64(h.Key))
	binary.LittleEndian.PutUint64(dst[24:], h.Epoch)
	binary.LittleEndian.PutUint64(dst[32:], h.FirstSeq)
	copy(dst[40:], h.Nonce[:])
	binary.LittleEndian.PutUint32(dst[slotUsed:], 0)
	binary.LittleEndian.PutUint32(dst[slotCRC:], CRC(dst[:slotCRC]))
}

// DecodeSlotHeader decodes the header of a slot from the start of its header
// page. A slot that was never used has zeros there, which is ErrMagic. Errors:
// ErrMagic, ErrVersion, ErrDamaged.
func DecodeSlotHeader(b []byte) (SlotHeader, error) {
	const what = "slot of chunk memory"
	b, err := checkHead(what, b, SlotHeaderSize, slotCRC, slotMagic, slotVersion)
	if err != nil {
		return SlotHeader{}, err
	}
	h := SlotHeader{
		Key:      key.Key(binary.LittleEndian.Uint64(b[16:])),
		Epoch:    binary.LittleEndian.Uint64(b[24:]),
		FirstSeq: binary.LittleEndian.Uint64(b[32:]),
		Nonce:    Nonce(b[40:]),
	}
	if h.Key > key.Max {
		return SlotHeader{}, fmt.Errorf("%s: %w", what, damaged("key %d is above %d", h.Key, key.Max))
	}
	if !allZero(b[12:16]) || !allZero(b[slotUsed:slotCRC]) {
		return SlotHeader{}, fmt.Errorf("%s: %w", what, damaged("reserved bytes in use"))
	}
	return h, nil
}

// PutSlotCount stores the number of records of a slot, and its complement, into
// its header page, in one step of the processor. The writer calls it after
// everything that it counts is in place.
func PutSlotCount(page []byte, n uint32) {
	binary.LittleEndian.PutUint64(page[SlotCountOffset:], uint64(^n)<<32|uint64(n))
}

// SlotCount reads the number of records of a slot from its header page; false if
// its complement does not agree, as in a slot that was never used. The caller
// bounds the number by MaxRecords and trusts only records that verify.
func SlotCount(page []byte) (n uint32, ok bool) {
	both := binary.LittleEndian.Uint64(page[SlotCountOffset:])
	n = uint32(both)
	return n, uint32(both>>32) == ^n
}
