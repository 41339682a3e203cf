package layout

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"bs3/internal/bs3/key"
)

// A leaf holds the locations of LeafBlocks neighbouring blocks. Its first byte
// names the encoding of the rest.
const (
	leafRuns   = 1 // runs of varints
	leafPacked = 2 // 4 bytes an entry, relative to a base key
	leafRaw    = 3 // 8 bytes an entry
)

const (
	// LeafBlocks is the number of entries of a leaf of the map.
	LeafBlocks = 4096
	// MaxLeafSize is the size in bytes of the largest encoded leaf.
	MaxLeafSize = 1 + 8*LeafBlocks

	packedHead = 1 + 1 + 8 // encoding, bits of the index, base key
	packedSize = packedHead + 4*LeafBlocks
)

// runSize is what a run takes in a leaf of runs, in bytes, about.
const runSize = 5

// Runs returns about how many runs of blocks the leaf has, from what it takes: its
// neighbours in the volume lie beside each other in one object, too, or are not
// mapped.
func (l LeafRef) Runs() int { return int(min(LeafBlocks, max(1, l.Length/runSize))) }

// AppendLeaf appends entries, which must be LeafBlocks many (those beyond the
// end of the volume unmapped), in the smallest of the three encodings; of two
// that are equally small, in runs. Equal entries make equal bytes. AppendLeaf
// does not allocate if dst has MaxLeafSize bytes of room.
func AppendLeaf(dst []byte, entries []Location) []byte {
	_ = entries[LeafBlocks-1]
	entries = entries[:LeafBlocks]
	base, width, fits := packing(entries)
	limit := MaxLeafSize
	if fits {
		limit = packedSize
	}
	if runsFit(entries, limit) {
		return appendRuns(dst, entries)
	}
	if fits {
		return appendPacked(dst, entries, base, width)
	}
	dst = append(dst, leafRaw)
	for _, l := range entries {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(l))
	}
	return dst
}

// packing finds the base key and the width of the index with which every entry
// fits in 32 bits, if there are any.
func packing(entries []Location) (base key.Key, width int, fits bool) {
	low, high, indexes := ^Location(0), Location(0), Location(0)
	for _, l := range entries {
		if l.Mapped() {
			low, high = min(low, l), max(high, l)
			indexes |= l
		}
	}
	if high == 0 {
		return 0, 0, true
	}
	width = bits.Len32(indexes.Index())
	return low.Key(), width, uint64(high.Key()-low.Key())+1 < 1<<(32-width)
}

// runLength returns the number of entries from i that are all unmapped, or that
// follow each other in one object.
func runLength(entries []Location, i int) int {
	first := entries[i]
	n := 1
	if !first.Mapped() {
		for i+n < len(entries) && !entries[i+n].Mapped() {
			n++
		}
		return n
	}
	room := min(len(entries)-i, MaxObjectBlocks-int(first.Index()))
	for n < room && entries[i+n] == first+Location(n) {
		n++
	}
	return n
}

// runsFit reports whether appendRuns appends at most limit bytes. It only counts,
// and stops early, so that a scattered leaf is not encoded twice.
func runsFit(entries []Location, limit int) bool {
	size := 1
	var last key.Key
	for i := 0; i < len(entries) && size <= limit; {
		n := runLength(entries, i)
		size += uvarintSize(uint64(n) << 1)
		if l := entries[i]; l.Mapped() {
			delta := int64(l.Key()) - int64(last)
			size += uvarintSize(uint64(delta<<1^delta>>63)) + uvarintSize(uint64(l.Index()))
			last = l.Key()
		}
		i += n
	}
	return size <= limit
}

// uvarintSize returns the size in bytes of the varint of x: one for each 7 bits.
func uvarintSize(x uint64) int { return (bits.Len64(x|1)*9 + 64) / 64 }

func appendRuns(dst []byte, entries []Location) []byte {
	dst = append(dst, leafRuns)
	var last key.Key
	for i := 0; i < len(entries); {
		n := runLength(entries, i)
		if l := entries[i]; l.Mapped() {
			dst = binary.AppendUvarint(dst, uint64(n)<<1|1)
			dst = binary.AppendVarint(dst, int64(l.Key())-int64(last))
			dst = binary.AppendUvarint(dst, uint64(l.Index()))
			last = l.Key()
		} else {
			dst = binary.AppendUvarint(dst, uint64(n)<<1)
		}
		i += n
	}
	return dst
}

