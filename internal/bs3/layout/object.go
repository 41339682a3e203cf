package layout

import (
	"encoding/binary"
	"fmt"
	"math"

	"bs3/internal/bs3/key"
)

// Footer is the fixed part at the end of an object: whose it is and what it
// holds.
type Footer struct {
	UUID      UUID    // of the volume
	Nonce     Nonce   // of the writer
	Key       key.Key // of this object
	Epoch     uint64  // of the writer
	FirstSeq  uint64  // of the first record that has a sequence number; if none has, the next to come
	BlockSize uint32  // bytes, 512 or 4096
	Blocks    uint32  // data blocks
	Records   uint32
	Sum       uint32 // of the data blocks, see AddSum
	Fence     bool   // whether it is the first object of its epoch, which is always empty
}

// Object is everything in an object but its data.
type Object struct {
	Footer
	Records []Record
}

const (
	// FooterSize is the size of an encoded Footer in bytes.
	FooterSize = 128

	objectMagic   = "bs3-objt"
	objectVersion = 2
	flagFence     = 1 << 0
)

// Offsets in a footer. Version and magic come last, at the same distance from
// the end of an object in every version.
const (
	footUUID      = 0
	footNonce     = 16
	footKey       = 32
	footEpoch     = 40
	footFirstSeq  = 48
	footBlockSize = 56
	footBlocks    = 60
	footRecords   = 64
	footFlags     = 68
	footSum       = 72
	footRecCRC    = 76
	footEncoding  = 80
	footReserved  = 81
	footCRC       = 112
	footVersion   = 116
	footMagic     = 120
)

// encodingPlain: the data is stored blocks, one behind the other.
const encodingPlain = 0

// TailSize returns the size in bytes of the tail of an object, which is all that
// follows its data.
func TailSize(records int) int { return RecordSize*records + FooterSize }

// DataSize returns the size in bytes of what lies before the tail.
func (f *Footer) DataSize() int64 { return int64(f.Blocks) * int64(Stride(int(f.BlockSize))) }

// MaxTailSize returns the largest TailSize of an object whose chunk holds
// chunkBlocks data blocks: a read of that many last bytes gets the whole tail.
func MaxTailSize(chunkBlocks int) int { return TailSize(MaxRecords(chunkBlocks)) }

// AppendTail appends the tail of o: records, then the footer, whose count of
// records is that of o.Records. It does not allocate if dst has TailSize bytes of
// room.
func AppendTail(dst []byte, o *Object) []byte {
	records := len(dst)
	for i := range o.Records {
		dst = AppendRecord(dst, o.Records[i])
	}
	foot := len(dst)
	var flags uint32
	if o.Fence {
		flags |= flagFence
	}
	dst = append(dst, o.UUID[:]...)
	dst = append(dst, o.Nonce[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(o.Key))
	dst = binary.LittleEndian.AppendUint64(dst, o.Epoch)
	dst = binary.LittleEndian.AppendUint64(dst, o.FirstSeq)
	dst = binary.LittleEndian.AppendUint32(dst, o.BlockSize)
	dst = binary.LittleEndian.AppendUint32(dst, o.Blocks)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(o.Records)))
	dst = binary.LittleEndian.AppendUint32(dst, flags)
	dst = binary.LittleEndian.AppendUint32(dst, o.Sum)
	dst = binary.LittleEndian.AppendUint32(dst, CRC(dst[records:foot]))
	var reserved [footCRC - footEncoding]byte
	dst = append(dst, reserved[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, CRC(dst[foot:]))
	dst = binary.LittleEndian.AppendUint32(dst, objectVersion)
	return append(dst, objectMagic...)
}

// DecodeTail decodes the tail of an object of size bytes from its last len(tail)
// bytes, which may reach into the data. It checks magic, version, checksums,
// every record, and that data and tail fill the object exactly. It keeps nothing
// of tail and allocates no more than a small multiple of its length. Errors:
// ErrMagic, ErrVersion, ErrDamaged, ErrShortTail (*ShortTailError).
func DecodeTail(tail []byte, size int64) (*Object, error) {
	if size < FooterSize {
		return nil, fmt.Errorf("object: %w: %d bytes, less than a footer", ErrMagic, size)
	}
	if int64(len(tail)) > size {
		return nil, fmt.Errorf("object: %w", damaged("%d bytes as the tail of %d", len(tail), size))
	}
	if len(tail) < FooterSize {
		return nil, &ShortTailError{Need: FooterSize, Have: len(tail)}
	}
	foot := tail[len(tail)-FooterSize:]
	f, err := decodeFooter(foot)
	if err != nil {
		return nil, err
	}
	o := &Object{Footer: f}
	need := TailSize(int(f.Records))
	if want := f.DataSize() + int64(need); want != size {
		return nil, o.damaged("%d bytes, but %d blocks of %d bytes and %d records take %d",
			size, f.Blocks, f.BlockSize, f.Records, want)
	}
	if len(tail) < need {
		return nil, &ShortTailError{Need: need, Have: len(tail)}
	}
	records := tail[len(tail)-need : len(tail)-FooterSize]
	if CRC(records) != binary.LittleEndian.Uint32(foot[footRecCRC:]) {
		return nil, o.damaged("checksum of the records")
	}
	if err := o.decodeRecords(records); err != nil {
		return nil, err
	}
	return o, nil
}

