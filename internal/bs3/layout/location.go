package layout

import (
	"fmt"

	"bs3/internal/bs3/key"
)

// Location says where a block lies: 0 = unmapped (reads as zeros), otherwise
// (key+1)<<24 | index, the index-th data block of object key. The same 8 bytes
// are an entry of the map, of a leaf and the source of a move.
type Location uint64

const (
	indexBits = 24
	// MaxIndex is the largest index of a block in an object.
	MaxIndex = 1<<indexBits - 1
	// MaxObjectBlocks is the largest number of data blocks of an object.
	MaxObjectBlocks = MaxIndex + 1
)

// Loc gives the location of block index of object k.
func Loc(k key.Key, index uint32) Location {
	return Location(k+1)<<indexBits | Location(index)
}

// Mapped says whether l is a place in an object.
func (l Location) Mapped() bool { return l != 0 }

// Key gives the object of a mapped location.
func (l Location) Key() key.Key { return key.Key(l>>indexBits) - 1 }

// Index gives the block inside the object of a mapped location.
func (l Location) Index() uint32 { return uint32(l & MaxIndex) }

// Add gives the location n blocks further in the same object.
func (l Location) Add(n uint32) Location { return l + Location(n) }

// String is for messages: "unmapped" or "object 12 block 7".
func (l Location) String() string {
	if !l.Mapped() {
		return "unmapped"
	}
	return fmt.Sprintf("object %d block %d", l.Key(), l.Index())
}

// valid says whether l can be an entry: unmapped, or with a key.
func (l Location) valid() bool { return l == 0 || l>>indexBits != 0 }
