package layout

import (
	"encoding/binary"
	"hash/crc32"

	"bs3/internal/bs3/key"
)

// castagnoli is the table of CRC32C (RFC 3720, appendix B.4).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC returns the CRC32C of b, the only checksum of the formats.
func CRC(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// RecordCRC returns the checksum of one record in chunk memory: CRC32C over the
// record's 32 bytes, the sum of the slot's blocks up to and with those of the
// record (AddSum), and the nonce and key of the slot, so that a record left by
// the slot's former owner never verifies.
func RecordCRC(rec []byte, sum uint32, nonce Nonce, k key.Key) uint32 {
	crc := crc32.Update(0, castagnoli, rec)
	// Not by crc32.Update, whose argument would escape to the heap.
	var rest [4 + len(nonce) + 8]byte
	binary.LittleEndian.PutUint32(rest[:], sum)
	copy(rest[4:], nonce[:])
	binary.LittleEndian.PutUint64(rest[4+len(nonce):], uint64(k))
	crc = ^crc
	for _, c := range rest {
		crc = castagnoli[byte(crc)^c] ^ crc>>8
	}
	return ^crc
}
