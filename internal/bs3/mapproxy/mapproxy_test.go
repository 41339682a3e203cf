package mapproxy

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
)

// live returns the live blocks that the table has for object k.
func live(t *testing.T, p *Proxy, k key.Key) uint32 {
	t.Helper()
	info, ok := p.Object(k)
	if !ok {
		t.Fatalf("object %d is not in the table", k)
	}
	return info.Live
}

func TestObjectsThatAreNotThere(t *testing.T) {
	p := New(10)
	p.AddObject(layout.ObjectInfo{Key: 3 * pageObjects, Epoch: 1})
	for _, k := range []key.Key{0, 3*pageObjects - 1, 3*pageObjects + 1, 4 * pageObjects, key.Max} {
		if info, ok := p.Object(k); ok || info != (layout.ObjectInfo{}) {
			t.Errorf("object %d: %+v %v", k, info, ok)
		}
	}
	for name, call := range map[string]func(){
		"an object is added twice":       func() { p.AddObject(layout.ObjectInfo{Key: 3 * pageObjects}) },
		"a write to one that is missing": func() { p.Write(0, 1, layout.Loc(3*pageObjects+1, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it is taken")
				}
			}()
			call()
		})
	}
}

// A discard takes whole leaves out at once, and settles them one by one.
func TestZeroSettlesLeafByLeaf(t *testing.T) {
	const leaves = 3
	p := New(leaves * layout.LeafBlocks)
	if u := p.Zero(0, p.Blocks()); u != nil || !p.Settle(u) {
		t.Error("there is something to settle in an empty map")
	}
	p.AddObject(layout.ObjectInfo{Key: 0})
	p.Write(0, leaves*layout.LeafBlocks, layout.Loc(0, 0))
	u := p.Zero(1, leaves*layout.LeafBlocks-1) // all but one block of the first leaf
	if runs := p.Lookup(0, leaves*layout.LeafBlocks, nil); !slices.Equal(runs, []sectormap.Run{
		{Block: 0, N: 1, Loc: layout.Loc(0, 0)},
		{Block: 1, N: leaves*layout.LeafBlocks - 1},
	}) {
		t.Errorf("after the discard: %v", runs)
	}
	if p.Mapped() != 1 || p.Bytes() != leaves*16+16 {
		t.Errorf("%d blocks mapped in %d bytes", p.Mapped(), p.Bytes())
	}
	if _, n, _ := p.Totals(); n != 1 {
		t.Errorf("%d live blocks in all", n)
	}
	f := p.Freeze()
	defer f.Release()
	for _, want := range []uint32{2*layout.LeafBlocks + 1, layout.LeafBlocks + 1, 1} {
		if got := live(t, p, 0); got != want {
			t.Errorf("%d live blocks, not %d", got, want)
		}
		if done := p.Settle(u); done != (want == 1 || want == layout.LeafBlocks+1) {
			t.Errorf("at %d live blocks: done is %v", want, done)
		}
	}
	if got := f.Objects()[0].Live; got != 1 {
		t.Errorf("%d live blocks in the frozen table", got)
	}
}

