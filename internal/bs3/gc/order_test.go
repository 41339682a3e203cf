package gc

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

// sorted is a volume without data: its map and object table, of objects that are
// sorted as a compaction would.
type sorted struct {
	quiet
	p    *mapproxy.Proxy
	at   map[key.Key][]int // the blocks of each object
	next key.Key
	g    *Collector
}

func (v *sorted) Objects(from key.Key, n int) ([]layout.ObjectInfo, bool, key.Key, key.Key) {
	objects, more := v.p.Objects(from, n)
	return objects, more, v.next - 1, v.next
}

// writtenAs returns a volume whose blocks were written in this order into full
// objects.
func writtenAs(volumeBlocks int, blocks []int) *sorted {
	v := &sorted{p: mapproxy.New(uint64(volumeBlocks)), at: make(map[key.Key][]int)}
	v.g = New(Config{Log: v, Checkpoints: checkpoint.New(checkpoint.Config{}, nil, ""), Map: v.p.View(), Misses: func() uint64 { return 0 }, BlockSize: 4096, ChunkBlocks: testChunk})
	v.write(blocks)
	return v
}

func (v *sorted) write(blocks []int) {
	for some := range slices.Chunk(blocks, testChunk) {
		v.p.AddObject(layout.ObjectInfo{Key: v.next, Epoch: 1, Total: uint32(len(some))})
		for i, b := range some {
			v.p.Write(uint64(b), 1, layout.Loc(v.next, uint32(i)))
		}
		v.at[v.next] = some
		v.next++
	}
	maps.DeleteFunc(v.at, func(k key.Key, _ []int) bool {
		o, _ := v.p.Object(k)
		if o.Live == 0 {
			v.p.RemoveObject(k)
		}
		return o.Live == 0
	})
}

// sort sorts batches, and returns how many blocks that moved.
func (v *sorted) sort(batches []batch) (moved int) {
	for _, b := range batches {
		var live []int
		for _, o := range b.objects {
			for _, block := range v.at[o.Key] {
				if v.p.Get(uint64(block)).Key() == o.Key {
					live = append(live, block)
				}
			}
		}
		slices.Sort(live)
		moved += len(live)
		v.write(slices.Compact(live))
	}
	return moved
}

// manyRuns returns the share of the map's leaves that have so many runs that lists of
// them would take no less memory than arrays.
func (v *sorted) manyRuns() float64 {
	many, leaves := 0, 0
	for block := uint64(0); block < v.p.View().Blocks(); block += layout.LeafBlocks {
		leaves++
		if len(v.p.View().Lookup(block, layout.LeafBlocks, nil)) > 32 {
			many++
		}
	}
	return float64(many) / float64(leaves)
}

