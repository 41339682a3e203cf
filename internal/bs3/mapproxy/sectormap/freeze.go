package sectormap

// Frozen is the map as it was at one moment. It may be read, by any number of
// goroutines, until it is released.
type Frozen struct {
	m     *Map
	gen   uint32
	dir   []*Leaf
	state []leafState
}

// Blocks is the size of the volume.
func (f *Frozen) Blocks() uint64 { return f.m.blocks }

// Leaves is the number of leaves, empty ones among them.
func (f *Frozen) Leaves() int { return len(f.dir) }

// Leaf gives leaf i, which maps the blocks from i*LeafBlocks; nil if none of
// them is mapped. It must not be used after Release.
func (f *Frozen) Leaf(i int) *Leaf { return f.dir[i] }

// Generation is the number of this freeze; later ones have higher numbers,
// and the first has 1.
func (f *Frozen) Generation() uint32 { return f.gen }

// LeafGeneration tells whether leaf i has changed since an earlier freeze: it
// has not if this is at most that one's Generation. It is 0 if the leaf is as
// it was loaded at open. It says nothing of an empty leaf.
func (f *Frozen) LeafGeneration(i int) uint32 { return f.state[i].gen }

// Release ends the copying that f causes. It needs no lock and may be called
// again, but nothing of f may be used from then on.
func (f *Frozen) Release() {
	f.m.release(f.gen)
}
