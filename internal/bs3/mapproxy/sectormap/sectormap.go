// Package sectormap is the flat map of a volume: for every logical block, the
// place in the log where its bytes lie. It takes at most 8 bytes a block.
//
//	directory                leaves of LeafBlocks entries
//	[ 0 | * | 0 | * | … ]
//	      |       '--------> [ location | 0 | location | … ]     entry by entry
//	      '----------------> [ entries a-b from location, … ]    a few spans
//
// A leaf is allocated when its first block is mapped and dropped when its last
// one is unmapped, so an empty volume costs its directory only (16 bytes for
// each LeafBlocks blocks: the pointer and the writers' bookkeeping). A leaf
// begins as a list of spans, 16 bytes each, which a writer replaces as a whole.
// It becomes an array of entries when it would have more than 64 spans, and a
// list of spans again when it is folded, or next loaded, and few are enough. Arrays lie outside
// of the Go heap, in a pool of the map's own that gives back to the kernel what it
// does not need.
//
// Concurrency. Readers (Get, Lookup) take no lock: a directory slot is an
// atomic pointer and an entry is loaded atomically. Writers (Set, Unmap, Load,
// Freeze) are serialised by their caller. A writer changes an entry only in
// the leaf that is in the directory at that time, and a leaf that left the
// directory never comes back. The array of one that left may serve another leaf
// soon, so a reader that has read entries looks whether their leaf is still in the
// directory, and reads again if it is not. What it returns was mapped at some
// moment of the call.
//
// Freezing. A Frozen is a copy of the directory. As long as it lives, a writer
// copies a leaf that the Frozen references before changing it, and publishes
// the copy first. Freezes are numbered, and each leaf knows the number of the
// first freeze after its last change. Comparing the two shows whether a leaf
// is shared and, later, whether it has changed since an earlier freeze. The array
// of a leaf that left the directory is used again when every Frozen that lived at
// that time is released.
package sectormap

import (
	"fmt"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"bs3/internal/bs3/layout"
)

// LeafBlocks is the number of blocks that one leaf maps.
const LeafBlocks = layout.LeafBlocks

const leafBytes = LeafBlocks * 8

// Map maps the blocks [0, Blocks) of one volume. The package comment states
// which methods may run at the same time.
type Map struct {
	blocks uint64
	dir    []atomic.Pointer[Leaf]
	state  []leafState // parallel to dir; writers only

	gen      uint32        // number of the next freeze, from 1; one a second lasts 136 years; writers only
	unfrozen atomic.Uint32 // leaves with a smaller generation are shared with a live Frozen

	mapped atomic.Uint64 // blocks
	dense  atomic.Int64  // leaves that are arrays of entries
	spans  atomic.Int64  // in the other leaves

	pool *pool // of the arrays

	freezes  sync.Mutex      // covers what follows; held for a few instructions only
	live     []uint32        // generations of the live Frozens, ascending
	replaced []replacedArray // that they may still need, in the order of before
}

// replacedArray is the array of a leaf that left the map while there was a Frozen.
type replacedArray struct {
	entries *array
	before  uint32 // freezes with a smaller generation may refer to it
}

// leafState is the writers' bookkeeping of a leaf.
type leafState struct {
	gen    uint32 // Map.gen at the last change; 0: not changed since Load
	mapped uint32 // entries that are mapped
}

// Run describes consecutive blocks: either mapped to consecutive locations of
// one object, from Loc, or all unmapped, with Loc 0.
type Run struct {
	Block uint64
	N     uint32 // blocks
	Loc   layout.Location
}

// New returns the map of an empty volume of the given number of blocks.
func New(blocks uint64) *Map {
	n := (blocks + LeafBlocks - 1) / LeafBlocks
	m := &Map{
		blocks: blocks,
		dir:    make([]atomic.Pointer[Leaf], n),
		state:  make([]leafState, n),
		gen:    1,
		pool:   new(pool),
	}
	runtime.AddCleanup(m, (*pool).free, m.pool)
	return m
}

// Blocks returns the size of the volume.
func (m *Map) Blocks() uint64 { return m.blocks }

// Mapped returns the number of mapped blocks. A writer may run meanwhile.
func (m *Map) Mapped() uint64 { return m.mapped.Load() }

// Bytes returns about how much memory the map takes, without the leaves that
// only a Frozen still holds. A writer may run meanwhile.
func (m *Map) Bytes() int64 {
	return int64(len(m.dir))*16 + m.dense.Load()*leafBytes + m.spans.Load()*spanBytes
}

