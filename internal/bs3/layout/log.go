package layout

import (
	"encoding/binary"
	"fmt"

	"bs3/internal/bs3/key"
)

// LogHeader is the header of the file of the local log: a ring of frames.
type LogHeader struct {
	UUID      UUID   // of the volume
	Nonce     Nonce  // of the writer whose frames count; zero: nothing in the ring is needed
	BlockSize uint32 // bytes, 512 or 4096
	Size      int64  // of the ring, which begins at LogHeaderSize, in bytes; a multiple of LogAlign
}

// FrameHeader is the fixed part of a frame.
type FrameHeader struct {
	UUID      UUID
	Nonce     Nonce
	Position  int64   // bytes of the ring handed out before the frame, over all rounds
	Key       key.Key // of the chunk
	FirstSeq  uint64  // of its first record
	Synced    uint64  // all records with lower sequence numbers were synced in the log, or stored, before the frame was
	BlockSize uint32
	Blocks    uint32 // of data
	Records   uint32 // at least one
}

// Frame is what one flush adds to the local log of one chunk: records, and
// behind them their data. The records are writes and zeros with consecutive
// sequence numbers; their indexes count the data blocks of the frame.
type Frame struct {
	FrameHeader
	CRCs    []uint32 // of the data blocks
	Records []Record
}

const (
	// LogHeaderSize is the size of an encoded LogHeader in bytes. Its fields lie
	// in one sector, which a disk writes as a whole.
	LogHeaderSize = 4096
	// FrameHeaderSize is the size of an encoded FrameHeader in bytes.
	FrameHeaderSize = 128
	// LogAlign is the alignment in bytes of frames, and of the data within them:
	// the kernel writes whole pages without reading them first.
	LogAlign = pageSize

	logMagic   = "bs3-ring"
	logVersion = 1
	logUsed    = 56
	logCRC     = 512 - 4

	frameMagic   = "bs3-fram"
	frameVersion = 1
	frameBodyCRC = 88
	frameCRC     = FrameHeaderSize - 4
)

// AppendLogHeader appends h in LogHeaderSize bytes.
func AppendLogHeader(dst []byte, h *LogHeader) []byte {
	start := len(dst)
	dst = append(dst, logMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, logVersion)
	dst = append(dst, h.UUID[:]...)
	dst = append(dst, h.Nonce[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, h.BlockSize)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.Size))
	dst = append(dst, make([]byte, start+logCRC-len(dst))...)
	dst = binary.LittleEndian.AppendUint32(dst, CRC(dst[start:]))
	return append(dst, make([]byte, start+LogHeaderSize-len(dst))...)
}

// DecodeLogHeader decodes the header of the file of a local log. Errors:
// ErrMagic, ErrVersion, ErrDamaged.
func DecodeLogHeader(b []byte) (*LogHeader, error) {
	const what = "local log"
	b, err := checkHead(what, b, LogHeaderSize, logCRC, logMagic, logVersion)
	if err != nil {
		return nil, err
	}
	h := &LogHeader{
		UUID:      UUID(b[12:]),
		Nonce:     Nonce(b[28:]),
		BlockSize: binary.LittleEndian.Uint32(b[44:]),
		Size:      int64(binary.LittleEndian.Uint64(b[48:])),
	}
	if err := checkBlockSize(h.BlockSize); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if h.Size <= 0 || h.Size%LogAlign != 0 {
		return nil, fmt.Errorf("%s: %w", what, damaged("ring of %d bytes", h.Size))
	}
	if !allZero(b[logUsed:logCRC]) || !allZero(b[logCRC+4:]) {
		return nil, fmt.Errorf("%s: %w", what, damaged("reserved bytes in use"))
	}
	return h, nil
}

// HeadSize returns the size in bytes of what lies before the frame's data.
func (h *FrameHeader) HeadSize() int64 {
	return alignPage(FrameHeaderSize + RecordSize*int64(h.Records) + 4*int64(h.Blocks))
}

// DataSize returns the size in bytes of the frame's data, without padding.
func (h *FrameHeader) DataSize() int64 { return int64(h.Blocks) * int64(h.BlockSize) }

// Size returns the size in bytes of the whole frame in the ring.
func (h *FrameHeader) Size() int64 { return h.HeadSize() + alignPage(h.DataSize()) }

// NextSeq returns the sequence number after the frame's last record.
func (h *FrameHeader) NextSeq() uint64 { return h.FirstSeq + uint64(h.Records) }

// AppendFrame appends the HeadSize bytes of f that come before its data; the
// data follows in the ring, with zeros up to Size. The counts in the header need
// not be set, and the indexes of the records are encoded so that they count the
// frame's data blocks.
func AppendFrame(dst []byte, f *Frame) []byte {
	h := f.FrameHeader
	h.Blocks, h.Records = uint32(len(f.CRCs)), uint32(len(f.Records))
	start, end := len(dst), len(dst)+int(h.HeadSize())
	dst = append(dst, make([]byte, FrameHeaderSize)...)
	index := uint32(0)
	for _, r := range f.Records {
		if r.Kind == KindWrite {
			r.Index = index
			index += r.Blocks
		}
		dst = AppendRecord(dst, r)
	}
	for _, c := range f.CRCs {
		dst = binary.LittleEndian.AppendUint32(dst, c)
	}
	dst = append(dst, make([]byte, end-len(dst))...)
	b := dst[start:]
	copy(b, frameMagic)
	binary.LittleEndian.PutUint32(b[8:], frameVersion)
	copy(b[12:], h.UUID[:])
	copy(b[28:], h.Nonce[:])
	binary.LittleEndian.PutUint64(b[44:], uint64(h.Position))
	binary.LittleEndian.PutUint64(b[52:], uint64(h.Key))
	binary.LittleEndian.PutUint64(b[60:], h.FirstSeq)
	binary.LittleEndian.PutUint64(b[68:], h.Synced)
	binary.LittleEndian.PutUint32(b[76:], h.BlockSize)
	binary.LittleEndian.PutUint32(b[80:], h.Blocks)
	binary.LittleEndian.PutUint32(b[84:], h.Records)
	binary.LittleEndian.PutUint32(b[frameBodyCRC:], CRC(b[FrameHeaderSize:]))
	binary.LittleEndian.PutUint32(b[frameCRC:], CRC(b[:frameCRC]))
	return dst
}