func TestWriteAllocatesNothing(t *testing.T) {
	p := New(layout.LeafBlocks)
	p.AddObject(layout.ObjectInfo{Key: 0})
	p.AddObject(layout.ObjectInfo{Key: 1})
	p.Write(0, layout.LeafBlocks, layout.Loc(0, 0))
	for b := uint64(0); b < layout.LeafBlocks; b += 8 { // or each write makes another list of spans
		p.Write(b, 1, layout.Loc(0, uint32(b)))
	}
	next := uint32(0)
	if n := testing.AllocsPerRun(100, func() {
		p.Write(uint64(next*7%4000), 4, layout.Loc(1, next))
		p.Move(uint64(next*7%4000), layout.Loc(1, next), layout.Loc(1, next+4))
		next += 5
		if u := p.Zero(4000, 90); u != nil {
			t.Error("a part of a leaf is left to be settled")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSetTotalReplaces(t *testing.T) {
	p := New(10)
	p.AddObject(layout.ObjectInfo{Key: 0, Total: 3})
	p.AddObject(layout.ObjectInfo{Key: 1})
	p.SetTotal(1, 5)
	p.SetTotal(1, 4)
	if objects, _, total := p.Totals(); objects != 2 || total != 7 {
		t.Errorf("%d objects with %d blocks, not 2 with 7", objects, total)
	}
}

// A page of the table is copied once for a Frozen, and not for one that was
// released.
func TestTableIsCopiedOnce(t *testing.T) {
	p := New(10)
	p.AddObject(layout.ObjectInfo{Key: 0})
	first := p.objects.pages[0]
	f := p.Freeze()
	p.SetTotal(0, 1)
	second := p.objects.pages[0]
	if second == first {
		t.Error("a shared page was changed in place")
	}
	p.SetTotal(0, 2)
	if p.objects.pages[0] != second {
		t.Error("the page was copied twice")
	}
	f.Release()
	p.Freeze().Release()
	p.SetTotal(0, 3)
	if p.objects.pages[0] != second {
		t.Error("the page was copied though no view is left")
	}
}

// Settle counts what a leaf maps before it gives back its memory, and gives it back.
func TestSettleFreesLeaves(t *testing.T) {
	const leaves = 256 // 8 MiB
	resident := func() int {
		b, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(b))[1])
		if err != nil {
			t.Fatal(err)
		}
		return pages * os.Getpagesize()
	}
	p := New(leaves * layout.LeafBlocks)
	p.AddObject(layout.ObjectInfo{Key: 0})
	before := resident()
	for range 20 {
		for block := uint64(0); block < p.Blocks(); block += layout.LeafBlocks {
			for i := range uint64(65) {
				p.Write(block+2*i, 1, layout.Loc(0, 0))
			}
			p.Write(block, layout.LeafBlocks, layout.Loc(0, 0))
		}
		for u := p.Zero(0, p.Blocks()); !p.Settle(u); {
			continue
		}
		if o, _ := p.Object(0); o.Live != 0 {
			t.Fatalf("%d blocks are live of an object that nothing is mapped to", o.Live)
		}
	}
	if grown := resident() - before; grown > 64<<20 {
		t.Errorf("%d MiB more are in memory after leaves of 8 MiB were discarded again and again", grown>>20)
	}
}

// Other goroutines read and release a Frozen while the writer goes on. The test
// is for the race detector and for Frozen.Verify.
func TestFrozenBesideWriter(t *testing.T) {
	const blocks = 2 * layout.LeafBlocks
	p := New(blocks)
	var readers sync.WaitGroup
	for k := range key.Key(60) {
		p.AddObject(layout.ObjectInfo{Key: k})
		for i := range uint32(20) {
			p.Write(uint64(k*131+key.Key(i)*577)%blocks, 1, layout.Loc(k, i))
		}
		p.SetTotal(k, 20)
		var u *Unsettled
		if k%7 == 0 {
			u = p.Zero(uint64(k%2)*layout.LeafBlocks, layout.LeafBlocks)
		}
		f, mapped := p.Freeze(), p.Mapped()
		readers.Go(func() {
			defer f.Release()
			if err := f.Verify(); err != nil {
				t.Error(err)
			}
			live := uint64(0)
			for _, info := range f.Objects() {
				live += uint64(info.Live)
			}
			if live != mapped {
				t.Errorf("%d live blocks in a table of %d mapped ones", live, mapped)
			}
		})
		p.Settle(u)
	}
	readers.Wait()
}

// Records may name blocks past the end: the volume was larger once.
func TestApplyClips(t *testing.T) {
	p := New(10)
	p.Apply(&layout.Object{
		Footer: layout.Footer{Key: 0, Epoch: 1, Blocks: 7},
		Records: []layout.Record{
			{Kind: layout.KindWrite, Block: 8, Blocks: 4},
			{Kind: layout.KindWrite, Block: 20, Blocks: 1, Index: 4},
			{Kind: layout.KindWrite, Block: 1, Blocks: 2, Index: 5},
			{Kind: layout.KindZero, Block: 2, Blocks: layout.MaxZeroBlocks},
			{Kind: layout.KindZero, Block: 1 << 40, Blocks: 1},
		},
	})
	p.Apply(&layout.Object{
		Footer: layout.Footer{Key: 1, Epoch: 2, Blocks: 100, Fence: true},
		Records: []layout.Record{
			{Kind: layout.KindWrite, Block: 9, Blocks: 1, Index: 50},
			{Kind: layout.KindMove, Block: 9, Blocks: 40, Source: layout.Loc(1, 50)},
		},
	})
	want := []sectormap.Run{
		{Block: 0, N: 1},
		{Block: 1, N: 1, Loc: layout.Loc(0, 5)},
		{Block: 2, N: 7},
		{Block: 9, N: 1, Loc: layout.Loc(1, 0)},
	}
	if got := p.Lookup(0, 10, nil); !slices.Equal(got, want) {
		t.Errorf("the map: %v, not %v", got, want)
	}
	f := p.Freeze()
	defer f.Release()
	if got := f.Objects(); !slices.Equal(got, []layout.ObjectInfo{
		{Key: 0, Epoch: 1, Live: 1, Total: 7},
		{Key: 1, Epoch: 2, Live: 1, Total: 100, Fence: true},
	}) {
		t.Errorf("the table: %+v", got)
	}
}

func TestDamagedCheckpoint(t *testing.T) {
	entries := func(locs ...layout.Location) []layout.Location {
		return append(locs, make([]layout.Location, layout.LeafBlocks-len(locs))...)
	}
	open := func() *Proxy {
		p := New(2 * layout.LeafBlocks)
		p.AddObject(layout.ObjectInfo{Key: 5, Live: 2, Total: 9})
		p.AddObject(layout.ObjectInfo{Key: 8, Live: 0, Total: 9})
		return p
	}
	for name, c := range map[string]struct {
		entries []layout.Location
		message string
	}{
		"unknown object":  {entries(layout.Loc(6, 0)), "leaf 1, entry 0: no object of the table has block 0 of object 6"},
		"key past all":    {entries(0, layout.Loc(key.Max, 0)), "object 1099511627774"},
		"beyond the data": {entries(0, 0, layout.Loc(5, 9)), "leaf 1, entry 2: no object of the table has block 9 of object 5"},
		"no key":          {entries(layout.Location(7)), "leaf 1, entry 0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := open()
			if err := p.LoadLeaf(1, c.entries); err == nil || !strings.Contains(err.Error(), c.message) {
				t.Errorf("error %v, want %q", err, c.message)
			}
			if p.Mapped() != 0 {
				t.Error("a damaged leaf was loaded")
			}
		})
	}
	for name, c := range map[string]struct {
		entries []layout.Location
		message string // "": none
	}{
		"right": {entries(layout.Loc(5, 0), layout.Loc(5, 3)), ""},
		"fewer": {entries(layout.Loc(5, 0)), "object 5 has 1 live blocks, not 2"},
		"other": {entries(layout.Loc(5, 0), layout.Loc(5, 3), layout.Loc(8, 1)), "object 8 has 1 live blocks, not 0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := open()
			if err := p.LoadLeaf(0, c.entries); err != nil {
				t.Fatal(err)
			}
			f := p.Freeze()
			defer f.Release()
			err := f.Verify()
			if c.message == "" && err != nil || c.message != "" && (err == nil || !strings.Contains(err.Error(), c.message)) {
				t.Errorf("error %v, want %q", err, c.message)
			}
		})
	}
}

// An entry whose object is not in the table at all cannot come about through
// this package, unless the object is taken out of the table.
func TestVerifyFindsUnknownObject(t *testing.T) {
	p := New(10)
	p.AddObject(layout.ObjectInfo{Key: 0})
	p.Write(0, 1, layout.Loc(0, 0))
	p.objects.at(0).here = false
	f := p.Freeze()
	defer f.Release()
	if err := f.Verify(); err == nil || !strings.Contains(err.Error(), "object 0 is not in the table") {
		t.Errorf("error %v", err)
	}
}
