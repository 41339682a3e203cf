package mapproxy

import (
	"fmt"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

// Frozen is the map and the object table as they were at one moment, for a
// checkpoint. It may be read without a lock until it is released.
type Frozen struct {
	m         *sectormap.Frozen
	objects   table
	unsettled [][]*sectormap.Leaf
}

// Freeze takes a snapshot of the map and the table in one step. It copies the
// directories of both; what they point to is copied when it changes. The
// caller must release every Frozen.
func (p *Proxy) Freeze() *Frozen {
	f := &Frozen{m: p.m.Freeze(), objects: p.objects.freeze()}
	for u := range p.unsettled {
		f.unsettled = append(f.unsettled, u.leaves)
	}
	return f
}

// Map returns the frozen map.
func (f *Frozen) Map() *sectormap.Frozen { return f.m }

// Objects returns the object table, by ascending key. Its live counts are
// exact: it settles in its copy what was unsettled at the moment of the freeze.
func (f *Frozen) Objects() []layout.ObjectInfo {
	if len(f.unsettled) == 0 {
		return f.objects.list()
	}
	settled := f.objects.clone()
	for _, leaves := range f.unsettled {
		for _, leaf := range leaves {
			leaf.Each(func(loc layout.Location, n uint32) { settled.find(loc.Key()).live -= n })
		}
	}
	return settled.list()
}

// Verify counts the live blocks of all objects anew, in one pass over the map,
// and returns an error that names the first object whose count in the table
// differs or that is not in the table. An object with live blocks that counts
// as dead would be deleted.
func (f *Frozen) Verify() error {
	counted := f.objects.clone()
	for _, pg := range counted.pages {
		if pg != nil {
			for i := range pg.objects {
				pg.objects[i].live = 0
			}
		}
	}
	var err error
	for i := range f.m.Leaves() {
		if leaf := f.m.Leaf(i); leaf != nil {
			leaf.Each(func(loc layout.Location, n uint32) {
				if o := counted.find(loc.Key()); o != nil {
					o.live += n
				} else if err == nil {
					err = fmt.Errorf("map: leaf %d: object %d is not in the table", i, loc.Key())
				}
			})
		}
	}
	if err != nil {
		return err
	}
	for _, info := range f.Objects() {
		if want := counted.find(info.Key).live; info.Live != want {
			return fmt.Errorf("object table: object %d has %d live blocks, not %d", info.Key, want, info.Live)
		}
	}
	return nil
}

// Release ends the copying that f causes. It needs no lock and may be called
// more than once. Nothing of f may be used afterwards.
func (f *Frozen) Release() { f.m.Release() }
