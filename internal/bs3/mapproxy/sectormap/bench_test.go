package sectormap

import (
	"math/rand/v2"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// A volume of 1 TiB with a mapped block in every leaf has all its leaves: 2 GiB.
// So have these benchmarks.

// objectBlocks is the size of the objects that the maps point to.
const objectBlocks = 1024

const drawn = 1 << 20

// places are random blocks, drawn beforehand.
func places(below uint64) []uint64 {
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]uint64, drawn)
	for i := range p {
		p[i] = r.Uint64N(below)
	}
	return p
}

// fill maps [block, block+n) to objects one after the other.
func fill(m *Map, block, n uint64) {
	for b := block; b < block+n; b += objectBlocks {
		m.Set(b, objectBlocks, layout.Loc(key.Key(b/objectBlocks), 0), nil)
	}
}

// sparse returns a map of 1 TiB that has all its leaves, as arrays of entries.
func sparse() *Map {
	m := New(tebibyte)
	for b := uint64(0); b < tebibyte; b += LeafBlocks {
		scatter(m, b)
	}
	return m
}

// runs returns a map of 1 TiB whose leaves have 16 spans each.
func runs() *Map {
	m := New(tebibyte)
	for b := uint64(0); b < tebibyte; b += 256 {
		m.Set(b, 256, layout.Loc(key.Key(b*7919%tebibyte), 0), nil)
	}
	return m
}

func BenchmarkGet(b *testing.B) {
	for name, build := range map[string]func() *Map{"entries": sparse, "spans": runs} {
		b.Run(name, func(b *testing.B) {
			m, at := build(), places(tebibyte)
			b.ReportMetric(float64(m.Bytes())/(1<<20), "MiB")
			i := 0
			for b.Loop() {
				m.Get(at[i%drawn])
				i++
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, c := range []struct {
		name string
		make func() *Map
		n    uint32
	}{
		{"1 block of 1 TiB", sparse, 1},
		{"64 blocks of 1 TiB", sparse, 64},
		{"64 blocks, one run", func() *Map {
			m := New(1 << 22)
			fill(m, 0, m.Blocks())
			return m
		}, 64},
		{"64 blocks, 64 runs", func() *Map {
			m := New(1 << 22)
			for b := range m.Blocks() {
				m.Set(b, 1, layout.Loc(key.Key(b%97), uint32(b)), nil)
			}
			return m
		}, 64},
		{"hole of 1 TiB", func() *Map { return New(tebibyte) }, tebibyte - 64},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := c.make()
			at := places(m.Blocks() - uint64(c.n) + 1)
			runs := make([]Run, 0, 64)
			i := 0
			for b.Loop() {
				runs = m.Lookup(at[i%drawn], c.n, runs[:0])
				i++
			}
		})
	}
}

// One block at a random place, over a map that has all leaves.
func BenchmarkSet(b *testing.B) {
	m, at := sparse(), places(tebibyte)
	var dead uint64
	old := func(_ layout.Location, n uint32) { dead += uint64(n) }
	i := 0
	for b.Loop() {
		m.Set(at[i%drawn], 1, layout.Loc(9, uint32(i%objectBlocks)), old)
		i++
	}
}

// The same, with a Frozen for which each leaf is copied once.
func BenchmarkSetFrozen(b *testing.B) {
	m := New(1 << 22)
	for b := uint64(0); b < m.Blocks(); b += LeafBlocks {
		scatter(m, b)
	}
	var f *Frozen
	i := uint64(0)
	for b.Loop() {
		if i%1024 == 0 {
			if f != nil {
				f.Release()
			}
			f = m.Freeze()
		}
		m.Set(i%1024*LeafBlocks, 1, layout.Loc(9, 0), nil)
		i++
	}
}

// One discard record of the largest size.
func BenchmarkUnmap(b *testing.B) {
	b.Run("empty", func(b *testing.B) {
		m := New(tebibyte)
		for b.Loop() {
			m.Unmap(layout.MaxZeroBlocks, layout.MaxZeroBlocks, nil, nil)
		}
	})
	for _, c := range []struct {
		name  string
		first uint64
	}{
		{"full", 0},
		{"full, in the middle of leaves", LeafBlocks / 2},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := New(2 * layout.MaxZeroBlocks)
			fill(m, 0, m.Blocks())
			var gone []*Leaf
			var dead uint64
			for b.Loop() {
				gone = gone[:0]
				m.Unmap(c.first, layout.MaxZeroBlocks,
					func(_ layout.Location, n uint32) { dead += uint64(n) },
					func(l *Leaf) { gone = append(gone, l) })
				b.StopTimer()
				// Filling it all again would take a thousand times as long.
				i := (c.first + LeafBlocks - 1) / LeafBlocks
				for _, l := range gone {
					m.dir[i].Store(l)
					m.state[i] = leafState{gen: m.gen, mapped: LeafBlocks}
					m.mapped.Add(LeafBlocks)
					m.spans.Add(int64(len(l.spans)))
					i++
				}
				if c.first > 0 {
					fill(m, 0, LeafBlocks)
					fill(m, layout.MaxZeroBlocks, LeafBlocks)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkFreeze(b *testing.B) {
	m := sparse()
	for b.Loop() {
		m.Freeze().Release()
	}
}
