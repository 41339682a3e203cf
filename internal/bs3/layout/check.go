package layout

import (
	"encoding/binary"
	"hash/crc32"

	"bs3/internal/bs3/key"
)

// CheckSize is the size in bytes of the check value that follows each stored
// block.
const CheckSize = 4

// Stride returns how many bytes a stored block of blockSize bytes takes: the
// block, then its check value. Stored blocks lie one behind the other, in
// objects, chunk memory and frames.
func Stride(blockSize int) int { return blockSize + CheckSize }

// Checks computes the check values of the blocks of one object: the CRC32C of
// the block, the UUID of the volume, the key of the object and the index of the
// block in it. So a check value tells not only other bytes, but also the bytes of
// another place. A Checks must not be used by two goroutines at a time.
type Checks struct {
	place [16 + 8 + 4]byte
}

// NewChecks returns the Checks of object k of volume u.
func NewChecks(u UUID, k key.Key) *Checks {
	c := &Checks{}
	copy(c.place[:], u[:])
	binary.LittleEndian.PutUint64(c.place[16:], uint64(k))
	return c
}

// Value returns the check value of block index, whose CRC is crc.
func (c *Checks) Value(index, crc uint32) uint32 {
	binary.LittleEndian.PutUint32(c.place[24:], index)
	return crc32.Update(crc, castagnoli, c.place[:])
}

// Verify checks one stored block, of index index. It returns the CRC of the
// block.
func (c *Checks) Verify(index uint32, stored []byte) (crc uint32, ok bool) {
	block, check := stored[:len(stored)-CheckSize], stored[len(stored)-CheckSize:]
	crc = CRC(block)
	return crc, c.Value(index, crc) == binary.LittleEndian.Uint32(check)
}

// AddSum extends sum by the check values of stored blocks of blockSize bytes and
// returns it. The sum of no blocks is 0. It identifies the content of an object.
func AddSum(sum uint32, stored []byte, blockSize int) uint32 {
	for stride := Stride(blockSize); len(stored) >= stride; stored = stored[stride:] {
		sum = crc32.Update(sum, castagnoli, stored[blockSize:][:CheckSize])
	}
	return sum
}

// CopyBlocks copies stored blocks of blockSize bytes to dst, without their check
// values.
func CopyBlocks(dst, stored []byte, blockSize int) {
	for ; len(dst) > 0; dst, stored = dst[blockSize:], stored[Stride(blockSize):] {
		copy(dst[:blockSize], stored)
	}
}
