package sectormap

// Frozen is the map as it was at one moment. It may be read, by any number of
// goroutines, until it is released.
type Frozen struct {
	m     *Map
	gen   uint32
	dir   []*Leaf
	state []leafState
}

// Blocks returns the size of the volume.
func (f *Frozen) Blocks() uint64 { return f.m.blocks }

// Leaves returns the number of leaves, including empty ones.
func (f *Frozen) Leaves() int { return len(f.dir) }

// Leaf returns leaf i, which maps the blocks from i*LeafBlocks; nil if none of
// them is mapped. The leaf must not be used after Release.
func (f *Frozen) Leaf(i int) *Leaf { return f.dir[i] }

// Generation returns the number of this freeze. The first one has 1, later ones
// have higher numbers.
func (f *Frozen) Generation() uint32 { return f.gen }

// LeafGeneration returns the number of the first freeze after the last change
// of leaf i; 0 if the leaf is as it was loaded at open. The leaf is as it was in
// an earlier freeze if that is at most the Generation of the earlier one. It has
// no meaning for an empty leaf.
func (f *Frozen) LeafGeneration(i int) uint32 { return f.state[i].gen }

// Release ends the copying that f causes. It needs no lock and may be called
// more than once. Nothing of f may be used afterwards.
func (f *Frozen) Release() { f.m.release(f.gen) }
