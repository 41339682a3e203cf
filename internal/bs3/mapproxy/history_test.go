package mapproxy

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// historyBlocks is three leaves and a part of a fourth.
const historyBlocks = 3*layout.LeafBlocks + 500

// writer does to a Proxy what the engine does, keeps the log that the engine
// would store, and counts in the simple way what the Proxy must show.
type writer struct {
	p   *Proxy
	log []*layout.Object // the last one is open

	blocks  []layout.Location // the map
	pending []*Unsettled
}

func newWriter() *writer {
	w := &writer{p: New(historyBlocks), blocks: make([]layout.Location, historyBlocks)}
	w.open(false)
	return w
}

func (w *writer) last() *layout.Object { return w.log[len(w.log)-1] }

// open starts the next object; some keys start far away, so that the table has
// several pages and empty ones between.
func (w *writer) open(far bool) {
	k := key.Key(0)
	if len(w.log) > 0 {
		k = w.last().Key + 1
	}
	if far {
		k += 2 * pageObjects
	}
	o := &layout.Object{Footer: layout.Footer{Key: k, Epoch: uint64(k) / 3, Fence: k%3 == 0}}
	w.p.AddObject(layout.ObjectInfo{Key: o.Key, Epoch: o.Epoch, Fence: o.Fence})
	w.log = append(w.log, o)
}

func (w *writer) seal() { w.p.SetTotal(w.last().Key, w.last().Blocks) }

func (w *writer) write(block uint64, n uint32) {
	o := w.last()
	loc := layout.Loc(o.Key, o.Blocks)
	o.Records = append(o.Records, layout.Record{Kind: layout.KindWrite, Block: block, Blocks: n, Index: o.Blocks})
	o.Blocks += n
	w.p.Write(block, n, loc)
	for i := range n {
		w.blocks[block+uint64(i)] = loc.Add(i)
	}
}

func (w *writer) zero(block, n uint64) {
	w.last().Records = append(w.last().Records, layout.Record{Kind: layout.KindZero, Block: block, Blocks: uint32(n)})
	if u := w.p.Zero(block, n); u != nil {
		w.pending = append(w.pending, u)
	}
	clear(w.blocks[block : block+n])
}

func (w *writer) settle(i int) {
	if w.p.Settle(w.pending[i]) {
		w.pending = slices.Delete(w.pending, i, i+1)
	}
}

// source is a run of blocks as collection found it.
type source struct {
	block uint64
	n     uint32
	loc   layout.Location
}

// move collects what was found. Blocks that lie elsewhere by now get a place in
// the new object too, but stay where they are.
func (w *writer) move(found []source) {
	w.seal()
	w.open(false)
	o := w.last()
	for _, s := range found {
		to := layout.Loc(o.Key, o.Blocks)
		for i := range s.n {
			b, from := s.block+uint64(i), s.loc.Add(i)
			still := w.blocks[b] == from
			if w.p.Move(b, from, to.Add(i)) != still {
				panic("move and the model do not agree")
			}
			if still {
				w.blocks[b] = to.Add(i)
			}
		}
		// The engine leaves blocks out that were not moved; a record that names
		// them all the same must do no more on replay than it did live.
		o.Records = append(o.Records, layout.Record{
			Kind: layout.KindMove, Block: s.block, Blocks: s.n, Index: o.Blocks, Source: s.loc,
		})
		o.Blocks += s.n
	}
	w.seal()
	w.open(false)
}

// table is the object table as it must be.
func (w *writer) table() []layout.ObjectInfo {
	live := map[key.Key]uint32{}
	for _, loc := range w.blocks {
		if loc.Mapped() {
			live[loc.Key()]++
		}
	}
	var infos []layout.ObjectInfo
	for _, o := range w.log {
		infos = append(infos, layout.ObjectInfo{
			Key: o.Key, Epoch: o.Epoch, Live: live[o.Key], Total: o.Blocks, Fence: o.Fence,
		})
	}
	return infos
}

// moment is a Frozen with what it must always show.
type moment struct {
	f      *Frozen
	log    int // objects of the log it contains
	blocks []layout.Location
	table  []layout.ObjectInfo
}

func (w *writer) freeze() *moment {
	w.seal()
	w.open(false)
	return &moment{log: len(w.log), blocks: slices.Clone(w.blocks), table: w.table(), f: w.p.Freeze()}
}

// load opens a Proxy from what a checkpoint of m would hold, and applies the
// rest of the log.
func (m *moment) load(t *rapid.T, log []*layout.Object) *Proxy {
	p := New(historyBlocks)
	objects := m.f.Objects()
	for _, info := range objects[:len(objects)-1] { // the open one is above the checkpoint
		p.AddObject(info)
	}
	entries := make([]layout.Location, layout.LeafBlocks)
	for i := range m.f.Map().Leaves() {
		if leaf := m.f.Map().Leaf(i); leaf != nil {
			leaf.Entries(entries)
			if err := p.LoadLeaf(i, entries); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, o := range log[m.log-1:] {
		p.Apply(o)
	}
	return p
}

func (m *moment) check(t *rapid.T) {
	t.Helper()
	checkTable(t, "frozen", m.f.Objects(), m.table)
	if err := m.f.Verify(); err != nil {
		t.Fatal(err)
	}
	entries := make([]layout.Location, layout.LeafBlocks)
	for i := range m.f.Map().Leaves() {
		part := m.blocks[i*layout.LeafBlocks : min((i+1)*layout.LeafBlocks, historyBlocks)]
		clear(entries)
		if leaf := m.f.Map().Leaf(i); leaf != nil {
			leaf.Entries(entries)
		}
		if !slices.Equal(entries[:len(part)], part) {
			t.Fatalf("frozen leaf %d is not what it was", i)
		}
	}
}

func checkTable(t *rapid.T, which string, got, want []layout.ObjectInfo) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s table:\n%+v\nnot\n%+v", which, got, want)
	}
}

