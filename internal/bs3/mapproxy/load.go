package mapproxy

import (
	"fmt"

	"bs3/internal/bs3/layout"
)

// LoadLeaf fills an empty leaf of the map from a checkpoint, at open (different
// leaves may be loaded concurrently, while nothing else uses the map), after
// the objects of its table were added with their live counts. If an entry lies
// in no object of the table, the checkpoint is damaged: LoadLeaf returns an
// error and loads nothing.
func (p *Proxy) LoadLeaf(leaf int, entries []layout.Location) error {
	for i, loc := range entries {
		if !loc.Mapped() {
			continue
		}
		if o := p.objects.find(loc.Key()); o == nil || loc.Index() >= o.total {
			return fmt.Errorf("map: leaf %d, entry %d: no object of the table has block %d of object %d",
				leaf, i, loc.Index(), loc.Key())
		}
	}
	p.m.Load(leaf, entries)
	return nil
}

// Apply replays one stored object: it enters it into the table and applies its
// records in order. The objects of a log, applied in the order of their keys,
// yield the map and the table that the writers of the log had.
func (p *Proxy) Apply(o *layout.Object) {
	p.AddObject(layout.ObjectInfo{Key: o.Key, Epoch: o.Epoch, Total: o.Blocks, Fence: o.Fence})
	for _, r := range o.Records {
		n := p.clip(r)
		if n == 0 {
			continue
		}
		switch r.Kind {
		case layout.KindWrite:
			p.Write(r.Block, n, layout.Loc(o.Key, r.Index))
		case layout.KindZero:
			for u := p.Zero(r.Block, uint64(n)); !p.Settle(u); {
				continue
			}
		case layout.KindMove:
			to := layout.Loc(o.Key, r.Index)
			for i := range n {
				p.Move(r.Block+uint64(i), r.Source.Add(i), to.Add(i))
			}
		}
	}
}

// clip returns how many blocks of r lie in the volume, which may have been
// larger when r was written.
func (p *Proxy) clip(r layout.Record) uint32 {
	if r.Block >= p.Blocks() {
		return 0
	}
	return uint32(min(uint64(r.Blocks), p.Blocks()-r.Block))
}
