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
	Sum       uint32 // of the data blocks, see AddSum
}

// Frame is what one flush adds to the local log of one chunk: records, and
// behind them their data, as it lies in the chunk. The records are writes and
// zeros with consecutive sequence numbers; the data blocks of one write follow
// those of the write before.
type Frame struct {
	FrameHeader
	Records []Record
}

const (
	// LogHeaderSize is the size of an encoded LogHeader in bytes. Its fields lie
	// in one sector, which a disk writes as a whole.
	LogHeaderSize = 4096
	// FrameHeaderSize is the size of an encoded FrameHeader in bytes.
	FrameHeaderSize = 128
	// LogAlign is the alignment in bytes of frames: the kernel writes whole pages
	// without reading them first.
	LogAlign = pageSize

	logMagic   = "bs3-ring"
	logVersion = 2
	logUsed    = 56
	logCRC     = 512 - 4

	frameMagic   = "bs3-fram"
	frameVersion = 2
	frameRecCRC  = 88
	frameSum     = 92
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
func (h *FrameHeader) HeadSize() int64 { return FrameHeaderSize + RecordSize*int64(h.Records) }

// DataSize returns the size in bytes of the frame's data: stored blocks.
func (h *FrameHeader) DataSize() int64 { return int64(h.Blocks) * int64(Stride(int(h.BlockSize))) }

// Size returns the size in bytes of the whole frame in the ring.
func (h *FrameHeader) Size() int64 { return alignPage(h.HeadSize() + h.DataSize()) }

// NextSeq returns the sequence number after the frame's last record.
func (h *FrameHeader) NextSeq() uint64 { return h.FirstSeq + uint64(h.Records) }

// AppendFrame appends the HeadSize bytes of f that come before its data; the
// data follows in the ring, with zeros up to Size. The count of records is that
// of f.Records.
func AppendFrame(dst []byte, f *Frame) []byte {
	h := f.FrameHeader
	h.Records = uint32(len(f.Records))
	start := len(dst)
	dst = append(dst, make([]byte, FrameHeaderSize)...)
	for _, r := range f.Records {
		dst = AppendRecord(dst, r)
	}
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
	binary.LittleEndian.PutUint32(b[frameRecCRC:], CRC(b[FrameHeaderSize:]))
	binary.LittleEndian.PutUint32(b[frameSum:], h.Sum)
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
		Sum:       binary.LittleEndian.Uint32(b[frameSum:]),
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
	case !allZero(b[frameSum+4 : frameCRC]):
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
	if binary.LittleEndian.Uint32(b[frameRecCRC:]) != CRC(b[FrameHeaderSize:]) {
		return nil, damaged("checksum of the records")
	}
	f := &Frame{FrameHeader: h, Records: make([]Record, h.Records)}
	var first, blocks uint32
	b = b[FrameHeaderSize:]
	for i := range f.Records {
		r, err := DecodeRecord(b)
		b = b[RecordSize:]
		f.Records[i] = r
		if r.Kind == KindWrite && blocks == 0 {
			first = r.Index
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("record %d: %w", i, err)
		case r.Kind == KindMove || r.Seq != h.FirstSeq+uint64(i):
			return nil, damaged("record %d is a %v with sequence number %d", i, r.Kind, r.Seq)
		case r.Kind == KindWrite && (r.Index != first+blocks || r.Blocks > h.Blocks-blocks):
			return nil, damaged("record %d has %d data blocks at %d; %d come before it, of %d in all", i, r.Blocks, r.Index, blocks, h.Blocks)
		case r.Kind == KindWrite:
			blocks += r.Blocks
		}
	}
	if blocks != h.Blocks {
		return nil, damaged("%d data blocks, but %d in its records", h.Blocks, blocks)
	}
	return f, nil
}

// FirstIndex returns the index in the object of the frame's first data block; 0
// if it has none.
func (f *Frame) FirstIndex() uint32 {
	for i := range f.Records {
		if f.Records[i].Kind == KindWrite {
			return f.Records[i].Index
		}
	}
	return 0
}

// VerifyData checks the frame's data, which must have DataSize bytes, and
// returns the CRC of each block. Error: ErrDamaged.
func (f *Frame) VerifyData(data []byte) ([]uint32, error) {
	if int64(len(data)) != f.DataSize() {
		return nil, damaged("%d bytes of data in a frame of %d blocks", len(data), f.Blocks)
	}
	// The check values do not tell one writer's block from another's at the same
	// place; the sum, which the header vouches for, does.
	if AddSum(0, data, int(f.BlockSize)) != f.Sum {
		return nil, damaged("sum of the data blocks of a frame")
	}
	checks, stride, first := NewChecks(f.UUID, f.Key), Stride(int(f.BlockSize)), f.FirstIndex()
	crcs := make([]uint32, f.Blocks)
	for i := range crcs {
		var ok bool
		if crcs[i], ok = checks.Verify(first+uint32(i), data[i*stride:][:stride]); !ok {
			return nil, damaged("check value of data block %d of a frame", i)
		}
	}
	return crcs, nil
}
