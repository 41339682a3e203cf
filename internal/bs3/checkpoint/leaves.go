package checkpoint

import (
	"context"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/volume"
)

const (
	// packBytes is about how large a pack of leaves gets.
	packBytes = 8 << 20
	// packAge is after how many checkpoints a pack is written again, so that no
	// leaf depends for ever on one object.
	packAge = 64
)

// pack is a pack of leaves that the last checkpoint uses.
type pack struct{ layout.PackRef }

// leafAt says where the last committed checkpoint has a leaf; no pack: empty.
type leafAt struct {
	pack   *pack
	offset uint64
	length uint32
	crc    uint32
}

// leavesOf returns where c has its leaves.
func leavesOf(c volume.Checkpoint, leaves int) []leafAt {
	packs := make([]*pack, len(c.Packs))
	for i, p := range c.Packs {
		packs[i] = &pack{p}
	}
	at := make([]leafAt, leaves)
	for _, l := range c.Leaves {
		at[l.Leaf] = leafAt{packs[l.Pack], l.Offset, l.Length, l.CRC}
	}
	return at
}

// stored is where the leaves of a map lie that was stored or loaded: those that
// have not changed since need not be stored again.
type stored struct {
	leaves []leafAt
	at     uint32 // the freeze of the map that was stored; 0 = it was loaded
}

// putPack stores a pack of leaves under a name that was never used, which it
// returns.
type putPack func(ctx context.Context, pack []byte) (name string, err error)

// storeLeaves stores the leaves that have changed since last in new packs, notes in
// c where all leaves are, and returns the same for the next one. A pack that is old,
// or of which less than half is still used, is not used again: its leaves are
// written anew.
func storeLeaves(ctx context.Context, c *layout.Checkpoint, m *sectormap.Frozen, last stored, put putPack) ([]leafAt, error) {
	at := make([]leafAt, m.Leaves())
	used := make(map[*pack]uint64)
	for i := range at {
		if i >= len(last.leaves) || m.Leaf(i) == nil || m.LeafGeneration(i) > last.at {
			continue
		}
		// A leaf that maps nothing may be missing there: the map may have been read
		// from a checkpoint before that one.
		if at[i] = last.leaves[i]; at[i].pack != nil {
			used[at[i].pack] += uint64(at[i].length)
		}
	}
	kept := make(map[*pack]*pack) // as the last checkpoint had it, to as this one has it
	for p, n := range used {
		if p.Age+1 < packAge && 2*n >= p.Size-layout.PackHeaderSize {
			kept[p] = &pack{layout.PackRef{Name: p.Name, Size: p.Size, Age: p.Age + 1}}
		}
	}
	w := packWriter{uuid: c.UUID, put: put}
	entries := make([]layout.Location, layout.LeafBlocks)
	for i := range at {
		leaf := m.Leaf(i)
		if leaf == nil {
			continue
		}
		if p := kept[at[i].pack]; p != nil {
			at[i].pack = p
			continue
		}
		leaf.Entries(entries)
		var err error
		if at[i], err = w.add(ctx, entries); err != nil {
			return nil, err
		}
	}
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	number := make(map[*pack]uint32)
	for i, l := range at {
		if l.pack == nil {
			continue
		}
		n, ok := number[l.pack]
		if !ok {
			n = uint32(len(c.Packs))
			number[l.pack] = n
			c.Packs = append(c.Packs, l.pack.PackRef)
		}
		c.Leaves = append(c.Leaves, layout.LeafRef{Leaf: uint32(i), Pack: n, Offset: l.offset, Length: l.length, CRC: l.crc})
	}
	return at, nil
}

// packWriter gathers leaves into packs and stores them.
type packWriter struct {
	uuid layout.UUID
	put  putPack
	buf  []byte
	cur  *pack // gets its name when it is stored
}

func (w *packWriter) add(ctx context.Context, entries []layout.Location) (leafAt, error) {
	if w.cur == nil {
		w.cur, w.buf = new(pack), layout.AppendPackHeader(w.buf[:0], w.uuid)
	}
	from := len(w.buf)
	w.buf = layout.AppendLeaf(w.buf, entries)
	l := leafAt{w.cur, uint64(from), uint32(len(w.buf) - from), layout.CRC(w.buf[from:])}
	if len(w.buf) >= packBytes {
		return l, w.flush(ctx)
	}
	return l, nil
}

func (w *packWriter) flush(ctx context.Context) error {
	if w.cur == nil {
		return nil
	}
	name, err := w.put(ctx, w.buf)
	if err != nil {
		return err
	}
	w.cur.PackRef = layout.PackRef{Name: name, Size: uint64(len(w.buf))}
	// The store may read the buffer after its answer (objproxy.Body): no reuse.
	w.cur, w.buf = nil, nil
	return nil
}