// TestSortingAtFullSize: volumes of objects of 4 MiB, in blocks of 4 KiB. However they
// were written, sorting comes to an end, and then as few requests are needed as it
// promises; by time it moves no more than Defrag does.
func TestSortingAtFullSize(t *testing.T) {
	const chunks = 256 // 1 GiB
	const blocks = chunks * testChunk
	rnd := rand.New(rand.NewPCG(12, 12))
	some := func(share float64) (list []int) { // at random
		for range int(share * blocks) {
			list = append(list, rnd.IntN(blocks))
		}
		return list
	}
	for name, written := range map[string][]int{
		"in order":                inOrder(chunks),
		"at random":               rnd.Perm(blocks),
		"overwritten twice":       slices.Concat(inOrder(chunks), some(2)),
		"a tenth overwritten":     slices.Concat(inOrder(chunks), some(0.1)),
		"a hundredth overwritten": slices.Concat(inOrder(chunks), some(0.01)),
		"two streams":             twoStreams(chunks),
		"overwritten in a small part": slices.Concat(inOrder(chunks), func() (list []int) {
			for range 2 {
				list = append(list, rnd.Perm(blocks/16)...)
			}
			return list
		}()),
	} {
		var spent [2]int
		for i, way := range []struct {
			name string
			how  choice
			most float64 // requests a chunk
		}{
			{"by time", choice{func(w wide) bool { return w.requests >= timelyRequests }, timelyOverlap, timelyGain}, 4},
			{"defrag", defragged, 2},
		} {
			v := writtenAs(blocks, written)
			before := 0
			passes := 0
			for ; ; passes++ {
				c, err := v.g.takeCensus(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				classes, err := v.g.classes(t.Context(), c, way.how)
				if err != nil {
					t.Fatal(err)
				}
				batches := widest(v.g.batches(classes, way.how))
				if passes == 0 {
					before = c.Requests
				}
				if len(batches) == 0 {
					if share := float64(c.Requests) / chunks; share > way.most {
						t.Errorf("%s, %s: %.1f requests a chunk", name, way.name, share)
					}
					if share := v.manyRuns(); i == 1 && spent[i] > blocks*3/2 && share > 0.1 { // all was sorted
						t.Errorf("%s, %s: %.2f of the map's leaves take an array", name, way.name, share)
					}
					t.Logf("%s, %s: %d passes moved %.2f times all; of %d requests %d are left, in %d objects", name, way.name, passes, float64(spent[i])/blocks, before, c.Requests, c.Objects)
					break
				}
				if passes == 6 {
					t.Fatalf("%s, %s: it does not come to an end", name, way.name)
				}
				spent[i] += v.sort(batches)
			}
		}
		if spent[0] > spent[1] {
			t.Errorf("%s: by time %d blocks are moved, %d by Defrag", name, spent[0], spent[1])
		}
	}
}

// TestPassesMeet: objects of which some have been sorted once already wait for the
// others, and are sorted on together with them: each block moves once in a pass.
func TestPassesMeet(t *testing.T) {
	const chunks = 256
	const blocks = chunks * testChunk
	v := writtenAs(blocks, rand.New(rand.NewPCG(14, 12)).Perm(blocks))
	moved := 0
	for pass := 0; ; pass++ {
		c, err := v.g.takeCensus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		classes, err := v.g.classes(t.Context(), c, defragged)
		if err != nil {
			t.Fatal(err)
		}
		batches := widest(v.g.batches(classes, defragged))
		if pass == 0 {
			batches = batches[:len(batches)/2]
		}
		if len(batches) == 0 {
			break
		}
		moved += v.sort(batches)
	}
	if share := float64(moved) / blocks; share > 2.2 {
		t.Errorf("%.2f times all was moved in two passes", share)
	}
}

// twoStreams returns the blocks of two streams that were written side by side.
func twoStreams(chunks int) (list []int) {
	half := chunks * testChunk / 2
	for i := 0; i < half; i += 32 {
		for j := range 32 {
			list = append(list, i+j)
		}
		for j := range 32 {
			list = append(list, half+i+j)
		}
	}
	return list
}

// TestDefragMergesSmallObjects: each takes a request, however narrow it is, and so
// does each of those that lie where the volume is in order otherwise.
func TestDefragMergesSmallObjects(t *testing.T) {
	const chunks = 64
	rnd := rand.New(rand.NewPCG(13, 12))
	random := func(v *sorted) {
		for range 4000 {
			v.write([]int{rnd.IntN(chunks * testChunk)})
		}
	}
	for name, write := range map[string]func(*sorted){
		"in order": func(v *sorted) {
			for i := range 4000 {
				v.write([]int{i})
			}
		},
		"at random":    random,
		"between full": func(v *sorted) { v.write(inOrder(chunks)); random(v) },
		"halves": func(v *sorted) {
			for half := range slices.Chunk(inOrder(chunks), testChunk/2) {
				v.write(half)
			}
		},
	} {
		v := writtenAs(chunks*testChunk, nil)
		write(v)
		for pass := 0; ; pass++ {
			c, err := v.g.takeCensus(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			classes, err := v.g.classes(t.Context(), c, defragged)
			if err != nil {
				t.Fatal(err)
			}
			batches := widest(v.g.batches(classes, defragged))
			if len(batches) == 0 {
				if c.Objects > c.FullObjects || c.Requests > c.FullRequests {
					t.Errorf("%s: %d passes left %+v", name, pass, c.Spread)
				}
				break
			}
			if pass == 2 {
				t.Fatalf("%s: it does not come to an end", name)
			}
			v.sort(batches)
		}
	}
}
