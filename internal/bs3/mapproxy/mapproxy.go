// Package mapproxy is the engine's way to its map: where each block lies
// (sectormap), and how many live blocks each object of the log still has (the
// object table), which decides what garbage collection may take. The two
// change together, so that the map and the live counts are a pure function of
// the log: Apply gives on replay exactly what Write, Zero and Move gave live.
//
// Foreground lookups and updates go straight to the map. Lookups need no lock
// and run beside updates. All other methods, unless they say otherwise, are
// serialised by the caller: they are called under the engine's chunk lock,
// which is what orders the log.
//
// A Zero of whole leaves takes them out of the map at once and counts their
// blocks off later, a leaf at a time (Settle), so until then the live counts
// of the table are too high, never too low. A Frozen has none of that lag.
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

	unsettled map[*Unsettled]struct{} // with leaves that are still to be counted off

	// What the map calls back, made once: a method value made for each write
	// would allocate.
	overwritten func(loc layout.Location, n uint32)
}

// New gives the proxy of an empty volume of that many blocks.
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

// Blocks is the size of the volume. It needs no lock.
func (p *Proxy) Blocks() uint64 { return p.m.Blocks() }

// Lookup appends to runs where the blocks [block, block+n) lie, as
// sectormap.Map.Lookup does. It needs no lock.
func (p *Proxy) Lookup(block uint64, n uint32, runs []sectormap.Run) []sectormap.Run {
	return p.m.Lookup(block, n, runs)
}

// Get says where block lies; 0 if it is unmapped. It needs no lock.
func (p *Proxy) Get(block uint64) layout.Location { return p.m.Get(block) }

// Mapped is the number of blocks that are mapped. It needs no lock.
func (p *Proxy) Mapped() uint64 { return p.m.Mapped() }

// Bytes is the memory that the map takes. It needs no lock.
func (p *Proxy) Bytes() int64 { return p.m.Bytes() }

// AddObject enters an object into the table, before anything is mapped to it.
// Its key must be above all that were added before. For a new object of the
// log Live is 0: the writes count.
func (p *Proxy) AddObject(info layout.ObjectInfo) { p.objects.add(info) }

// SetTotal says how many data blocks object k has, once it is sealed.
func (p *Proxy) SetTotal(k key.Key, total uint32) { p.objects.setTotal(k, total) }

// Write maps the n blocks from block to loc and the locations after it, in an
// object that was added, and counts what they were mapped to before as dead.
func (p *Proxy) Write(block uint64, n uint32, loc layout.Location) {
	p.objects.born(loc.Key(), n)
	p.m.Set(block, n, loc, p.overwritten)
}

// Zero unmaps the n blocks from block. If it returns an Unsettled that is not
// nil, the caller must call Settle for it until that is done.
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

// Unsettled is what a Zero took out of the map as whole leaves, and which the
// object table still counts as live.
type Unsettled struct {
	leaves []*sectormap.Leaf // a Frozen may share the array: never written to, only cut from the front
}

// Settle counts the blocks of one more leaf of pending as dead, and says
// whether that was all of it. Between two calls the caller lets others have
// its lock. Settle(nil) is done.
func (p *Proxy) Settle(pending *Unsettled) (done bool) {
	if pending == nil || len(pending.leaves) == 0 {
		return true
	}
	pending.leaves[0].Each(p.overwritten)
	pending.leaves = pending.leaves[1:]
	if len(pending.leaves) > 0 {
		return false
	}
	delete(p.unsettled, pending)
	return true
}

// Move maps block to to, in an object that was added, if it is mapped to from
// still, and says whether it was.
func (p *Proxy) Move(block uint64, from, to layout.Location) bool {
	if p.m.Get(block) != from {
		return false
	}
	p.Write(block, 1, to)
	return true
}

// Object gives what the table knows of object k, and whether it is there.
func (p *Proxy) Object(k key.Key) (layout.ObjectInfo, bool) { return p.objects.get(k) }

// Totals sums up: the objects in the table, their live blocks, and the data
// blocks of those that are sealed. Of live, nothing is unsettled.
func (p *Proxy) Totals() (objects int, live, total uint64) {
	return p.objects.count, p.m.Mapped(), p.objects.total
}