// Get returns where block lies; 0 if it is unmapped. A writer may run meanwhile.
func (m *Map) Get(block uint64) layout.Location {
	slot := &m.dir[block/LeafBlocks]
	for {
		leaf := slot.Load()
		if leaf == nil {
			return 0
		}
		loc := leaf.load(block % LeafBlocks)
		runtime.KeepAlive(m) // else its arrays may be gone before they are read
		if leaf.entries == nil || slot.Load() == leaf {
			return loc
		}
	}
}

// Lookup appends to runs the runs of [block, block+n), in order and without
// gaps, each as long as the range allows. A writer may run meanwhile: each
// entry is read atomically, the range as a whole is not.
func (m *Map) Lookup(block uint64, n uint32, runs []Run) []Run {
	m.check(block, uint64(n))
	first := len(runs) // the runs that the caller has already are not extended
	for n > 0 {
		c := min(n, LeafBlocks-uint32(block%LeafBlocks))
		runs = m.lookupLeaf(block, c, runs, first)
		block += uint64(c)
		n -= c
	}
	return runs
}

// lookupLeaf appends the runs of the n blocks from block, which lie in one leaf.
func (m *Map) lookupLeaf(block uint64, n uint32, runs []Run, first int) []Run {
	slot := &m.dir[block/LeafBlocks]
	before := len(runs)
	var last Run // may be extended
	if before > first {
		last = runs[before-1]
	}
	for {
		leaf := slot.Load()
		if leaf == nil {
			return appendRun(runs, first, Run{Block: block, N: n})
		}
		runs = leaf.lookup(block, n, runs, first)
		runtime.KeepAlive(m) // as in Get
		if leaf.entries == nil || slot.Load() == leaf {
			return runs
		}
		if runs = runs[:before]; before > first {
			runs[before-1] = last
		}
	}
}

// Shared reports whether a live Frozen may reference what was last changed when
// Generation was gen. By the same rule, data that is frozen together with the
// map can be copied on write. Only writers may call it.
func (m *Map) Shared(gen uint32) bool { return gen < m.unfrozen.Load() }

// Generation returns the number that the next Freeze will get. Only writers may
// call it.
func (m *Map) Generation() uint32 { return m.gen }

// Freeze takes a snapshot of the map. It copies the directory and shares the
// leaves. Every Frozen must be released, or each leaf that changes is copied
// once for nothing. Freeze is for writers only.
func (m *Map) Freeze() *Frozen {
	f := &Frozen{m: m, gen: m.gen, dir: make([]*Leaf, len(m.dir)), state: slices.Clone(m.state)}
	for i := range m.dir {
		f.dir[i] = m.dir[i].Load()
	}
	m.gen++
	m.freezes.Lock()
	defer m.freezes.Unlock()
	m.live = append(m.live, f.gen)
	m.unfrozen.Store(f.gen + 1)
	return f
}

// release forgets the freeze gen, and frees the arrays that no other needs.
func (m *Map) release(gen uint32) {
	for _, r := range m.forget(gen) {
		m.pool.put(r.entries)
	}
}

// forget forgets the freeze gen, and returns the arrays that no other needs. The
// mutex also orders the reads of the Frozen before the changes that a writer then
// makes in place.
func (m *Map) forget(gen uint32) []replacedArray {
	m.freezes.Lock()
	defer m.freezes.Unlock()
	if i, ok := slices.BinarySearch(m.live, gen); ok {
		m.live = slices.Delete(m.live, i, i+1)
	}
	// A leaf in the directory is referenced by a freeze if it was last changed
	// before that freeze, so the newest live one decides.
	newest, free := uint32(0), len(m.replaced)
	if n := len(m.live); n > 0 {
		newest = m.live[n-1] + 1
		free = sort.Search(free, func(i int) bool { return m.replaced[i].before > m.live[0] })
	}
	m.unfrozen.Store(newest)
	unused := m.replaced[:free]
	if m.replaced = m.replaced[free:]; len(m.replaced) == 0 {
		m.replaced = nil
	}
	return unused
}

// check panics if the range is not within the volume; the caller must have
// refused it long before. An entry past the end would never be looked up, but
// would keep its object alive.
func (m *Map) check(block, n uint64) {
	if block > m.blocks || n > m.blocks-block {
		panic(fmt.Sprintf("sectormap: %d blocks at %d are outside of a map of %d", n, block, m.blocks))
	}
}

func appendRun(runs []Run, first int, r Run) []Run {
	if len(runs) > first {
		last := &runs[len(runs)-1]
		if r.Loc == 0 && last.Loc == 0 || last.Loc != 0 && follows(last.Loc, last.N, r.Loc) {
			last.N += r.N
			return runs
		}
	}
	return append(runs, r)
}

// follows reports whether next comes right after the n locations from loc.
// Index 0 follows nothing: the location before it belongs to another object.
func follows(loc layout.Location, n uint32, next layout.Location) bool {
	return next == loc+layout.Location(n) && next.Index() != 0
}
