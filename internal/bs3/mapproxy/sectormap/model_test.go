package sectormap

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// The map has two leaves and a part of a third.
const (
	modelBlocks = 2*LeafBlocks + 1000
	modelLeaves = 3
)

// model is the map as one slice, and what must be true of a Map beside it.
type model []layout.Location

// runs is Lookup, block by block.
func (o model) runs(block uint64, n uint32) []Run {
	var runs []Run
	for b := block; b < block+uint64(n); b++ {
		loc := o[b]
		if len(runs) > 0 {
			last := &runs[len(runs)-1]
			both := loc.Mapped() && last.Loc.Mapped() &&
				loc.Key() == last.Loc.Key() && loc.Index() == last.Loc.Index()+last.N
			if both || !loc.Mapped() && !last.Loc.Mapped() {
				last.N++
				continue
			}
		}
		runs = append(runs, Run{Block: b, N: 1, Loc: loc})
	}
	return runs
}

// count gathers the locations that a callback received.
type count map[layout.Location]int

func (c count) run(loc layout.Location, n uint32) {
	for i := range n {
		c[loc.Add(i)]++
	}
}

func (c count) leaf(l *Leaf) { l.Each(c.run) }

// mapped returns what old and gone must receive when [block, block+n) changes.
func (o model) mapped(block, n uint64) count {
	c := count{}
	for b := block; b < block+n; b++ {
		if o[b].Mapped() {
			c[o[b]]++
		}
	}
	return c
}

func (c count) equal(d count) bool {
	if len(c) != len(d) {
		return false
	}
	for loc, n := range c {
		if d[loc] != n {
			return false
		}
	}
	return true
}

func (o model) check(t *rapid.T, m *Map) {
	t.Helper()
	if got := m.Lookup(0, modelBlocks, nil); !slices.Equal(got, o.runs(0, modelBlocks)) {
		t.Fatalf("the map has the runs\n%v\nnot\n%v", got, o.runs(0, modelBlocks))
	}
	mapped, leaves := uint64(0), map[int]bool{}
	for b, loc := range o {
		if loc.Mapped() {
			mapped++
			leaves[b/LeafBlocks] = true
		}
	}
	if m.Mapped() != mapped {
		t.Fatalf("%d blocks mapped, not %d", m.Mapped(), mapped)
	}
	want := int64(modelLeaves * 16)
	for i := range m.dir {
		switch leaf := m.dir[i].Load(); {
		case leaf == nil:
		case !leaves[i]:
			t.Fatalf("leaf %d is there but empty", i)
		case leaf.entries != nil:
			want += leafBytes
		default:
			want += int64(len(leaf.spans)) * spanBytes
			if len(leaf.spans) > maxSpans+2 {
				t.Fatalf("leaf %d has %d spans", i, len(leaf.spans))
			}
		}
	}
	if m.Bytes() != want {
		t.Fatalf("the map takes %d bytes, not %d", m.Bytes(), want)
	}
}

// checkArrays checks that each array is in one place: a leaf of the map, one that is
// gone, one that only a Frozen has, or the pool.
func checkArrays(t *rapid.T, m *Map, gone []*Leaf) {
	t.Helper()
	at := map[*array]string{}
	see := func(a *array, where string) {
		if before, here := at[a]; here {
			t.Fatalf("an array is %s and %s", before, where)
		}
		at[a] = where
	}
	for i := range m.dir {
		if leaf := m.dir[i].Load(); leaf != nil && leaf.entries != nil {
			see(leaf.entries, "in the map")
		}
	}
	for _, leaf := range gone {
		if leaf.entries != nil {
			see(leaf.entries, "gone")
		}
	}
	for _, r := range m.replaced {
		see(r.entries, "replaced")
	}
	used := len(at)
	for _, a := range slices.Concat(m.pool.idle, m.pool.bare) {
		see(a, "unused")
	}
	if len(at) != len(m.pool.slabs)*slabArrays || m.pool.used != used {
		t.Fatalf("of %d arrays in use, and %d in all, the pool says %d, and %d", used, len(at), m.pool.used, len(m.pool.slabs)*slabArrays)
	}
	if len(m.live) == 0 && len(m.replaced) > 0 {
		t.Fatalf("%d arrays wait for a freeze that is not there", len(m.replaced))
	}
}

