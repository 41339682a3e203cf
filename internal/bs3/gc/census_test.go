package gc

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

// quiet is the log of a volume that nobody writes.
type quiet struct{ Log }

func (quiet) Activity() (seq uint64, idle bool) { return 0, true }

func (quiet) Objects(key.Key, int) ([]layout.ObjectInfo, bool, key.Key, key.Key) {
	return nil, false, 0, 0
}

const testChunk = 1024 // blocks of 4 KiB

// collectorOf returns a collector of a volume whose blocks were written in this
// order into full objects.
func collectorOf(blocks []int) *Collector {
	m := mapproxy.New(uint64(len(blocks)))
	for i, b := range blocks {
		k := key.Key(i / testChunk)
		if i%testChunk == 0 {
			m.AddObject(layout.ObjectInfo{Key: k, Epoch: 1, Total: testChunk})
		}
		m.Write(uint64(b), 1, layout.Loc(k, uint32(i%testChunk)))
	}
	return New(Config{Log: quiet{}, Checkpoints: checkpoint.New(checkpoint.Config{}, nil, ""), Map: m.View(), Misses: func() uint64 { return 0 }, BlockSize: 4096, ChunkBlocks: testChunk})
}

// inOrder returns the blocks of n chunks, in order.
func inOrder(n int) []int {
	blocks := make([]int, n*testChunk)
	for i := range blocks {
		blocks[i] = i
	}
	return blocks
}

func TestCensus(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1)).Perm(8 * testChunk)
	ends := inOrder(8) // what lies in object 3 comes half from each end
	for i := range testChunk / 2 {
		ends[3*testChunk+i], ends[i] = i, 3*testChunk+i
	}
	for name, c := range map[string]struct {
		blocks   []int
		requests int
		widths   map[key.Key]float64
	}{
		"in order": {inOrder(8), 8, map[key.Key]float64{0: 1, 7: 1}},
		"two ends": {ends, 10, map[key.Key]float64{0: 3.5, 1: 1, 3: 4}},
		"random":   {random, -1, map[key.Key]float64{0: 8, 7: 8}},
	} {
		g := collectorOf(c.blocks)
		seen, err := g.takeCensus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if seen.Objects != 8 || seen.FullObjects != 8 || seen.FullRequests != 8 || g.Spread() != seen.Spread {
			t.Errorf("%s: %+v", name, seen.Spread)
		}
		if c.requests >= 0 && seen.Requests != c.requests || seen.Requests < 8 || c.requests < 0 && seen.Requests < 500 {
			t.Errorf("%s: %d requests", name, seen.Requests)
		}
		for k, want := range c.widths {
			e := seen.extent(k)
			if got := float64(e.span()) / testChunk; got < want-0.6 || got > want+0.6 {
				t.Errorf("%s: object %d is %v wide, not about %v", name, k, got, want)
			}
			if e.scattered == (want == 1) && name != "two ends" {
				t.Errorf("%s: object %d is scattered: %v", name, k, e.scattered)
			}
		}
		if e := seen.extent(99); e.live != 0 {
			t.Errorf("%s: there is no object 99: %+v", name, e)
		}
	}
}

func TestCensusEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := collectorOf(inOrder(64))
	if _, err := g.takeCensus(ctx); !errors.Is(err, context.Canceled) || !g.Spread().At.IsZero() {
		t.Errorf("%v; seen was %+v", err, g.Spread())
	}
}

// A compaction holds a bounded number of bytes, but sorts some chunks in any case.
func TestMemoryOfCompaction(t *testing.T) {
	for chunk, want := range map[int][2]int{1 << 20: {32, 8}, 4 << 20: {32, 8}, 16 << 20: {8, 2}, 64 << 20: {8, 1}} {
		g := New(Config{Log: quiet{}, Checkpoints: checkpoint.New(checkpoint.Config{}, nil, ""), Map: mapproxy.New(1).View(), BlockSize: 4096, ChunkBlocks: chunk / 4096})
		if got := [2]int{g.sortChunks, g.readers}; got != want {
			t.Errorf("chunks of %d bytes: %v, not %v", chunk, got, want)
		}
	}
}

func BenchmarkCensus(b *testing.B) {
	const chunks = 1024
	for name, blocks := range map[string][]int{
		"in_order": inOrder(chunks), "random": rand.New(rand.NewPCG(1, 1)).Perm(chunks * testChunk),
	} {
		b.Run(name, func(b *testing.B) {
			g := collectorOf(blocks)
			b.SetBytes(int64(len(blocks)) * 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := g.takeCensus(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
