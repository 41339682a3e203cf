package sectormap

import (
	"sync/atomic"

	"bs3/internal/bs3/layout"
)

// Leaf maps LeafBlocks consecutive blocks: by a few spans, which never change,
// or entry by entry. A leaf that callers get from a Frozen or from Unmap does
// not change any more.
//
// The entries are plain words used with sync/atomic, not atomic.Uint64, so
// that copying a leaf that nobody writes to is one memmove: 4096 atomic stores
// would delay the writers by 20 µs.
type Leaf struct {
	entries *array // of the map's pool; nil in a leaf of spans
	spans   []span
}

func (l *Leaf) load(i uint64) layout.Location {
	if l.entries != nil {
		return layout.Location(atomic.LoadUint64(&l.entries[i]))
	}
	j := after(l.spans, uint16(i))
	if j == len(l.spans) || l.spans[j].from > uint16(i) {
		return 0
	}
	return l.spans[j].part(uint16(i), uint16(i)+1).loc
}

// Each calls f for the mapped blocks of the leaf, in order, each time with n
// consecutive locations of one object, from loc.
func (l *Leaf) Each(f func(loc layout.Location, n uint32)) {
	if l.entries == nil {
		for _, s := range l.spans {
			f(s.loc, s.blocks())
		}
		return
	}
	for rest := l.entries[:]; len(rest) > 0; {
		loc, n := run(rest)
		if loc != 0 {
			f(loc, n)
		}
		rest = rest[n:]
	}
}

// Entries copies the leaf to dst, which must have room for LeafBlocks entries.
func (l *Leaf) Entries(dst []layout.Location) {
	dst = dst[:LeafBlocks]
	if l.entries != nil {
		for i, e := range l.entries {
			dst[i] = layout.Location(e)
		}
		return
	}
	clear(dst)
	for _, s := range l.spans {
		for i := s.from; i < s.to; i++ {
			dst[i] = s.loc + layout.Location(i-s.from)
		}
	}
}

// lookup appends the runs of the n blocks from block, which lie in l.
func (l *Leaf) lookup(block uint64, n uint32, runs []Run, first int) []Run {
	from := block % LeafBlocks
	if l.entries == nil {
		return l.lookupSpans(block-from, uint16(from), uint16(from)+uint16(n), runs, first)
	}
	for rest := l.entries[from : from+uint64(n)]; len(rest) > 0; {
		loc, n := run(rest)
		runs = appendRun(runs, first, Run{Block: block, N: n, Loc: loc})
		block += uint64(n)
		rest = rest[n:]
	}
	return runs
}

// lookupSpans appends the runs of the entries [from, to); start is the leaf's
// first block.
func (l *Leaf) lookupSpans(start uint64, from, to uint16, runs []Run, first int) []Run {
	hole := func(end uint16) {
		if from < end {
			runs = appendRun(runs, first, Run{Block: start + uint64(from), N: uint32(end - from)})
		}
	}
	for _, s := range l.spans[after(l.spans, from):] {
		if s.from >= to {
			break
		}
		hole(s.from)
		s = s.part(max(s.from, from), min(s.to, to))
		runs = appendRun(runs, first, Run{Block: start + uint64(s.from), N: s.blocks(), Loc: s.loc})
		from = s.to
	}
	hole(to)
	return runs
}

// run returns the first of the entries, of which there must be one, and how
// many of them form one run with it.
func run(entries []uint64) (loc layout.Location, n uint32) {
	at := func(i uint32) layout.Location { return layout.Location(atomic.LoadUint64(&entries[i])) }
	loc, n = at(0), 1
	end := uint32(len(entries))
	if !loc.Mapped() {
		for n < end && at(n) == 0 {
			n++
		}
		return 0, n
	}
	for n < end && follows(loc, n, at(n)) {
		n++
	}
	return loc, n
}

// merger merges consecutive locations of one object into one call of f, and
// counts locations.
type merger struct {
	f     func(loc layout.Location, n uint32)
	loc   layout.Location
	n     uint32
	count uint32 // of this leaf
}

func (r *merger) add(loc layout.Location) { r.addRun(loc, 1) }

func (r *merger) addRun(loc layout.Location, n uint32) {
	r.count += n
	if r.n > 0 && follows(r.loc, r.n, loc) {
		r.n += n
		return
	}
	r.flush()
	r.loc, r.n = loc, n
}

func (r *merger) flush() {
	if r.n > 0 && r.f != nil {
		r.f(r.loc, r.n)
	}
	r.n = 0
}
