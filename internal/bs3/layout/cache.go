package layout

import (
	"encoding/binary"
	"fmt"
)

// CacheHeader is the header of the file of the disk cache: sets of blocks.
type CacheHeader struct {
	UUID      UUID   // of the volume
	BlockSize uint32 // bytes, 512 or 4096
	Sets      uint64
}

// CacheEntry identifies the block that lies in a place of a set.
type CacheEntry struct {
	Loc   Location // 0: none
	Block uint64   // of the volume, which lay there when it was written
	Epoch uint32   // the low 32 bits of the object's epoch
	Check uint32   // the check value of the block, see Checks
}

// CacheSet is the table of one set.
type CacheSet struct {
	Hand    uint32 // the place to be filled next
	Entries [CacheSetBlocks]CacheEntry
}

const (
	// CacheHeaderSize is the size of an encoded CacheHeader in bytes.
	CacheHeaderSize = 4096
	// CacheSetSize is the size of an encoded CacheSet in bytes; the blocks follow.
	CacheSetSize = 8192
	// CacheSetBlocks is the number of blocks of a set.
	CacheSetBlocks = 340
	// MaxCacheSets is the most sets of a file.
	MaxCacheSets = 1 << 32

	cacheMagic   = "bs3-cach"
	cacheVersion = 3
	cacheUsed    = 40
	cacheCRC     = CacheHeaderSize - 4

	cacheEntrySize = 24
	cacheSetUsed   = CacheSetBlocks*cacheEntrySize + 4
	cacheSetCRC    = CacheSetSize - 4
)

// SetSize returns the size in bytes of a set: its table and its blocks.
func (h *CacheHeader) SetSize() int64 {
	return CacheSetSize + CacheSetBlocks*int64(h.BlockSize)
}

// FileSize returns the size in bytes of a file with the header h.
func (h *CacheHeader) FileSize() int64 { return CacheHeaderSize + int64(h.Sets)*h.SetSize() }

// AppendCacheHeader appends h in CacheHeaderSize bytes.
func AppendCacheHeader(dst []byte, h *CacheHeader) []byte {
	start := len(dst)
	dst = append(dst, cacheMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, cacheVersion)
	dst = append(dst, h.UUID[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, h.BlockSize)
	dst = binary.LittleEndian.AppendUint64(dst, h.Sets)
	dst = append(dst, make([]byte, start+cacheCRC-len(dst))...)
	return binary.LittleEndian.AppendUint32(dst, CRC(dst[start:]))
}

// DecodeCacheHeader decodes the header of the file of a disk cache. Errors:
// ErrMagic, ErrVersion, ErrDamaged.
func DecodeCacheHeader(b []byte) (*CacheHeader, error) {
	const what = "disk cache"
	b, err := checkHead(what, b, CacheHeaderSize, cacheCRC, cacheMagic, cacheVersion)
	if err != nil {
		return nil, err
	}
	h := &CacheHeader{
		UUID:      UUID(b[12:]),
		BlockSize: binary.LittleEndian.Uint32(b[28:]),
		Sets:      binary.LittleEndian.Uint64(b[32:]),
	}
	if err := checkBlockSize(h.BlockSize); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if h.Sets == 0 || h.Sets > MaxCacheSets {
		return nil, fmt.Errorf("%s: %w", what, damaged("%d sets", h.Sets))
	}
	if !allZero(b[cacheUsed:cacheCRC]) {
		return nil, fmt.Errorf("%s: %w", what, damaged("reserved bytes in use"))
	}
	return h, nil
}

// Encode writes the table into the first CacheSetSize bytes of dst.
func (s *CacheSet) Encode(dst []byte) {
	dst = dst[:CacheSetSize]
	for i, e := range s.Entries {
		b := dst[i*cacheEntrySize:]
		binary.LittleEndian.PutUint64(b, uint64(e.Loc))
		binary.LittleEndian.PutUint64(b[8:], e.Block)
		binary.LittleEndian.PutUint32(b[16:], e.Epoch)
		binary.LittleEndian.PutUint32(b[20:], e.Check)
	}
	binary.LittleEndian.PutUint32(dst[cacheSetUsed-4:], s.Hand)
	clear(dst[cacheSetUsed:cacheSetCRC])
	binary.LittleEndian.PutUint32(dst[cacheSetCRC:], CRC(dst[:cacheSetCRC]))
}

// Decode decodes a table from the first CacheSetSize bytes of b. Error:
// ErrDamaged, also for a table that was never written; s is undefined then.
func (s *CacheSet) Decode(b []byte) error {
	if len(b) < CacheSetSize {
		return fmt.Errorf("set of the disk cache: %w", damaged("%d bytes", len(b)))
	}
	b = b[:CacheSetSize]
	if binary.LittleEndian.Uint32(b[cacheSetCRC:]) != CRC(b[:cacheSetCRC]) {
		return fmt.Errorf("set of the disk cache: %w", damaged("checksum"))
	}
	for i := range s.Entries {
		e := b[i*cacheEntrySize:]
		s.Entries[i] = CacheEntry{
			Location(binary.LittleEndian.Uint64(e)), binary.LittleEndian.Uint64(e[8:]),
			binary.LittleEndian.Uint32(e[16:]), binary.LittleEndian.Uint32(e[20:]),
		}
		if !s.Entries[i].Loc.valid() {
			return fmt.Errorf("set of the disk cache: %w", damaged("location %#x", uint64(s.Entries[i].Loc)))
		}
	}
	s.Hand = binary.LittleEndian.Uint32(b[cacheSetUsed-4:])
	if s.Hand >= CacheSetBlocks || !allZero(b[cacheSetUsed:cacheSetCRC]) {
		return fmt.Errorf("set of the disk cache: %w", damaged("hand at %d, or reserved bytes in use", s.Hand))
	}
	return nil
}