func appendPacked(dst []byte, entries []Location, base key.Key, width int) []byte {
	dst = append(dst, leafPacked, byte(width))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(base))
	for _, l := range entries {
		var v uint32
		if l.Mapped() {
			v = uint32(l.Key()-base+1)<<width | l.Index()
		}
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	return dst
}

// DecodeLeaf decodes a leaf, which is all of b, into entries, which must be
// LeafBlocks many and are undefined after an error. It cannot check the leaf's
// checksum, which is in its LeafRef (LeafRef.Verify). Error: ErrDamaged.
func DecodeLeaf(b []byte, entries []Location) error {
	if len(entries) != LeafBlocks {
		return fmt.Errorf("leaf: %w", damaged("decoded into %d entries, not %d", len(entries), LeafBlocks))
	}
	if len(b) == 0 {
		return fmt.Errorf("leaf: %w", damaged("empty"))
	}
	var err error
	switch b[0] {
	case leafRuns:
		err = decodeRuns(b[1:], entries)
	case leafPacked:
		err = decodePacked(b, entries)
	case leafRaw:
		err = decodeRaw(b, entries)
	default:
		err = damaged("unknown encoding %d", b[0])
	}
	if err != nil {
		return fmt.Errorf("leaf: %w", err)
	}
	return nil
}

func decodeRuns(b []byte, entries []Location) error {
	var last int64
	for i := 0; i < len(entries); {
		head, size := binary.Uvarint(b)
		n := head >> 1
		if size <= 0 || n == 0 || n > uint64(len(entries)-i) {
			return damaged("run at entry %d: length", i)
		}
		b = b[size:]
		run := entries[i : i+int(n)]
		i += int(n)
		if head&1 == 0 {
			clear(run)
			continue
		}
		delta, size := binary.Varint(b)
		if size <= 0 {
			return damaged("run at entry %d: key", i-len(run))
		}
		b = b[size:]
		last += delta // if it wraps, the next check finds it
		if last < 0 || key.Key(last) > key.Max {
			return damaged("run at entry %d: key %d", i-len(run), last)
		}
		index, size := binary.Uvarint(b)
		if size <= 0 || index > MaxIndex || index+n > MaxObjectBlocks {
			return damaged("run at entry %d: %d blocks from index %d on", i-len(run), n, index)
		}
		b = b[size:]
		first := Loc(key.Key(last), uint32(index))
		for j := range run {
			run[j] = first + Location(j)
		}
	}
	if len(b) != 0 {
		return damaged("%d bytes after the last run", len(b))
	}
	return nil
}

func decodePacked(b []byte, entries []Location) error {
	if len(b) != packedSize {
		return damaged("packed in %d bytes, not %d", len(b), packedSize)
	}
	width, base := b[1], binary.LittleEndian.Uint64(b[2:])
	if width > indexBits || base > uint64(key.Max) {
		return damaged("packed with %d bits of index from key %d on", width, base)
	}
	mask := uint32(1)<<width - 1
	b = b[packedHead:]
	for i := range entries {
		v := binary.LittleEndian.Uint32(b[4*i:])
		if v == 0 {
			entries[i] = 0
			continue
		}
		above := uint64(v >> width)
		if above == 0 || base+above-1 > uint64(key.Max) {
			return damaged("packed entry %d is %#x", i, v)
		}
		entries[i] = Location((base+above)<<indexBits | uint64(v&mask))
	}
	return nil
}

func decodeRaw(b []byte, entries []Location) error {
	if len(b) != MaxLeafSize {
		return damaged("raw in %d bytes, not %d", len(b), MaxLeafSize)
	}
	b = b[1:]
	for i := range entries {
		entries[i] = Location(binary.LittleEndian.Uint64(b[8*i:]))
		if !entries[i].valid() {
			return damaged("raw entry %d is %#x", i, uint64(entries[i]))
		}
	}
	return nil
}
