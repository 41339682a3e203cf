package devtest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"bs3/internal/device"
)

// minSize is the smallest volume that the suite works on, in bytes.
const minSize = 1 << 20

// region bounds the part of a volume that the random tests use, in bytes.
const region = 4 << 20

// Run checks that a volume keeps the contract of device.Volume, and that of
// device.Fast and device.Allocator if it has them. open returns a fresh volume of
// at least 1 MiB that was never written to, and may register a cleanup.
func Run(t *testing.T, open func(t *testing.T) device.Volume) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"Geometry", testGeometry},
		{"FreshReadsZeros", testFresh},
		{"WriteThenRead", testWriteRead},
		{"NewestWriteWins", testOverwrite},
		{"DiscardAndZeroExactly", testDrop},
		{"CancelledContext", testCancelled},
		{"Fast", testFast},
		{"Allocation", testAllocation},
		{"Random", testRandom},
		{"ConcurrentNeighbours", testNeighbours},
		{"ConcurrentSameBlocks", testSameBlocks},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := open(t)
			g := v.Geometry()
			if g.Size < minSize {
				t.Fatalf("volume of %d bytes, the suite needs %d", g.Size, minSize)
			}
			test.run(t, &suite{v: v, g: g, bs: int64(g.BlockSize)})
		})
	}
}

type suite struct {
	v  device.Volume
	g  device.Geometry
	bs int64
}

func (s *suite) write(t testing.TB, p []byte, off int64) {
	t.Helper()
	if err := s.v.WriteAt(t.Context(), p, off); err != nil {
		t.Fatalf("write %d bytes at %d: %v", len(p), off, err)
	}
}

// read reads into a buffer full of rubbish, so that untouched bytes show.
func (s *suite) read(t testing.TB, off, n int64) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xA5}, int(n))
	if err := s.v.ReadAt(t.Context(), p, off); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	return p
}

