package mapproxy

import (
	"fmt"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

// pageObjects is the number of keys of one page of the table. A page takes
// 24 KiB; 256 pages describe 1 TiB in objects of 4 MiB.
const pageObjects = 1 << 10

// table is the object table: pages of objects by key, copied on write if a
// Frozen shares them. It is frozen together with the map, so the map's
// numbering of freezes tells which pages are shared.
type table struct {
	m     *sectormap.Map
	pages []*page // by key / pageObjects; nil: no object there
	next  key.Key // above all keys that were added
	count int     // objects
	total uint64  // blocks, of all objects
}

type page struct {
	gen     uint32 // the freeze before which the page was made
	objects [pageObjects]object
}

type object struct {
	epoch       uint64
	live, total uint32 // blocks
	here, fence bool
}

// slot returns the place of k, in a page that exists, to be changed.
func (t *table) slot(k key.Key) *object {
	pg := t.pages[k/pageObjects]
	if t.m.Shared(pg.gen) {
		fresh := *pg
		fresh.gen = t.m.Generation()
		pg = &fresh
		t.pages[k/pageObjects] = pg
	}
	return &pg.objects[k%pageObjects]
}

// at returns the entry of k, which was added, to be changed.
func (t *table) at(k key.Key) *object {
	o := t.slot(k)
	if !o.here {
		// What is counted now would be lost when k is added.
		panic(fmt.Sprintf("mapproxy: object %d changes before it is added", k))
	}
	return o
}

// find returns the entry of k, to be read only; nil if there is none.
func (t *table) find(k key.Key) *object {
	i := k / pageObjects
	if i >= key.Key(len(t.pages)) || t.pages[i] == nil {
		return nil
	}
	if o := &t.pages[i].objects[k%pageObjects]; o.here {
		return o
	}
	return nil
}

func (t *table) add(info layout.ObjectInfo) {
	if info.Key < t.next {
		panic(fmt.Sprintf("mapproxy: object %d is added when the next is %d", info.Key, t.next))
	}
	i := int(info.Key / pageObjects)
	for len(t.pages) <= i {
		t.pages = append(t.pages, nil)
	}
	if t.pages[i] == nil {
		t.pages[i] = &page{gen: t.m.Generation()}
	}
	*t.slot(info.Key) = object{
		epoch: info.Epoch, live: info.Live, total: info.Total,
		here: true, fence: info.Fence,
	}
	t.next = info.Key + 1
	t.count++
	t.total += uint64(info.Total)
}

func (t *table) setTotal(k key.Key, total uint32) {
	o := t.at(k)
	t.total += uint64(total) - uint64(o.total)
	o.total = total
}

// born counts n blocks of object k as live.
func (t *table) born(k key.Key, n uint32) { t.at(k).live += n }

// dead subtracts n blocks from the live ones of the object at loc. The object
// may be gone: it may have been deleted while a Zero that unmapped its last
// blocks was not settled yet.
func (t *table) dead(loc layout.Location, n uint32) {
	if t.find(loc.Key()) != nil {
		t.at(loc.Key()).live -= n
	}
}

func (t *table) get(k key.Key) (layout.ObjectInfo, bool) {
	o := t.find(k)
	if o == nil {
		return layout.ObjectInfo{}, false
	}
	return o.info(k), true
}

func (o *object) info(k key.Key) layout.ObjectInfo {
	return layout.ObjectInfo{Key: k, Epoch: o.epoch, Live: o.live, Total: o.total, Fence: o.fence}
}

// list returns all objects, by ascending key.
func (t *table) list() []layout.ObjectInfo {
	infos := make([]layout.ObjectInfo, 0, t.count)
	for i, pg := range t.pages {
		if pg == nil {
			continue
		}
		for j := range pg.objects {
			if o := &pg.objects[j]; o.here {
				infos = append(infos, o.info(key.Key(i*pageObjects+j)))
			}
		}
	}
	return infos
}

// freeze returns a snapshot of the table, to be read only. The map is frozen
// in the same step, and its number of freezes marks the pages as shared.
func (t *table) freeze() table {
	return table{pages: slices.Clone(t.pages), count: t.count}
}

// clone returns a copy of a frozen table that shares nothing with it.
func (t *table) clone() table {
	c := t.freeze()
	for i, pg := range c.pages {
		if pg != nil {
			fresh := *pg
			c.pages[i] = &fresh
		}
	}
	return c
}
