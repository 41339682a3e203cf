package sectormap

import (
	"sync/atomic"

	"bs3/internal/bs3/layout"
)

// Set maps the n blocks from block to n consecutive locations of one object,
// from loc. It calls old, if not nil, for what was mapped there before: n
// consecutive locations of one object, from loc. A writer's call.
func (m *Map) Set(block uint64, n uint32, loc layout.Location, old func(loc layout.Location, n uint32)) {
	m.check(block, uint64(n))
	was := merger{f: old}
	for n > 0 {
		i, from := block/LeafBlocks, block%LeafBlocks
		c := min(n, LeafBlocks-uint32(from))
		leaf := m.writable(i)
		fresh := uint32(0)
		for j := from; j < from+uint64(c); j++ {
			prev := layout.Location(atomic.SwapUint64(&leaf.entries[j], uint64(loc)))
			if prev == 0 {
				fresh++
			} else {
				was.add(prev)
			}
			loc++
		}
		if fresh > 0 {
			m.state[i].mapped += fresh
			m.mapped.Add(uint64(fresh))
		}
		block += uint64(c)
		n -= c
	}
	was.flush()
}

// Unmap unmaps the n blocks from block. A leaf that lies in the range as a
// whole is taken out in one step and given to gone, to be looked through when
// there is time; for the rest, old is called as by Set. Both may be nil. A
// writer's call.
func (m *Map) Unmap(block, n uint64, old func(loc layout.Location, n uint32), gone func(*Leaf)) {
	m.check(block, n)
	was := merger{f: old}
	for end := block + n; block < end; {
		i := block / LeafBlocks
		start := i * LeafBlocks
		// The last leaf ends with the volume.
		stop := min(start+LeafBlocks, m.blocks)
		c := min(stop, end)
		leaf := m.dir[i].Load()
		switch {
		case leaf == nil:
		case block == start && c == stop:
			m.drop(i)
			if gone != nil {
				gone(leaf)
			}
		default:
			m.unmapPart(i, leaf, block-start, c-start, &was)
		}
		block = c
	}
	was.flush()
}

// unmapPart unmaps the entries [from, to) of leaf i. A leaf that has none
// mapped there is left alone, so that it is not copied either.
func (m *Map) unmapPart(i uint64, leaf *Leaf, from, to uint64, was *merger) {
	for from < to && leaf.load(from) == 0 {
		from++
	}
	if from == to {
		return
	}
	leaf = m.writable(i)
	freed := uint32(0)
	for j := from; j < to; j++ {
		prev := leaf.load(j)
		if prev == 0 {
			continue
		}
		atomic.StoreUint64(&leaf.entries[j], 0)
		was.add(prev)
		freed++
	}
	if freed == m.state[i].mapped {
		m.drop(i)
		return
	}
	m.state[i].mapped -= freed
	m.mapped.Add(-uint64(freed))
}

// Load fills an empty leaf, at open, before the map is shared. Entries past
// the end of the volume are dropped. The leaf counts as older than every
// freeze.
func (m *Map) Load(leaf int, entries []layout.Location) {
	start := uint64(leaf) * LeafBlocks
	l, n := new(Leaf), uint32(0)
	for i, loc := range entries[:min(uint64(len(entries)), m.blocks-start)] {
		if loc != 0 {
			l.entries[i] = uint64(loc)
			n++
		}
	}
	if n == 0 {
		return
	}
	m.dir[leaf].Store(l)
	m.state[leaf] = leafState{mapped: n}
	m.mapped.Add(uint64(n))
	m.leaves.Add(1)
}

// writable gives leaf i for changing entries: as it is if no live Frozen has
// it, or else a copy, which readers already see.
func (m *Map) writable(i uint64) *Leaf {
	leaf, s := m.dir[i].Load(), &m.state[i]
	switch {
	case leaf == nil:
		leaf = new(Leaf)
		m.dir[i].Store(leaf)
		m.leaves.Add(1)
	case m.Shared(s.gen):
		frozen := leaf
		leaf = &Leaf{entries: frozen.entries}
		m.dir[i].Store(leaf)
	}
	s.gen = m.gen
	return leaf
}

// drop takes leaf i, which is there, out of the map.
func (m *Map) drop(i uint64) {
	m.dir[i].Store(nil)
	m.mapped.Add(-uint64(m.state[i].mapped))
	m.leaves.Add(-1)
	m.state[i] = leafState{}
}