func (s *suite) flush(t testing.TB) {
	t.Helper()
	if err := s.v.Flush(t.Context()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// drop zeroes [off, off+n) with do, in pieces that the volume allows.
func (s *suite) drop(t testing.TB, do func(context.Context, int64, int64) error, off, n int64) {
	t.Helper()
	err := s.g.Pieces(off, n, func(off, n int64) error {
		if err := do(t.Context(), off, n); err != nil {
			return fmt.Errorf("%d bytes at %d: %w", n, off, err)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("discard or zero %v", err)
	}
}

func (s *suite) want(t testing.TB, off int64, want []byte) {
	t.Helper()
	got := s.read(t, off, int64(len(want)))
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d (block %d) is %#x, want %#x", off+int64(i), (off+int64(i))/s.bs, got[i], want[i])
		}
	}
}

func testGeometry(t *testing.T, s *suite) {
	if s.bs != 512 && s.bs != 4096 {
		t.Errorf("block size %d", s.bs)
	}
	if s.g.Size%s.bs != 0 || s.g.MaxDiscard < 0 || s.g.IOMin < 0 || s.g.IOOpt < 0 {
		t.Errorf("geometry %+v", s.g)
	}
	if again := s.v.Geometry(); again != s.g {
		t.Errorf("geometry changed from %+v to %+v", s.g, again)
	}
}

func testFresh(t *testing.T, s *suite) {
	s.want(t, 0, make([]byte, s.bs))
	s.want(t, s.g.Size-s.bs, make([]byte, s.bs))
	s.want(t, 3*s.bs, make([]byte, 64*s.bs))
	s.flush(t)
	s.want(t, 0, make([]byte, minSize))
}

func testWriteRead(t *testing.T, s *suite) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, at := range []struct{ off, n int64 }{
		{0, s.bs},
		{s.g.Size - s.bs, s.bs},
		{5 * s.bs, 17 * s.bs},
		{64 * s.bs, minSize / 2 &^ (s.bs - 1)},
	} {
		p := randomBytes(rnd, at.n)
		want := bytes.Clone(p)
		s.write(t, p, at.off)
		for i := range p {
			p[i] = 0x5A // the buffer is ours again
		}
		s.want(t, at.off, want)
		s.flush(t)
		s.want(t, at.off, want)
	}
}

func testOverwrite(t *testing.T, s *suite) {
	model := make([]byte, 16*s.bs)
	for i, at := range []struct{ first, blocks int64 }{{0, 16}, {4, 4}, {7, 9}, {0, 1}, {5, 1}, {5, 1}} {
		p := bytes.Repeat([]byte{byte(i + 1)}, int(at.blocks*s.bs))
		s.write(t, p, at.first*s.bs)
		copy(model[at.first*s.bs:], p)
		s.want(t, 0, model)
	}
}

func testDrop(t *testing.T, s *suite) {
	for _, do := range []func(context.Context, int64, int64) error{s.v.Discard, s.v.WriteZeroes} {
		model := bytes.Repeat([]byte{0xC3}, int(32*s.bs))
		s.write(t, model, 0)
		for _, at := range []struct{ first, blocks int64 }{{0, 1}, {31, 1}, {7, 3}, {8, 9}} {
			s.drop(t, do, at.first*s.bs, at.blocks*s.bs)
			clear(model[at.first*s.bs : (at.first+at.blocks)*s.bs])
			s.want(t, 0, model)
		}
		s.flush(t)
		s.want(t, 0, model)
		s.drop(t, do, 0, s.g.Size)
		s.want(t, 0, make([]byte, 32*s.bs))
		s.want(t, s.g.Size-s.bs, make([]byte, s.bs))
	}
}

// A request whose context is cancelled may fail or succeed, but must not take
// effect after it has returned an error.
func testCancelled(t *testing.T, s *suite) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 50 {
		late := bytes.Repeat([]byte{0xEE}, int(s.bs))
		newer := bytes.Repeat([]byte{byte(i)}, int(s.bs))
		errs := []error{
			s.v.WriteAt(over, late, 0),
			s.v.Discard(over, s.bs, s.bs),
			s.v.WriteZeroes(over, 2*s.bs, s.bs),
		}
		for block, err := range errs {
			s.write(t, newer, int64(block)*s.bs)
			if err != nil {
				s.want(t, int64(block)*s.bs, newer)
			}
		}
	}
	_ = s.v.Flush(over)
	_ = s.v.ReadAt(over, make([]byte, s.bs), 0)
	s.flush(t)
	s.want(t, 2*s.bs, bytes.Repeat([]byte{49}, int(s.bs)))
}

func testFast(t *testing.T, s *suite) {
	fast, ok := s.v.(device.Fast)
	if !ok {
		t.Skip("volume has no device.Fast")
	}
	old := bytes.Repeat([]byte{1}, int(2*s.bs))
	p := bytes.Repeat([]byte{2}, int(2*s.bs))
	s.write(t, old, s.bs)
	if fast.TryWriteAt(p, s.bs) {
		s.want(t, s.bs, p)
	} else {
		s.want(t, s.bs, old)
		s.write(t, p, s.bs)
	}
	got := bytes.Repeat([]byte{0xA5}, int(4*s.bs))
	if fast.TryReadAt(got, 0) {
		want := append(append(make([]byte, s.bs), p...), make([]byte, s.bs)...)
		if !bytes.Equal(got, want) {
			t.Error("TryReadAt returned other data than was written")
		}
	}
}

