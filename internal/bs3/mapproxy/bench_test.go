package mapproxy

import (
	"math/rand/v2"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

const (
	benchBlocks  = 1 << 24 // 64 GiB
	objectBlocks = 1024
)

// filled returns a volume that was written once, as a whole and in order.
func filled() (p *Proxy, next key.Key) {
	p = New(benchBlocks)
	for b := uint64(0); b < benchBlocks; b += objectBlocks {
		p.AddObject(layout.ObjectInfo{Key: next})
		p.Write(b, objectBlocks, layout.Loc(next, 0))
		p.SetTotal(next, objectBlocks)
		next++
	}
	return p, next
}

// Random overwrites of 4 KiB, objects changing as they fill up.
func BenchmarkWrite(b *testing.B) {
	p, k := filled()
	at := make([]uint64, 1<<20)
	for i := range at {
		at[i] = rand.Uint64N(benchBlocks)
	}
	i := uint32(0)
	for b.Loop() {
		if i%objectBlocks == 0 {
			if i > 0 {
				p.SetTotal(k, objectBlocks)
				k++
			}
			p.AddObject(layout.ObjectInfo{Key: k})
		}
		p.Write(at[i%(1<<20)], 1, layout.Loc(k, i%objectBlocks))
		i++
	}
}

// One step of settling a discard: a leaf all of whose blocks lie in other
// objects, in random order.
func BenchmarkSettle(b *testing.B) {
	p, next := filled()
	for block := range uint64(layout.LeafBlocks) {
		p.Write(block, 1, layout.Loc(key.Key(rand.Uint64N(uint64(next))), 0))
	}
	leaf := p.Zero(0, layout.LeafBlocks).leaves[0]
	for b.Loop() {
		// This makes the counts wrap; nothing looks at them.
		p.Settle(&Unsettled{leaves: []*sectormap.Leaf{leaf}})
	}
}

func BenchmarkFreeze(b *testing.B) {
	p, _ := filled()
	b.Run("step", func(b *testing.B) {
		for b.Loop() {
			p.Freeze().Release()
		}
	})
	b.Run("table", func(b *testing.B) {
		f := p.Freeze()
		defer f.Release()
		for b.Loop() {
			f.Objects()
		}
	})
}
