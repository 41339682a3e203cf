// Package layouttest makes stored blocks for tests.
package layouttest

import (
	"encoding/binary"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// Stored returns data, blocks of blockSize bytes, each followed by its check
// value as data block first, first+1, … of object k of volume u.
func Stored(u layout.UUID, k key.Key, first uint32, data []byte, blockSize int) []byte {
	checks := layout.NewChecks(u, k)
	var stored []byte
	for ; len(data) > 0; first, data = first+1, data[blockSize:] {
		stored = append(stored, data[:blockSize]...)
		stored = binary.LittleEndian.AppendUint32(stored, checks.Value(first, layout.CRC(data[:blockSize])))
	}
	return stored
}

// CRCs returns the CRC of each block of data.
func CRCs(data []byte, blockSize int) (crcs []uint32) {
	for ; len(data) > 0; data = data[blockSize:] {
		crcs = append(crcs, layout.CRC(data[:blockSize]))
	}
	return crcs
}