func testAllocation(t *testing.T, s *suite) {
	alloc, ok := s.v.(device.Allocator)
	if !ok {
		t.Skip("volume has no device.Allocator")
	}
	s.write(t, bytes.Repeat([]byte{7}, int(8*s.bs)), 8*s.bs)
	s.drop(t, s.v.Discard, 10*s.bs, 2*s.bs)
	end := min(s.g.Size, region)
	for off := int64(0); off < end; {
		extents, err := alloc.Allocation(t.Context(), off, end-off)
		if err != nil {
			t.Fatalf("allocation at %d: %v", off, err)
		}
		if len(extents) == 0 {
			t.Fatalf("allocation at %d is empty", off)
		}
		for _, e := range extents {
			if e.Length <= 0 || e.Length%s.bs != 0 || e.Length > end-off {
				t.Fatalf("extent of %d bytes at %d, with %d left", e.Length, off, end-off)
			}
			if e.Hole {
				s.want(t, off, make([]byte, e.Length))
			} else if off >= 16*s.bs || off+e.Length <= 8*s.bs {
				t.Errorf("%d bytes at %d are data, but were never written", e.Length, off)
			}
			off += e.Length
		}
	}
}

// testRandom runs a seeded mix of all operations beside a model.
func testRandom(t *testing.T, s *suite) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	model := make([]byte, min(s.g.Size, region))
	blocks := int64(len(model)) / s.bs
	for range 400 {
		first := rnd.Int64N(blocks)
		n := 1 + rnd.Int64N(min(blocks-first, 1<<rnd.IntN(8)))
		off, length := first*s.bs, n*s.bs
		switch rnd.IntN(8) {
		case 0:
			s.drop(t, s.v.Discard, off, length)
			clear(model[off : off+length])
		case 1:
			s.drop(t, s.v.WriteZeroes, off, length)
			clear(model[off : off+length])
		case 2:
			s.flush(t)
		case 3, 4, 5:
			p := randomBytes(rnd, length)
			fast, ok := s.v.(device.Fast)
			if !ok || rnd.IntN(2) == 0 || !fast.TryWriteAt(p, off) {
				s.write(t, p, off)
			}
			copy(model[off:], p)
		default:
			s.want(t, off, model[off:off+length])
		}
	}
	s.want(t, 0, model)
}

// testNeighbours runs writers that each have their own blocks, side by side.
func testNeighbours(t *testing.T, s *suite) {
	const writers, rounds, blocks = 8, 40, 64
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 2))
			value := make([]byte, blocks)
			for range rounds {
				// Block b of writer w lies at b*writers+w.
				b := rnd.Int64N(blocks)
				off := (b*writers + w) * s.bs
				value[b] = byte(1 + rnd.IntN(255))
				p := bytes.Repeat(value[b:b+1], int(s.bs))
				if err := s.v.WriteAt(t.Context(), p, off); err != nil {
					t.Errorf("write at %d: %v", off, err)
					return
				}
				if rnd.IntN(8) == 0 {
					if err := s.v.Flush(t.Context()); err != nil {
						t.Errorf("flush: %v", err)
						return
					}
				}
				b = rnd.Int64N(blocks)
				off = (b*writers + w) * s.bs
				if err := s.v.ReadAt(t.Context(), p, off); err != nil {
					t.Errorf("read at %d: %v", off, err)
					return
				}
				if !bytes.Equal(p, bytes.Repeat(value[b:b+1], int(s.bs))) {
					t.Errorf("block at %d is not what its only writer wrote last", off)
					return
				}
			}
		})
	}
	wg.Wait()
}

// testSameBlocks runs writers on the same blocks: in the end each block is whole
// as one of them wrote it.
func testSameBlocks(t *testing.T, s *suite) {
	const writers, rounds, blocks = 8, 40, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 3))
			for range rounds {
				first := rnd.Int64N(blocks)
				n := 1 + rnd.Int64N(blocks-first)
				p := bytes.Repeat([]byte{byte(w + 1)}, int(n*s.bs))
				if err := s.v.WriteAt(t.Context(), p, first*s.bs); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	got := s.read(t, 0, blocks*s.bs)
	for b := range int64(blocks) {
		block := got[b*s.bs : (b+1)*s.bs]
		if !bytes.Equal(block, bytes.Repeat(block[:1], len(block))) || block[0] > writers {
			t.Errorf("block %d is a mixture", b)
		}
	}
}

func randomBytes(rnd *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}
