package mapproxy

import (
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// Objects returns the objects of the table with keys in [from, from+n),
// ascending, and reports whether there are keys beyond. It is a bounded step of
// a scan: between two steps the caller may release its lock.
func (p *Proxy) Objects(from key.Key, n int) (infos []layout.ObjectInfo, more bool) {
	end := min(from+key.Key(n), p.objects.next)
	for k := from; k < end; k++ {
		if o := p.objects.find(k); o != nil {
			infos = append(infos, o.info(k))
		}
	}
	return infos, end < p.objects.next
}

// RemoveObject takes object k, which has no live blocks, out of the table once
// it is deleted from the store.
func (p *Proxy) RemoveObject(k key.Key) { p.objects.remove(k) }

func (t *table) remove(k key.Key) {
	if t.find(k) == nil {
		return
	}
	o := t.at(k)
	t.count--
	t.total -= uint64(o.total)
	*o = object{}
	pg := t.pages[k/pageObjects]
	for i := range pg.objects {
		if pg.objects[i].here {
			return
		}
	}
	t.pages[k/pageObjects] = nil
}