// checkAll compares a Proxy, all of it settled, with the writer's model.
func (w *writer) checkAll(t *rapid.T, which string, p *Proxy) {
	t.Helper()
	var total uint64
	for _, want := range w.table() {
		got, ok := p.Object(want.Key)
		if !ok || got != want {
			t.Fatalf("%s: object %d: %+v %v, not %+v", which, want.Key, got, ok, want)
		}
		total += uint64(want.Total)
	}
	mapped := uint64(0)
	for b, loc := range w.blocks {
		if got := p.Get(uint64(b)); got != loc {
			t.Fatalf("%s: block %d at %v, not %v", which, b, got, loc)
		}
		if loc.Mapped() {
			mapped++
		}
	}
	if p.Mapped() != mapped {
		t.Fatalf("%s: %d blocks mapped, not %d", which, p.Mapped(), mapped)
	}
	if objects, live, sum := p.Totals(); objects != len(w.log) || live != mapped || sum != total {
		t.Fatalf("%s: totals %d %d %d, not %d %d %d", which, objects, live, sum, len(w.log), mapped, total)
	}
	f := p.Freeze()
	defer f.Release()
	checkTable(t, which, f.Objects(), w.table())
}

// The map and the table are a pure function of the log: a random history, with
// freezes and half-settled discards, has the same result as its log when that is
// replayed from the start or from any checkpoint.
func TestLiveEqualsReplay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWriter()
		var moments []*moment
		draw := func(t *rapid.T, most uint64) (block, n uint64) {
			block = rapid.OneOf(
				rapid.Uint64Range(0, 8),
				rapid.Uint64Range(layout.LeafBlocks-4, layout.LeafBlocks+4),
				rapid.Uint64Range(0, historyBlocks-1),
			).Draw(t, "block")
			n = rapid.OneOf(rapid.Uint64Range(1, 5), rapid.Uint64Range(1, most)).Draw(t, "n")
			return block, min(n, historyBlocks-block)
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				block, n := draw(t, 600)
				w.write(block, uint32(n))
			},
			"zero": func(t *rapid.T) {
				block, n := draw(t, historyBlocks)
				w.zero(block, n)
			},
			"zero leaves": func(t *rapid.T) {
				n := rapid.Uint64Range(1, 2).Draw(t, "leaves")
				w.zero(rapid.Uint64Range(0, 1).Draw(t, "leaf")*layout.LeafBlocks, n*layout.LeafBlocks)
			},
			"settle": func(t *rapid.T) {
				if len(w.pending) == 0 {
					t.Skip("all is settled")
				}
				w.settle(rapid.IntRange(0, len(w.pending)-1).Draw(t, "which"))
			},
			"seal": func(t *rapid.T) {
				w.seal()
				w.open(rapid.Bool().Draw(t, "far"))
			},
			"move": func(t *rapid.T) {
				var found []source
				for range rapid.IntRange(1, 4).Draw(t, "runs") {
					block, n := draw(t, 200)
					for _, r := range w.p.Lookup(block, uint32(n), nil) {
						if r.Loc.Mapped() {
							found = append(found, source{r.Block, r.N, r.Loc})
						}
					}
				}
				// Meanwhile some of it is written again or discarded.
				if rapid.Bool().Draw(t, "overwrite") {
					block, n := draw(t, 200)
					w.write(block, uint32(n))
				}
				if rapid.Bool().Draw(t, "discard") {
					block, n := draw(t, 200)
					w.zero(block, n)
				}
				w.move(found)
			},
			"freeze": func(t *rapid.T) { moments = append(moments, w.freeze()) },
			"release": func(t *rapid.T) {
				if len(moments) == 0 {
					t.Skip("nothing is frozen")
				}
				i := rapid.IntRange(0, len(moments)-1).Draw(t, "which")
				moments[i].check(t)
				moments[i].f.Release()
				moments = slices.Delete(moments, i, i+1)
			},
			"": func(t *rapid.T) {
				// Counts may lag, but only on the safe side.
				for _, want := range w.table() {
					if got, ok := w.p.Object(want.Key); !ok || got.Live < want.Live {
						t.Fatalf("object %d: %d live blocks, %v; it has %d", want.Key, got.Live, ok, want.Live)
					}
				}
			},
		})
		w.seal()
		replayed := New(historyBlocks)
		for _, o := range w.log {
			replayed.Apply(o)
		}
		w.checkAll(t, "replayed", replayed)
		for _, m := range moments {
			m.check(t)
			w.checkAll(t, "replayed from a checkpoint", m.load(t, w.log))
			m.f.Release()
		}
		for len(w.pending) > 0 {
			w.settle(0)
		}
		w.checkAll(t, "live", w.p)
		if len(w.p.unsettled) > 0 {
			t.Fatal("what was settled is still kept")
		}
	})
}
