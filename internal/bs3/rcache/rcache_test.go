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
	c, err := New(int64(blocks)*blockSize, blockSize, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 { // the second one has no effect
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

// TestWhatIsThereIsRight checks that a hit returns the block's bytes, whatever is
// evicted and while others write.
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
				c.Put(at(i), numbers(1), content(i), blockSize)
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

// TestIndex checks that the index has each frame once, where it is found,
// whatever was put and evicted.
func TestIndex(t *testing.T) {
	c := newCache(t, 300)
	rnd := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 8*blockSize)
	for range 20_000 {
		i := rnd.IntN(400) * 8
		if run := p[:(1+rnd.IntN(8))*blockSize]; rnd.IntN(3) == 0 {
			c.PutAhead(at(i), numbers(len(run)/blockSize), run, blockSize)
		} else {
			c.Put(at(i), numbers(len(run)/blockSize), run, blockSize)
		}
		c.Get(at(rnd.IntN(3200)), p[:blockSize])
	}
	for i := range c.shards {
		s := &c.shards[i]
		entries := 0
		for _, f := range s.index {
			if f != 0 {
				entries++
			}
		}
		if entries != int(s.used) || s.small.length()+s.main.length()+s.ahead.length() != entries {
			t.Errorf("%d entries for %d frames, %d, %d and %d in the queues", entries, s.used, s.small.length(), s.main.length(), s.ahead.length())
		}
		for f, loc := range s.locs[:s.used] {
			if e, ok := s.find(loc); !ok || s.index[e] != uint32(f)+1 {
				t.Errorf("frame %d is not where %d is looked for", f, loc)
			}
		}
	}
}

func TestRunOfBlocks(t *testing.T) {
	c := newCache(t, 100)
	var run []byte
	for i := range 8 {
		run = append(run, content(i)...)
	}
	c.Put(at(0), numbers(8), run, blockSize)
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

// TestScanDisplacesLittle checks that what is read often stays while ten times
// the size of the cache is read once.
func TestScanDisplacesLittle(t *testing.T) {
	c := newCache(t, 2000)
	p := make([]byte, blockSize)
	touch := func(i int) bool {
		if c.Get(at(i), p) {
			return true
		}
		c.Put(at(i), numbers(1), content(i), blockSize)
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

// TestReadAheadScanDisplacesLittle checks the same for a scan that is read ahead,
// and that what was read ahead is still there when it is read.
func TestReadAheadScanDisplacesLittle(t *testing.T) {
	c := newCache(t, 16<<10)
	p := make([]byte, blockSize)
	const hot, window = 9000, 2000
	for range 5 {
		for i := range hot {
			if !c.Get(at(i), p) {
				c.Put(at(i), numbers(1), content(i), blockSize)
			}
		}
	}
	const from, to = 100_000, 200_000
	lost := 0
	for i := from; i < to; i++ {
		if (i-from)%window == 0 { // two windows ahead at most, as the engine does
			for j := i + window; j < i+2*window; j++ {
				c.PutAhead(at(j), numbers(1), content(j), blockSize)
			}
		}
		if i >= from+window && !c.Get(at(i), p) {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d blocks read ahead were gone before they were read", lost, to-from)
	}
	kept := 0
	for i := range hot {
		if c.Has(at(i)) {
			kept++
		}
	}
	if kept < hot*9/10 {
		t.Errorf("of %d hot blocks %d are left after a scan", hot, kept)
	}
}

func TestTooSmall(t *testing.T) {
	if _, err := New(10*blockSize, blockSize, nil); err == nil {
		t.Fatal("no error")
	}
}

// A frame takes the whole block, from any address, and nothing of its neighbours.
func TestFillFrame(t *testing.T) {
	const size = 512
	block := make([]byte, size+64)
	for i := range block {
		block[i] = byte(i*7 + i/256)
	}
	c, err := New(leastFrames*size, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	frames := c.mem[:3*size]
	for from := range 64 {
		clear(frames)
		fillFrame(frames[size:2*size], block[from:])
		want := make([]byte, 3*size)
		copy(want[size:], block[from:][:size])
		if !bytes.Equal(frames, want) {
			t.Fatalf("a block at %d was not copied as it is", from)
		}
	}
}

// numbers returns n block numbers of a volume, for tests that do not look at them.
func numbers(n int) []uint64 { return make([]uint64, n) }
