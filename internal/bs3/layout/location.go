package layout

import (
	"fmt"

	"bs3/internal/bs3/key"
)

// Location is the place of a block: 0 is unmapped (reads as zeros), anything
// else is (key+1)<<24 | index, the index-th data block of object key. The same
// 8 bytes are an entry of the map and of a leaf, and the source of a move.
type Location uint64

const (
	indexBits = 24
	// MaxIndex is the largest index of a data block in an object.
	MaxIndex = 1<<indexBits - 1
	// MaxObjectBlocks is the largest number of data blocks of an object.
	MaxObjectBlocks = MaxIndex + 1
)

// Loc returns the location of data block index of object k.
func Loc(k key.Key, index uint32) Location {
	return Location(k+1)<<indexBits | Location(index)
}

// Mapped reports whether l is a place in an object.
func (l Location) Mapped() bool { return l != 0 }

// Key returns the object of a mapped location.
func (l Location) Key() key.Key { return key.Key(l>>indexBits) - 1 }

// Index returns the index in its object of a mapped location.
func (l Location) Index() uint32 { return uint32(l & MaxIndex) }

// Add returns the location n blocks further in the same object.
func (l Location) Add(n uint32) Location { return l + Location(n) }

// String returns "unmapped", or, for example, "object 12 block 7".
func (l Location) String() string {
	if !l.Mapped() {
		return "unmapped"
	}
	return fmt.Sprintf("object %d block %d", l.Key(), l.Index())
}

// valid reports whether l can be an entry: unmapped, or with a key.
func (l Location) valid() bool { return l == 0 || l>>indexBits != 0 }
