package mapproxy

import (
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

// View is the part of a Proxy that needs no lock: what may be called while the
// map changes. Everything else is for whoever serialises the changes.
type View struct{ m *sectormap.Map }

// View returns the part of p that needs no lock.
func (p *Proxy) View() View { return View{p.m} }

// Blocks returns the size of the volume.
func (v View) Blocks() uint64 { return v.m.Blocks() }

// Mapped returns the number of blocks that are mapped.
func (v View) Mapped() uint64 { return v.m.Mapped() }

// Bytes returns the memory that the map takes, about.
func (v View) Bytes() int64 { return v.m.Bytes() }

// Get returns where block lies; 0 if it is unmapped.
func (v View) Get(block uint64) layout.Location { return v.m.Get(block) }

// Lookup appends to runs where the blocks [block, block+n) lie, as
// sectormap.Map.Lookup does.
func (v View) Lookup(block uint64, n uint32, runs []sectormap.Run) []sectormap.Run {
	return v.m.Lookup(block, n, runs)
}
