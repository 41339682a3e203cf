package rcache

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

const blockSize = 512

func at(i int) layout.Location { return layout.Loc(key.Key(i/8), uint32(i%8)) }

func content(i int) []byte {
	return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, uint64(i)), blockSize/8)
}

func newCache(t testing.TB, blocks int) *Cache {
	t.Helper()
	c, err := New(int64(blocks)*blockSize, blockSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestWhatIsThereIsRight: whatever is evicted, a hit gives the block's bytes,
// also beside writers.
func TestWhatIsThereIsRight(t *testing.T) {
	c := newCache(t, 1000)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			p := make([]byte, blockSize)
			hits := 0
			for range 20_000 {
				i := int(rnd.ExpFloat64() * 500)
				if c.Get(at(i), p) {
					hits++
					if !bytes.Equal(p, content(i)) {
						t.Errorf("block %d holds something else", i)
						return
					}
					continue
				}
				c.Put(at(i), content(i))
			}
			if hits == 0 {
				t.Error("no hits")
			}
		})
	}
	wg.Wait()
	if got := c.Bytes(); got > 1000*blockSize || got < 800*blockSize {
		t.Fatalf("%d bytes are in a cache of %d", got, 1000*blockSize)
	}
}

func TestRunOfBlocks(t *testing.T) {
	c := newCache(t, 100)
	var run []byte
	for i := range 8 {
		run = append(run, content(i)...)
	}
	c.Put(at(0), run)
	p := make([]byte, blockSize)
	for i := range 8 {
		if !c.Has(at(i)) || !c.Get(at(i), p) || !bytes.Equal(p, content(i)) {
			t.Fatalf("block %d", i)
		}
	}
	if c.Has(at(8)) || c.Get(at(8), p) {
		t.Fatal("a block that was never put")
	}
}

// TestScanDisplacesLittle: what is read often stays while ten times the cache
// is read once.
func TestScanDisplacesLittle(t *testing.T) {
	c := newCache(t, 2000)
	p := make([]byte, blockSize)
	touch := func(i int) bool {
		if c.Get(at(i), p) {
			return true
		}
		c.Put(at(i), content(i))
		return false
	}
	const hot = 1000
	for range 5 {
		for i := range hot {
			touch(i)
		}
	}
	for i := range 20_000 {
		touch(10_000 + i)
	}
	kept := 0
	for i := range hot {
		if c.Has(at(i)) {
			kept++
		}
	}
	if kept < hot*9/10 {
		t.Fatalf("of %d hot blocks %d are left after a scan", hot, kept)
	}
}

func TestTooSmall(t *testing.T) {
	if _, err := New(10*blockSize, blockSize); err == nil {
		t.Fatal("no error")
	}
}

func BenchmarkGet(b *testing.B) {
	c := newCache(b, 100_000)
	for i := range 100_000 {
		c.Put(at(i), content(i))
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
		p := make([]byte, blockSize)
		for pb.Next() {
			c.Get(at(rnd.IntN(100_000)), p)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	c := newCache(b, 100_000)
	block := content(1)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.Put(at(i), block)
	}
}
