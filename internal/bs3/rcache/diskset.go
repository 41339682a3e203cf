package rcache

import (
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"

	"bs3/internal/bs3/layout"
)

const (
	// groupBlocks is how many neighbouring blocks of an object share a set.
	groupBlocks = 64
	// setMultiplier spreads groups over sets (docs/FORMAT.md): 2^64 divided by the
	// golden ratio.
	setMultiplier = 0x9E3779B97F4A7C15
)

// diskSet is what is known of a set without asking the disk.
type diskSet struct {
	generation atomic.Uint32 // odd while the set is being written
	read       readBits
}

// readBits has a bit for each place that was read since the hand passed it.
type readBits [(layout.CacheSetBlocks + 63) / 64]atomic.Uint64

func (b *readBits) set(place int) { b[place/64].Or(1 << (place % 64)) }

// clear clears the bit of a place, and reports whether it was set.
func (b *readBits) clear(place int) bool {
	mask := uint64(1) << (place % 64)
	return b[place/64].Load()&mask != 0 && b[place/64].And(^mask)&mask != 0
}

// setsOf returns the two sets in which a block may lie; they may be the same. With one,
// the groups would fall so unevenly that live blocks were displaced here while there is
// room there.
func (d *Disk) setsOf(loc layout.Location) [2]uint64 {
	h := uint64(loc) / groupBlocks * setMultiplier
	first, _ := bits.Mul64(h, d.head.Sets)
	second, _ := bits.Mul64(h*setMultiplier, d.head.Sets)
	return [2]uint64{first, second}
}

func (d *Disk) offset(set uint64) int64 {
	return layout.CacheHeaderSize + int64(set)*d.head.SetSize()
}

// blockOffset returns the offset in the file of the block in a place of a set.
func (d *Disk) blockOffset(set uint64, place int) int64 {
	return d.offset(set) + layout.CacheSetSize + int64(place)*int64(d.head.BlockSize)
}

// groups calls f for each part of the n blocks from loc that shares sets.
func groups(loc layout.Location, n int, f func(at, n int)) {
	for at := 0; at < n; {
		some := min(n-at, groupBlocks-int(uint64(loc.Add(uint32(at)))%groupBlocks))
		f(at, some)
		at += some
	}
}

// diskTable is the table of a set, in memory for one access.
type diskTable struct {
	page   [layout.CacheSetSize]byte
	table  layout.CacheSet
	places [groupBlocks]int // of the blocks that find looked for; -1: not there
}

// load reads the table of a set. A table that does not verify counts as empty.
func (d *Disk) load(t *diskTable, set uint64) error {
	if _, err := d.file.ReadAt(t.page[:], d.offset(set)); err != nil {
		return fmt.Errorf("read the disk cache: %w", err)
	}
	if t.table.Decode(t.page[:]) != nil {
		t.table = layout.CacheSet{}
	}
	return nil
}

// find sets t.places for the n blocks from loc.
func (t *diskTable) find(loc layout.Location, epoch uint32, n int) {
	for i := range n {
		t.places[i] = -1
	}
	for place := range t.table.Entries {
		e := &t.table.Entries[place]
		if at := uint64(e.Loc - loc); e.Loc >= loc && at < uint64(n) && e.Epoch == epoch {
			t.places[at] = place
		}
	}
}

// vacant appends the places, n at most, whose blocks are dead or that have none, in the
// order in which the hand comes to them.
func (t *diskTable) vacant(where Where, n int, places []int) []int {
	for i := range layout.CacheSetBlocks {
		if len(places) == n {
			break
		}
		place := (int(t.table.Hand) + i) % layout.CacheSetBlocks
		if e := &t.table.Entries[place]; !e.Loc.Mapped() || where.dead(e.Block, e.Loc) {
			places = append(places, place)
		}
	}
	return places
}

// displace appends more places, to n, whose blocks live, and moves the hand on. It passes
// over a place that was read since the hand passed it, once.
func (t *diskTable) displace(read *readBits, n int, places []int) []int {
	for len(places) < n {
		place := int(t.table.Hand)
		t.table.Hand = uint32(place+1) % layout.CacheSetBlocks
		if !slices.Contains(places, place) && !read.clear(place) { // it may go round twice
			places = append(places, place)
		}
	}
	return places
}