func (o model) checkFrozen(t *rapid.T, f *Frozen) {
	t.Helper()
	if f.Leaves() != modelLeaves || f.Blocks() != modelBlocks {
		t.Fatalf("frozen: %d leaves, %d blocks", f.Leaves(), f.Blocks())
	}
	entries := make([]layout.Location, LeafBlocks)
	for i := range f.Leaves() {
		start := uint64(i) * LeafBlocks
		leaf := f.Leaf(i)
		part := o[start:min(start+LeafBlocks, modelBlocks)]
		want := part.mapped(0, uint64(len(part)))
		if leaf == nil {
			if len(want) > 0 {
				t.Fatalf("frozen leaf %d is missing", i)
			}
			continue
		}
		if len(want) == 0 {
			t.Fatalf("frozen leaf %d is there but empty", i)
		}
		leaf.Entries(entries)
		for j, loc := range entries {
			if j < len(part) && loc != part[j] || j >= len(part) && loc != 0 {
				t.Fatalf("frozen leaf %d, entry %d: %v", i, j, loc)
			}
		}
		got := count{}
		leaf.Each(got.run)
		if !got.equal(want) {
			t.Fatalf("frozen leaf %d: Each tells %d locations, not %d", i, len(got), len(want))
		}
	}
}

// A random history of one map against a model; in between, it is frozen, and
// each Frozen must stay what it was until it is released.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(modelBlocks)
		now := make(model, modelBlocks)
		type view struct {
			f    *Frozen
			then model
			dirt [modelLeaves]bool // leaves that changed since
		}
		var views []*view
		type left struct {
			leaf *Leaf
			then count
		}
		var gone []left // leaves that are not looked through yet
		touch := func(block, n uint64) {
			for _, v := range views {
				for b := block; b < block+n; b++ {
					v.dirt[b/LeafBlocks] = true
				}
			}
		}
		// Ranges: small ones in few places, so that they meet, and some large.
		draw := func(t *rapid.T) (block, n uint64) {
			block = rapid.OneOf(
				rapid.Uint64Range(0, modelBlocks),
				rapid.SampledFrom([]uint64{0, LeafBlocks, 2 * LeafBlocks}),
				rapid.Uint64Range(LeafBlocks-8, LeafBlocks+8),
			).Draw(t, "block")
			n = rapid.OneOf(
				rapid.Uint64Range(0, 6),
				rapid.SampledFrom([]uint64{LeafBlocks - 1, LeafBlocks, LeafBlocks + 1}),
				rapid.Uint64Range(0, modelBlocks),
			).Draw(t, "n")
			return block, min(n, modelBlocks-block)
		}
		// Locations collide now and then, follow each other, and lie at the very
		// end of an object's index space.
		location := func(t *rapid.T, n uint64) layout.Location {
			k := key.Key(rapid.Uint64Range(0, 3).Draw(t, "key"))
			if rapid.Bool().Draw(t, "at the end") {
				return layout.Loc(k, uint32(layout.MaxObjectBlocks-n))
			}
			return layout.Loc(k, rapid.Uint32Range(0, 40).Draw(t, "index"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				block, n := draw(t)
				if n == 0 {
					n = 1
					block = min(block, modelBlocks-1)
				}
				loc := location(t, n)
				told, want := count{}, now.mapped(block, n)
				m.Set(block, uint32(n), loc, told.run)
				if !told.equal(want) {
					t.Fatalf("set %d at %d tells of %v, not %v", n, block, told, want)
				}
				for i := range n {
					now[block+i] = loc.Add(uint32(i))
				}
				touch(block, n)
			},
			"scatter": func(t *rapid.T) { // until the leaves have many spans
				block, _ := draw(t)
				k := key.Key(rapid.Uint64Range(0, 3).Draw(t, "key"))
				for i := range uint64(2 * maxSpans) {
					b := block + 3*i
					if b >= modelBlocks {
						break
					}
					loc := layout.Loc(k, uint32(5*i))
					m.Set(b, 1, loc, nil)
					now[b] = loc
					touch(b, 1)
				}
			},
			"unmap": func(t *rapid.T) {
				block, n := draw(t)
				told, want := count{}, now.mapped(block, n)
				for b := block; b < block+n; b++ {
					if now[b].Mapped() {
						touch(b, 1)
					}
					now[b] = 0
				}
				m.Unmap(block, n, told.run, func(l *Leaf) {
					told.leaf(l)
					then := count{}
					then.leaf(l)
					gone = append(gone, left{l, then})
				})
				if !told.equal(want) {
					t.Fatalf("unmap %d at %d tells of %v, not %v", n, block, told, want)
				}
			},
			"free": func(t *rapid.T) {
				if len(gone) == 0 {
					t.Skip("nothing is gone")
				}
				i := rapid.IntRange(0, len(gone)-1).Draw(t, "which")
				told := count{}
				if told.leaf(gone[i].leaf); !told.equal(gone[i].then) {
					t.Fatalf("a leaf that is gone maps %v, not %v", told, gone[i].then)
				}
				m.Free(gone[i].leaf)
				gone = slices.Delete(gone, i, i+1)
			},
			"fold": func(t *rapid.T) {
				block, _ := draw(t)
				block = min(block, modelBlocks-1)
				m.Fold(block)
				if leaf := m.dir[block/LeafBlocks].Load(); leaf != nil && leaf.entries != nil && len(now.runs(block/LeafBlocks*LeafBlocks, min(LeafBlocks, uint32(modelBlocks-block/LeafBlocks*LeafBlocks)))) <= foldSpans {
					t.Fatal("it is an array still, although few spans are enough")
				}
			},
			"freeze": func(t *rapid.T) {
				views = append(views, &view{f: m.Freeze(), then: slices.Clone(now)})
			},
			"release": func(t *rapid.T) {
				if len(views) == 0 {
					t.Skip("nothing is frozen")
				}
				i := rapid.IntRange(0, len(views)-1).Draw(t, "which")
				views[i].then.checkFrozen(t, views[i].f)
				views[i].f.Release()
				views[i].f.Release() // does nothing more
				views = slices.Delete(views, i, i+1)
			},
			"changed": func(t *rapid.T) {
				f := m.Freeze()
				defer f.Release()
				for _, v := range views {
					for i := range f.Leaves() {
						changed := f.LeafGeneration(i) > v.f.Generation()
						if f.Leaf(i) != nil && changed != v.dirt[i] {
							t.Fatalf("leaf %d of generation %d: changed since freeze %d: %v, not %v",
								i, f.LeafGeneration(i), v.f.Generation(), changed, v.dirt[i])
						}
					}
				}
			},
			"lookup": func(t *rapid.T) {
				block, n := draw(t)
				// A caller's own runs are kept, and not extended.
				mine := Run{Block: 7, N: 1}
				got := m.Lookup(block, uint32(n), []Run{mine})
				if want := append([]Run{mine}, now.runs(block, uint32(n))...); !slices.Equal(got, want) {
					t.Fatalf("lookup of %d at %d: %v, not %v", n, block, got, want)
				}
				if block < modelBlocks && m.Get(block) != now[block] {
					t.Fatalf("get %d: %v, not %v", block, m.Get(block), now[block])
				}
			},
			"": func(t *rapid.T) {
				now.check(t, m)
				var leaves []*Leaf
				for _, g := range gone {
					leaves = append(leaves, g.leaf)
				}
				checkArrays(t, m, leaves)
			},
		})
		for _, v := range views {
			v.then.checkFrozen(t, v.f)
			v.f.Release()
		}
	})
}
