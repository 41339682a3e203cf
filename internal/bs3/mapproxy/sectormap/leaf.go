package sectormap

import (
	"sync/atomic"

	"bs3/internal/bs3/layout"
)

// Leaf maps LeafBlocks consecutive blocks. Those that callers get to see, from
// a Frozen or from Unmap, do not change any more.
//
// The entries are plain words used with sync/atomic, not atomic.Uint64, so
// that copying a leaf nobody writes to is one memmove: 4096 atomic stores
// would hold the writers up for 20 µs.
type Leaf struct {
	entries [LeafBlocks]uint64
}

func (l *Leaf) load(i uint64) layout.Location {
	return layout.Location(atomic.LoadUint64(&l.entries[i]))
}

// Each calls f for the mapped blocks of the leaf, in order: n consecutive
// locations from loc, which lie in one object.
func (l *Leaf) Each(f func(loc layout.Location, n uint32)) {
	for rest := l.entries[:]; len(rest) > 0; {
		loc, n := run(rest)
		if loc != 0 {
			f(loc, n)
		}
		rest = rest[n:]
	}
}

// Entries copies the leaf to dst, LeafBlocks long.
func (l *Leaf) Entries(dst []layout.Location) {
	dst = dst[:LeafBlocks]
	for i, e := range l.entries {
		dst[i] = layout.Location(e)
	}
}

// lookup appends the runs of the n blocks from block, which lie in l.
func (l *Leaf) lookup(block uint64, n uint32, runs []Run, first int) []Run {
	from := block % LeafBlocks
	for rest := l.entries[from : from+uint64(n)]; len(rest) > 0; {
		loc, n := run(rest)
		runs = appendRun(runs, first, Run{Block: block, N: n, Loc: loc})
		block += uint64(n)
		rest = rest[n:]
	}
	return runs
}

// run gives the first of the entries, of which there is one at least, and how
// many of them are one run with it.
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

// merger gathers consecutive locations of one object and passes them to f as
// one. Unmapped ones are dropped.
type merger struct {
	f   func(loc layout.Location, n uint32)
	loc layout.Location
	n   uint32
}

func (r *merger) add(loc layout.Location) {
	if r.n > 0 && follows(r.loc, r.n, loc) {
		r.n++
		return
	}
	r.flush()
	r.loc, r.n = loc, 1
}

func (r *merger) flush() {
	if r.n > 0 && r.f != nil {
		r.f(r.loc, r.n)
	}
	r.n = 0
}