func decodeFooter(b []byte) (Footer, error) {
	if err := checkMark("object", objectMagic, b[footMagic:], b[footVersion:], objectVersion); err != nil {
		return Footer{}, err
	}
	if binary.LittleEndian.Uint32(b[footCRC:]) != CRC(b[:footCRC]) {
		return Footer{}, fmt.Errorf("object: %w", damaged("checksum of the footer"))
	}
	f := Footer{
		UUID:      UUID(b[footUUID:]),
		Nonce:     Nonce(b[footNonce:]),
		Key:       key.Key(binary.LittleEndian.Uint64(b[footKey:])),
		Epoch:     binary.LittleEndian.Uint64(b[footEpoch:]),
		FirstSeq:  binary.LittleEndian.Uint64(b[footFirstSeq:]),
		BlockSize: binary.LittleEndian.Uint32(b[footBlockSize:]),
		Blocks:    binary.LittleEndian.Uint32(b[footBlocks:]),
		Records:   binary.LittleEndian.Uint32(b[footRecords:]),
		Sum:       binary.LittleEndian.Uint32(b[footSum:]),
	}
	if e := b[footEncoding]; e != encodingPlain {
		return Footer{}, fmt.Errorf("object %d: %w: encoding %d of its data", f.Key, ErrVersion, e)
	}
	flags := binary.LittleEndian.Uint32(b[footFlags:])
	f.Fence = flags&flagFence != 0
	if err := f.check(); err != nil {
		return Footer{}, fmt.Errorf("object %d: %w", f.Key, err)
	}
	if flags&^flagFence != 0 || !allZero(b[footReserved:footCRC]) {
		return Footer{}, fmt.Errorf("object %d: %w", f.Key, damaged("unknown flags (%#x) or reserved bytes in use", flags))
	}
	return f, nil
}

func (f *Footer) check() error {
	if f.Key > key.Max {
		return damaged("key is above %d", key.Max)
	}
	if err := checkBlockSize(f.BlockSize); err != nil {
		return err
	}
	if f.Blocks > MaxObjectBlocks {
		return damaged("%d data blocks, more than %d", f.Blocks, MaxObjectBlocks)
	}
	if f.Records > uint32(MaxRecords(MaxObjectBlocks)) {
		return damaged("%d records, more than %d", f.Records, MaxRecords(MaxObjectBlocks))
	}
	if f.Blocks == 0 && f.Sum != 0 {
		return damaged("sum %08x of no data blocks", f.Sum)
	}
	if f.Fence && (f.Blocks != 0 || f.Records != 0) {
		return damaged("fence with %d data blocks and %d records", f.Blocks, f.Records)
	}
	return nil
}

func (o *Object) decodeRecords(b []byte) error {
	o.Records = make([]Record, o.Footer.Records)
	next := o.FirstSeq
	for i := range o.Records {
		r := &o.Records[i]
		r.decode(b[RecordSize*i:])
		if err := r.check(); err != nil {
			return fmt.Errorf("object %d: record %d: %w", o.Key, i, err)
		}
		if r.Kind != KindZero && uint64(r.Index)+uint64(r.Blocks) > uint64(o.Blocks) {
			return o.damaged("record %d: data blocks %d+%d of %d", i, r.Index, r.Blocks, o.Blocks)
		}
		if r.Kind == KindMove {
			if r.Source.Key() >= o.Key {
				return o.damaged("record %d: moves from object %d", i, r.Source.Key())
			}
		} else {
			if r.Seq != next || next == math.MaxUint64 {
				return o.damaged("record %d: sequence number %d where %d is next", i, r.Seq, next)
			}
			next++
		}
	}
	return nil
}

func (o *Object) damaged(format string, args ...any) error {
	return fmt.Errorf("object %d: %w", o.Key, damaged(format, args...))
}

// NextSeq returns the sequence number that follows the object's records.
func (o *Object) NextSeq() uint64 {
	next := o.FirstSeq
	for i := range o.Records {
		if o.Records[i].Kind != KindMove {
			next++
		}
	}
	return next
}
