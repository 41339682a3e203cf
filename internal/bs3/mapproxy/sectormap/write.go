package sectormap

import (
	"runtime"
	"slices"
	"sync/atomic"

	"bs3/internal/bs3/layout"
)

// Set maps the n blocks from block to n consecutive locations of one object,
// from loc. For what was mapped there before it calls old, if that is not nil,
// each time with n consecutive locations of one object. Set is for writers only.
func (m *Map) Set(block uint64, n uint32, loc layout.Location, old func(loc layout.Location, n uint32)) {
	m.check(block, uint64(n))
	was := merger{f: old}
	for n > 0 {
		i, from := block/LeafBlocks, uint16(block%LeafBlocks)
		c := min(n, LeafBlocks-uint32(from))
		was.count = 0
		m.setPart(i, span{from, from + uint16(c), loc}, &was)
		if fresh := c - was.count; fresh > 0 {
			m.state[i].mapped += fresh
			m.mapped.Add(uint64(fresh))
		}
		block += uint64(c)
		loc += layout.Location(c)
		n -= c
	}
	was.flush()
}

// setPart maps a part of leaf i.
func (m *Map) setPart(i uint64, put span, was *merger) {
	leaf := m.dir[i].Load()
	if leaf == nil || leaf.entries == nil {
		var spans []span
		if leaf != nil {
			spans = leaf.spans
		}
		if len(spans) < maxSpans {
			m.showSpans(i, spans, replaced(spans, put.from, put.to, put, was))
			return
		}
	}
	entries := m.writable(i)
	loc := put.loc
	for j := put.from; j < put.to; j++ {
		if prev := layout.Location(atomic.SwapUint64(&entries[j], uint64(loc))); prev != 0 {
			was.add(prev)
		}
		loc++
	}
}

// showSpans publishes a new list of spans as leaf i, which was one or empty.
func (m *Map) showSpans(i uint64, before, spans []span) {
	m.dir[i].Store(&Leaf{spans: spans})
	m.state[i].gen = m.gen
	m.spans.Add(int64(len(spans) - len(before)))
}

// Unmap unmaps the n blocks from block. A leaf that lies in the range as a
// whole is taken out in one step and passed to gone, which can look through it
// later and must pass it to Free then; for the rest, Unmap calls old as Set does.
// Both may be nil. Unmap is for writers only.
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
			} else {
				m.Free(leaf)
			}
		default:
			m.unmapPart(i, leaf, uint16(block-start), uint16(c-start), &was)
		}
		block = c
	}
	was.flush()
}

// unmapPart unmaps the entries [from, to) of leaf i. It leaves a leaf that maps
// none of them alone, so that it is not copied either.
func (m *Map) unmapPart(i uint64, leaf *Leaf, from, to uint16, was *merger) {
	was.count = 0
	if leaf.entries == nil {
		if j := after(leaf.spans, from); j == len(leaf.spans) || leaf.spans[j].from >= to {
			return
		}
		// A span that is cut in two may make them more than maxSpans.
		m.showSpans(i, leaf.spans, replaced(leaf.spans, from, to, span{}, was))
	} else {
		for from < to && leaf.load(uint64(from)) == 0 {
			from++
		}
		if from == to {
			return
		}
		entries := m.writable(i)
		for j := from; j < to; j++ {
			if prev := layout.Location(atomic.SwapUint64(&entries[j], 0)); prev != 0 {
				was.add(prev)
			}
		}
	}
	if was.count == m.state[i].mapped {
		leaf = m.dir[i].Load()
		m.drop(i)
		m.Free(leaf)
		return
	}
	m.state[i].mapped -= was.count
	m.mapped.Add(-uint64(was.count))
}

// Load fills an empty leaf, at open, before the map is shared. It drops entries
// past the end of the volume. The leaf counts as older than every freeze.
func (m *Map) Load(leaf int, entries []layout.Location) {
	start := uint64(leaf) * LeafBlocks
	entries = entries[:min(uint64(len(entries)), m.blocks-start)]
	n := uint32(0)
	for _, loc := range entries {
		if loc != 0 {
			n++
		}
	}
	if n == 0 {
		return
	}
	if spans, few := spansOf(entries); few {
		m.dir[leaf].Store(&Leaf{spans: spans})
		m.spans.Add(int64(len(spans)))
	} else {
		l := &Leaf{entries: m.pool.get()}
		for i, loc := range entries {
			l.entries[i] = uint64(loc)
		}
		clear(l.entries[len(entries):])
		m.dir[leaf].Store(l)
		m.dense.Add(1)
	}
	m.state[leaf] = leafState{mapped: n}
	m.mapped.Add(uint64(n))
}

// writable returns the entries of leaf i, which is not empty, to be changed:
// its own if no live Frozen has them, otherwise those of a copy that is already
// in the directory.
func (m *Map) writable(i uint64) *array {
	leaf, s := m.dir[i].Load(), &m.state[i]
	switch {
	case leaf.entries == nil:
		m.spans.Add(-int64(len(leaf.spans)))
		m.dense.Add(1)
		entries := m.pool.get()
		spread(leaf.spans, entries)
		leaf = &Leaf{entries: entries}
		m.dir[i].Store(leaf)
	case m.Shared(s.gen):
		entries, shared := m.pool.get(), leaf
		*entries = *shared.entries
		leaf = &Leaf{entries: entries}
		m.dir[i].Store(leaf)
		m.Free(shared)
	}
	s.gen = m.gen
	return leaf.entries
}

// foldSpans is the most spans that an array of entries is folded to: well below
// maxSpans, so that it does not become an array again soon.
const foldSpans = maxSpans / 2

// Fold makes the leaf that block lies in a list of spans again, if it is an array and
// few are enough. What is mapped where does not change. Fold is for writers only.
func (m *Map) Fold(block uint64) {
	m.check(block, 1)
	i := block / LeafBlocks
	leaf := m.dir[i].Load()
	if leaf == nil || leaf.entries == nil {
		return
	}
	var few [foldSpans + 1]span
	spans := few[:0]
	for j := range uint16(LeafBlocks) {
		loc := leaf.load(uint64(j))
		if !loc.Mapped() {
			continue
		}
		if spans = appendSpan(spans, span{j, j + 1, loc}); len(spans) > foldSpans {
			return
		}
	}
	m.dense.Add(-1)
	m.spans.Add(int64(len(spans)))
	m.dir[i].Store(&Leaf{spans: slices.Clone(spans)})
	m.Free(leaf)
}

// drop takes leaf i, which is not empty, out of the map.
func (m *Map) drop(i uint64) {
	if leaf := m.dir[i].Load(); leaf.entries == nil {
		m.spans.Add(-int64(len(leaf.spans)))
	} else {
		m.dense.Add(-1)
	}
	m.dir[i].Store(nil)
	m.mapped.Add(-uint64(m.state[i].mapped))
	m.state[i] = leafState{}
}

// Free gives back the memory of a leaf that is not in the map any more, when
// nobody but a live Frozen refers to it. Free is for writers only.
func (m *Map) Free(leaf *Leaf) {
	if leaf.entries == nil {
		return
	}
	// The mutex also orders the change of the directory before those that the next
	// user of the array makes, which readers rely on.
	m.freezes.Lock()
	shared := len(m.live) > 0
	if shared {
		m.replaced = append(m.replaced, replacedArray{leaf.entries, m.gen})
	}
	m.freezes.Unlock()
	if !shared {
		m.pool.put(leaf.entries)
	}
	runtime.KeepAlive(m) // as in Get
}