// DecodeFrameHeader decodes the fixed part of a frame. Errors: ErrMagic,
// ErrVersion, ErrDamaged.
func DecodeFrameHeader(b []byte) (FrameHeader, error) {
	h, err := decodeFrameHeader(b)
	if err != nil {
		return FrameHeader{}, fmt.Errorf("frame of the local log: %w", err)
	}
	return h, nil
}

func decodeFrameHeader(b []byte) (h FrameHeader, err error) {
	if b, err = checkHead("header", b, FrameHeaderSize, frameCRC, frameMagic, frameVersion); err != nil {
		return h, err
	}
	h = FrameHeader{
		UUID:      UUID(b[12:]),
		Nonce:     Nonce(b[28:]),
		Position:  int64(binary.LittleEndian.Uint64(b[44:])),
		Key:       key.Key(binary.LittleEndian.Uint64(b[52:])),
		FirstSeq:  binary.LittleEndian.Uint64(b[60:]),
		Synced:    binary.LittleEndian.Uint64(b[68:]),
		BlockSize: binary.LittleEndian.Uint32(b[76:]),
		Blocks:    binary.LittleEndian.Uint32(b[80:]),
		Records:   binary.LittleEndian.Uint32(b[84:]),
	}
	if err := checkBlockSize(h.BlockSize); err != nil {
		return h, err
	}
	switch {
	case h.Key > key.Max:
		return h, damaged("key %d is above %d", h.Key, key.Max)
	case h.Position < 0 || h.Position%LogAlign != 0:
		return h, damaged("position %d", h.Position)
	case h.Blocks > MaxObjectBlocks || h.Records == 0 || h.Records > uint32(MaxRecords(MaxObjectBlocks)):
		return h, damaged("%d records and %d blocks", h.Records, h.Blocks)
	case h.NextSeq() < h.FirstSeq:
		return h, damaged("%d records from sequence number %d on", h.Records, h.FirstSeq)
	case !allZero(b[frameBodyCRC+4 : frameCRC]):
		return h, damaged("reserved bytes in use")
	}
	return h, nil
}

// DecodeFrame decodes a frame from its first HeadSize bytes or more. It does not
// look at the data behind them; VerifyData does. Errors: ErrMagic, ErrVersion,
// ErrDamaged.
func DecodeFrame(b []byte) (*Frame, error) {
	f, err := decodeFrame(b)
	if err != nil {
		return nil, fmt.Errorf("frame of the local log: %w", err)
	}
	return f, nil
}

func decodeFrame(b []byte) (*Frame, error) {
	h, err := decodeFrameHeader(b)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < h.HeadSize() {
		return nil, damaged("%d bytes, not %d", len(b), h.HeadSize())
	}
	b = b[:h.HeadSize()]
	if binary.LittleEndian.Uint32(b[frameBodyCRC:]) != CRC(b[FrameHeaderSize:]) {
		return nil, damaged("checksum of the records")
	}
	f := &Frame{FrameHeader: h, CRCs: make([]uint32, h.Blocks), Records: make([]Record, h.Records)}
	index := uint32(0)
	b = b[FrameHeaderSize:]
	for i := range f.Records {
		r, err := DecodeRecord(b)
		b = b[RecordSize:]
		switch {
		case err != nil:
			return nil, fmt.Errorf("record %d: %w", i, err)
		case r.Kind == KindMove || r.Seq != h.FirstSeq+uint64(i):
			return nil, damaged("record %d is a %v with sequence number %d", i, r.Kind, r.Seq)
		case r.Kind == KindWrite && (r.Index != index || r.Blocks > h.Blocks-index):
			return nil, damaged("record %d has %d data blocks at %d; %d come before it, of %d in all", i, r.Blocks, r.Index, index, h.Blocks)
		case r.Kind == KindWrite:
			index += r.Blocks
		}
		f.Records[i] = r
	}
	if index != h.Blocks {
		return nil, damaged("%d data blocks, but %d in its records", h.Blocks, index)
	}
	for i := range f.CRCs {
		f.CRCs[i] = binary.LittleEndian.Uint32(b)
		b = b[4:]
	}
	if !allZero(b) {
		return nil, damaged("reserved bytes in use")
	}
	return f, nil
}

// VerifyData checks the frame's data, which must have DataSize bytes, against
// its checksums. Error: ErrDamaged.
func (f *Frame) VerifyData(data []byte) error {
	bs := int(f.BlockSize)
	if len(data) != len(f.CRCs)*bs {
		return damaged("%d bytes of data in a frame of %d blocks", len(data), len(f.CRCs))
	}
	for i, want := range f.CRCs {
		if CRC(data[i*bs:][:bs]) != want {
			return damaged("checksum of data block %d of a frame", i)
		}
	}
	return nil
}
