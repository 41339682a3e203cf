package mapproxy

import (
	"fmt"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

// pageObjects is the number of keys of one page of the table: 24 KiB, of which
// 256 describe 1 TiB in objects of 4 MiB.
const pageObjects = 1 << 10

// table is the object table: pages of objects by key, copied on write if a
// frozen view shows them. It is frozen together with the map, whose numbering
// of freezes thus says which pages are shared.
type table struct {
	m     *sectormap.Map
	pages []*page // by key / pageObjects; nil: no object there
	next  key.Key // above all that were added
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

// slot gives the place of k, in a page that is there, for changing it.
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

// at gives the entry of k, which was added, for changing it.
func (t *table) at(k key.Key) *object {
	o := t.slot(k)
	if !o.here {
		// Counted now, it would start from zero again when it is added.
		panic(fmt.Sprintf("mapproxy: object %d changes before it is added", k))
	}
	return o
}

// find gives the entry of k, for reading it; nil if it is not there.
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

// dead takes n blocks off the live ones of the object at loc.
// One that a discard detached and that was deleted before that was settled is
// not there any more.
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

// list gives all objects, by ascending key.
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

// freeze gives a view of the table, to be read only. The map was frozen in the
// same step, and that is what makes the pages shared from now on.
func (t *table) freeze() table {
	return table{pages: slices.Clone(t.pages), count: t.count}
}

// clone gives a copy of a frozen table that shares nothing with it.
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
