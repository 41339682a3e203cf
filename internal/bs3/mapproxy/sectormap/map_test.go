package sectormap

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

const tebibyte = 1 << 28 // blocks of 4096 bytes

func TestRunsEndWithObjects(t *testing.T) {
	m := New(10)
	// The last location of object 0 is followed, as a number, by the first of
	// object 1.
	m.Set(0, 1, layout.Loc(0, layout.MaxIndex), nil)
	m.Set(1, 2, layout.Loc(1, 0), nil)
	want := []Run{
		{Block: 0, N: 1, Loc: layout.Loc(0, layout.MaxIndex)},
		{Block: 1, N: 2, Loc: layout.Loc(1, 0)},
		{Block: 3, N: 7},
	}
	if got := m.Lookup(0, 10, nil); !slices.Equal(got, want) {
		t.Errorf("lookup: %v, not %v", got, want)
	}
	var told []Run
	m.Unmap(0, 10, nil, func(l *Leaf) {
		l.Each(func(loc layout.Location, n uint32) { told = append(told, Run{N: n, Loc: loc}) })
	})
	if want := []Run{{N: 1, Loc: layout.Loc(0, layout.MaxIndex)}, {N: 2, Loc: layout.Loc(1, 0)}}; !slices.Equal(told, want) {
		t.Errorf("unmap tells of %v, not %v", told, want)
	}
}

func TestLoad(t *testing.T) {
	m := New(LeafBlocks + 2)
	entries := make([]layout.Location, LeafBlocks)
	for i := range entries {
		entries[i] = layout.Loc(3, uint32(i))
	}
	m.Load(1, entries) // only two of them are in the volume
	m.Load(0, make([]layout.Location, LeafBlocks))
	want := []Run{{N: LeafBlocks}, {Block: LeafBlocks, N: 2, Loc: layout.Loc(3, 0)}}
	if got := m.Lookup(0, LeafBlocks+2, nil); !slices.Equal(got, want) {
		t.Errorf("lookup: %v, not %v", got, want)
	}
	if m.Mapped() != 2 || m.Bytes() != 2*16+spanBytes {
		t.Errorf("%d blocks mapped in %d bytes", m.Mapped(), m.Bytes())
	}
	f := m.Freeze()
	defer f.Release()
	if f.Generation() != 1 || f.LeafGeneration(1) != 0 {
		t.Errorf("first freeze has generation %d, a loaded leaf %d", f.Generation(), f.LeafGeneration(1))
	}
}

// An array that was used before maps nothing past the end of the volume.
func TestLoadReusesArrays(t *testing.T) {
	m := New(LeafBlocks + 2*(maxSpans+1))
	for b := range uint64(LeafBlocks) {
		m.Set(b, 1, layout.Loc(0, uint32(2*b)), nil)
	}
	m.Unmap(0, LeafBlocks, nil, nil)
	entries := make([]layout.Location, LeafBlocks)
	for i := range maxSpans + 1 {
		entries[2*i] = layout.Loc(1, 0)
	}
	m.Load(1, entries)
	f := m.Freeze()
	defer f.Release()
	got := make([]layout.Location, LeafBlocks)
	if f.Leaf(1).Entries(got); !slices.Equal(got, entries) {
		t.Error("a loaded leaf has entries that it was not given")
	}
}

func TestOutside(t *testing.T) {
	m := New(LeafBlocks + 2) // the last leaf has room past the end
	for name, call := range map[string]func(){
		"lookup":      func() { m.Lookup(LeafBlocks, 3, nil) },
		"set":         func() { m.Set(LeafBlocks+2, 1, layout.Loc(0, 0), nil) },
		"unmap":       func() { m.Unmap(LeafBlocks+1, 2, nil, nil) },
		"unmap, wrap": func() { m.Unmap(1, 1<<64-1, nil, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("a range past the end is taken")
				}
			}()
			call()
		})
	}
}

// scatter turns the leaf that begins with block b into an array of entries.
func scatter(m *Map, b uint64) {
	for i := range uint64(maxSpans + 1) {
		m.Set(b+2*i, 1, layout.Loc(key.Key(b/LeafBlocks), 7), nil)
	}
}

// A leaf is a list of spans as long as these are few. As which of the two a leaf
// is loaded does not change what it maps.
func TestSpansAndEntries(t *testing.T) {
	m := New(LeafBlocks)
	if scatter(m, 0); m.dir[0].Load().entries == nil {
		t.Fatalf("%d spans are not too many", maxSpans+1)
	}
	if want := int64(16 + leafBytes); m.Bytes() != want {
		t.Errorf("%d bytes, want %d", m.Bytes(), want)
	}
	m.Unmap(2*maxSpans, 1, nil, nil)
	f := m.Freeze()
	defer f.Release()
	entries := make([]layout.Location, LeafBlocks)
	f.Leaf(0).Entries(entries)
	again := New(LeafBlocks)
	if again.Load(0, entries); again.dir[0].Load().entries != nil || again.Bytes() != 16+maxSpans*spanBytes {
		t.Errorf("%d spans are too many", maxSpans)
	}
	if a, b := m.Lookup(0, LeafBlocks, nil), again.Lookup(0, LeafBlocks, nil); !slices.Equal(a, b) || len(a) != 2*maxSpans {
		t.Errorf("%v\nloaded: %v", a, b)
	}
	for b := range uint64(LeafBlocks) {
		if m.Get(b) != again.Get(b) {
			t.Fatalf("block %d: %v, loaded %v", b, m.Get(b), again.Get(b))
		}
	}
}

