// Package mapproxy keeps the map of a volume: where each block lies
// (sectormap), and how many live blocks each object of the log still has (the
// object table), which decides what garbage collection may take. The two
// change together, so the map and the live counts are a pure function of the
// log: Apply, on replay, has exactly the effect that Write, Zero and Move had.
//
// Concurrency. The methods of a View need no lock and may run while the map
// changes. The caller serialises all others unless they say otherwise, in the
// order of the log.
//
// A Zero of whole leaves takes them out of the map at once and subtracts their
// blocks from the live counts later, a leaf at a time (Settle). Until then the
// live counts of the table are too high, never too low. A Frozen has no such
// lag.
package mapproxy

import (
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

// Proxy is the map and the object table of one volume.
type Proxy struct {
	m       *sectormap.Map
	objects table

	unsettled map[*Unsettled]struct{} // those that Settle has not finished

	// overwritten is objects.dead, for the map to call back. It is made once,
	// because a method value made for each write would allocate.
	overwritten func(loc layout.Location, n uint32)
}

// New returns the proxy of an empty volume of the given number of blocks.
func New(blocks uint64) *Proxy {
	m := sectormap.New(blocks)
	p := &Proxy{
		m:         m,
		objects:   table{m: m},
		unsettled: make(map[*Unsettled]struct{}),
	}
	p.overwritten = p.objects.dead
	return p
}

// Blocks returns the size of the volume. It needs no lock.
func (p *Proxy) Blocks() uint64 { return p.m.Blocks() }

// Lookup appends to runs where the blocks [block, block+n) lie, as
// sectormap.Map.Lookup does. It needs no lock.
func (p *Proxy) Lookup(block uint64, n uint32, runs []sectormap.Run) []sectormap.Run {
	return p.m.Lookup(block, n, runs)
}

// Get returns where block lies; 0 if it is unmapped. It needs no lock.
func (p *Proxy) Get(block uint64) layout.Location { return p.m.Get(block) }

// Mapped returns the number of blocks that are mapped. It needs no lock.
func (p *Proxy) Mapped() uint64 { return p.m.Mapped() }

// Bytes returns the memory that the map takes. It needs no lock.
func (p *Proxy) Bytes() int64 { return p.m.Bytes() }

// AddObject enters an object into the table, before anything is mapped to it.
// Its key must be above all keys added before. For a new object of the log,
// Live is 0: Write and Move count its blocks.
func (p *Proxy) AddObject(info layout.ObjectInfo) { p.objects.add(info) }

// SetTotal records how many data blocks object k has, once it is sealed.
func (p *Proxy) SetTotal(k key.Key, total uint32) { p.objects.setTotal(k, total) }

// Write maps the n blocks from block to loc and the locations after it, in an
// object that was added, and counts what they were mapped to before as dead.
func (p *Proxy) Write(block uint64, n uint32, loc layout.Location) {
	p.objects.born(loc.Key(), n)
	p.m.Set(block, n, loc, p.overwritten)
}

// Zero unmaps the n blocks from block. If the Unsettled it returns is not nil,
// the caller must pass it to Settle until Settle reports that it is done.
func (p *Proxy) Zero(block, n uint64) *Unsettled {
	var u *Unsettled
	p.m.Unmap(block, n, p.overwritten, func(leaf *sectormap.Leaf) {
		if u == nil {
			u = new(Unsettled)
		}
		u.leaves = append(u.leaves, leaf)
	})
	if u != nil {
		p.unsettled[u] = struct{}{}
	}
	return u
}

// Unsettled holds the leaves that a Zero took out of the map as a whole, and
// whose blocks the object table still counts as live.
type Unsettled struct {
	leaves []*sectormap.Leaf // a Frozen may share the array, so it is only cut from the front, never written to
}

// Settle counts the blocks of one more leaf of pending as dead, and reports
// whether that was the last one. Between two calls the caller may release its
// lock. Settle(nil) is done.
func (p *Proxy) Settle(pending *Unsettled) (done bool) {
	if pending == nil || len(pending.leaves) == 0 {
		return true
	}
	pending.leaves[0].Each(p.overwritten)
	p.m.Free(pending.leaves[0])
	pending.leaves = pending.leaves[1:]
	if len(pending.leaves) > 0 {
		return false
	}
	delete(p.unsettled, pending)
	return true
}

// Move maps block to the location to, in an object that was added, if it is
// still mapped to from, and reports whether it was.
func (p *Proxy) Move(block uint64, from, to layout.Location) bool {
	if p.m.Get(block) != from {
		return false
	}
	p.Write(block, 1, to)
	return true
}

// Fold gives back memory of the map around block that it does not need any more, where
// what was scattered has come together. What is mapped where does not change.
func (p *Proxy) Fold(block uint64) { p.m.Fold(block) }

// Object returns what the table knows of object k, and whether k is in it.
func (p *Proxy) Object(k key.Key) (layout.ObjectInfo, bool) { return p.objects.get(k) }

// Totals returns the number of objects in the table, of their live blocks, and
// of the data blocks of those that are sealed. The live blocks are exact, also
// while a Zero is not settled.
func (p *Proxy) Totals() (objects int, live, total uint64) {
	return p.objects.count, p.m.Mapped(), p.objects.total
}
