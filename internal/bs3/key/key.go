// Package key numbers and names the objects of a volume's log.
//
// A Key numbers the immutable objects 0, 1, 2, … in the order of the log. In
// a store the object of key k is called
//
//	%08x/%08x   (low 32 bits of k, bit-reversed; high 32 bits of k)
//
// so that neighbouring keys differ in their first character, and a store that
// partitions by prefix spreads them.
package key

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
)

// Key is the number of an object in the log of one volume.
type Key uint64

// Max is the largest key a volume may use: locations hold key+1 in 40 bits.
const Max Key = 1<<40 - 2

// ErrName means that a name does not belong to an object of the log.
var ErrName = errors.New("not an object name")

// nameLen is the length of "xxxxxxxx/xxxxxxxx".
const nameLen = 17

// Name returns the name of k's object, relative to the prefix of its volume.
func (k Key) Name() string {
	return fmt.Sprintf("%08x/%08x", bits.Reverse32(uint32(k)), uint32(k>>32))
}

// Parse is the inverse of Name. It accepts exactly what Name returns; for
// anything else it returns an error that wraps ErrName and quotes the name.
func Parse(name string) (Key, error) {
	if len(name) != nameLen || name[8] != '/' {
		return 0, fmt.Errorf("%w: %q", ErrName, name)
	}
	low, errLow := strconv.ParseUint(name[:8], 16, 32)
	high, errHigh := strconv.ParseUint(name[9:], 16, 32)
	k := Key(high)<<32 | Key(bits.Reverse32(uint32(low)))
	if errLow != nil || errHigh != nil || k > Max || k.Name() != name {
		return 0, fmt.Errorf("%w: %q", ErrName, name)
	}
	return k, nil
}

// Allocator hands out the keys of one volume, each once, in order. It is not
// safe for concurrent use.
type Allocator struct{ next Key }

// NewAllocator returns an Allocator whose first key is next.
func NewAllocator(next Key) Allocator { return Allocator{next: next} }

// Next returns the key that Take will return, without taking it.
func (a *Allocator) Next() Key { return a.next }

// Take returns the next key. Every key taken must be stored, as an empty
// object if need be: the log has no holes.
func (a *Allocator) Take() Key {
	k := a.next
	a.next++
	return k
}
