package rcache

import (
	"bs3/internal/bs3/layout"
	"fmt"
	"math/bits"
)

// setOf returns the set of a block.
func (d *Disk) setOf(loc layout.Location) uint64 {
	hash, _ := bits.Mul64(uint64(loc)/groupBlocks*setMultiplier, d.head.Sets)
	return hash
}

func (d *Disk) offset(set uint64) int64 {
	return layout.CacheHeaderSize + int64(set)*d.head.SetSize()
}

// blockOffset returns the offset in the file of the block in a place of a set.
func (d *Disk) blockOffset(set uint64, place int) int64 {
	return d.offset(set) + layout.CacheSetSize + int64(place)*int64(d.head.BlockSize)
}

// groups calls f for each part of the n blocks from loc that shares a set.
func groups(loc layout.Location, n int, f func(at, n int)) {
	for at := 0; at < n; {
		some := min(n-at, groupBlocks-int(uint64(loc.Add(uint32(at)))%groupBlocks))
		f(at, some)
		at += some
	}
}

// diskTable is the memory for one access to a set.
type diskTable struct {
	page   [layout.CacheSetSize]byte
	set    layout.CacheSet
	places [groupBlocks]int // of the requested blocks; -1: not there
}

// load reads the table of a set. A table that does not verify counts as empty.
func (d *Disk) load(t *diskTable, set uint64) error {
	if _, err := d.file.ReadAt(t.page[:], d.offset(set)); err != nil {
		return fmt.Errorf("read the disk cache: %w", err)
	}
	if t.set.Decode(t.page[:]) != nil {
		t.set = layout.CacheSet{}
	}
	return nil
}

// find sets t.places for the n blocks from loc.
func (t *diskTable) find(loc layout.Location, epoch uint32, n int) {
	for i := range n {
		t.places[i] = -1
	}
	for place, e := range t.set.Entries {
		if at := uint64(e.Loc - loc); e.Loc >= loc && at < uint64(n) && e.Epoch == epoch {
			t.places[at] = place
		}
	}
}

// turn returns the place to be filled next and moves the hand on. It passes over
// a place that was read since the hand passed it, once.
func (d *Disk) turn(s *diskSet, set *layout.CacheSet) int {
	for {
		place := int(set.Hand)
		set.Hand = (set.Hand + 1) % layout.CacheSetBlocks
		mask := uint64(1) << (place % 64)
		if s.read[place/64].And(^mask)&mask == 0 {
			return place
		}
	}
}