// Unmapping what is not mapped does not copy a leaf that a Frozen shares, and
// without a live Frozen nothing is copied at all.
func TestCopiesOnlyWhenNeeded(t *testing.T) {
	m := New(LeafBlocks)
	scatter(m, 0)
	first := m.dir[0].Load()
	f := m.Freeze()
	g := m.Freeze()
	m.Unmap(200, 100, nil, nil)
	if m.dir[0].Load() != first {
		t.Error("unmapping nothing copied the leaf")
	}
	m.Set(0, 1, layout.Loc(1, 0), nil)
	second := m.dir[0].Load()
	if second == first {
		t.Error("a shared leaf was changed in place")
	}
	m.Set(1, 1, layout.Loc(1, 1), nil)
	if m.dir[0].Load() != second {
		t.Error("the leaf was copied twice")
	}
	g.Release()
	f.Release()
	h := m.Freeze()
	h.Release()
	m.Set(0, 1, layout.Loc(2, 0), nil)
	if m.dir[0].Load() != second {
		t.Error("a leaf was copied though no view is left")
	}
}

func TestSetAllocatesNothing(t *testing.T) {
	m := New(LeafBlocks)
	scatter(m, 0)
	var dead uint64
	old := func(_ layout.Location, n uint32) { dead += uint64(n) }
	runs := make([]Run, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		m.Set(17, 8, layout.Loc(1, 0), old)
		m.Unmap(18, 2, old, nil)
		runs = m.Lookup(0, LeafBlocks, runs[:0])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if dead == 0 {
		t.Error("old was not called")
	}
}

func TestMemoryOfEmptyTebibyte(t *testing.T) {
	heap := func() uint64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	m := New(tebibyte)
	if used := int64(heap() - before); used > 4<<20 {
		t.Errorf("an empty map of 1 TiB takes %d bytes", used)
	}
	// Every 64th leaf, then all of it discarded in the pieces that records have.
	for b := uint64(0); b < tebibyte; b += 64 * LeafBlocks {
		m.Set(b, 1, layout.Loc(0, 0), nil)
	}
	if want := int64(65536*16 + 1024*spanBytes); m.Bytes() != want {
		t.Errorf("the map says %d bytes, not %d", m.Bytes(), want)
	}
	gone := 0
	for b := uint64(0); b < tebibyte; b += layout.MaxZeroBlocks {
		m.Unmap(b, layout.MaxZeroBlocks, nil, func(*Leaf) { gone++ })
	}
	if gone != 1024 || m.Mapped() != 0 {
		t.Errorf("%d leaves gone, %d blocks left", gone, m.Mapped())
	}
	if used := int64(heap() - before); used > 4<<20 {
		t.Errorf("after discarding all of it the map takes %d bytes", used)
	}
	if got := m.Lookup(0, tebibyte, nil); !slices.Equal(got, []Run{{N: tebibyte}}) {
		t.Errorf("lookup of everything: %v", got)
	}
}

// Readers beside a writer that maps, unmaps, drops whole leaves and freezes.
// State s of the map follows from s alone, so a reader can tell whether what
// it saw was true at some moment while it looked.
func TestReadersBesideWriter(t *testing.T) {
	const probes = 8 // blocks that readers look up, on both sides of a leaf border
	first := uint64(LeafBlocks - probes/2)
	state := func(s uint64, i int) layout.Location {
		phase := s % 5
		switch {
		case phase == 4: // both leaves are dropped
			return 0
		case phase == 3 && i == probes-1: // one block is mapped again
			return layout.Loc(1, uint32(s))
		case phase >= 2 && i >= probes/2: // the second half is unmapped
			return 0
		default: // all is mapped (0), and then frozen (1)
			return layout.Loc(0, uint32(s/5*probes)+uint32(i))
		}
	}
	const rounds = 1500
	m := New(2 * LeafBlocks)
	// The writer is about to enter state begun, or has entered it if done says so.
	var begun, done atomic.Uint64
	m.Set(first, probes, state(0, 0), nil)

	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			var runs []Run
			for {
				from := done.Load()
				runs = m.Lookup(first, probes, runs[:0])
				one := m.Get(first + probes - 1)
				to := begun.Load()
				seen := func(i int, loc layout.Location) bool {
					for s := from; s <= to; s++ {
						if state(s, i) == loc {
							return true
						}
					}
					return false
				}
				if !seen(probes-1, one) {
					t.Errorf("get: %v between states %d and %d", one, from, to)
					return
				}
				for _, r := range runs {
					for i := range r.N {
						loc := r.Loc
						if loc.Mapped() {
							loc = loc.Add(i)
						}
						if !seen(int(r.Block-first)+int(i), loc) {
							t.Errorf("lookup: block %d at %v between states %d and %d", r.Block+uint64(i), loc, from, to)
							return
						}
					}
				}
				if from == 5*rounds-1 {
					return
				}
			}
		})
	}
	var views []*Frozen
	for s := uint64(1); s < 5*rounds; s++ {
		begun.Store(s)
		switch s % 5 {
		case 0:
			m.Set(first, probes, state(s, 0), nil)
		case 1:
			views = append(views, m.Freeze())
			if len(views) > 2 {
				views[0].Release()
				views = views[1:]
			}
		case 2:
			m.Unmap(first+probes/2, probes/2, nil, nil)
		case 3:
			m.Set(first+probes-1, 1, state(s, probes-1), nil)
		case 4:
			m.Unmap(0, 2*LeafBlocks, nil, nil)
		}
		done.Store(s)
	}
	readers.Wait()
}
