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
// record's 32 bytes, the CRCs of its blocks (4 bytes each, as they lie in the
// slot; none for a zero record), and the nonce and key of the slot, so that a
// record left by the slot's former owner never verifies.
func RecordCRC(rec, blockCRCs []byte, nonce Nonce, k key.Key) uint32 {
	crc := crc32.Update(0, castagnoli, rec)
	crc = crc32.Update(crc, castagnoli, blockCRCs)
	// Not by crc32.Update, whose argument would escape to the heap.
	var owner [len(nonce) + 8]byte
	copy(owner[:], nonce[:])
	binary.LittleEndian.PutUint64(owner[len(nonce):], uint64(k))
	crc = ^crc
	for _, c := range owner {
		crc = castagnoli[byte(crc)^c] ^ crc>>8
	}
	return ^crc
}
