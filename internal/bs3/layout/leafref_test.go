package layout

import (
	"math/rand/v2"
	"testing"

	"bs3/internal/bs3/key"
)

// What a leaf takes tells about how many runs it has.
func TestRunsOfLeaf(t *testing.T) {
	for _, n := range []int{1, 4, 64, 500, LeafBlocks} { // blocks of a run
		rnd := rand.New(rand.NewPCG(uint64(n), 1))
		entries := make([]Location, LeafBlocks)
		for i := 0; i < LeafBlocks; i += n {
			loc := Loc(key.Key(100+rnd.IntN(5000)), uint32(rnd.IntN(500)))
			for j := i; j < min(i+n, LeafBlocks); j++ {
				entries[j] = loc.Add(uint32(j - i))
			}
		}
		runs := (LeafBlocks + n - 1) / n
		got := LeafRef{Length: uint32(len(AppendLeaf(nil, entries)))}.Runs()
		if got < runs/2 || got > 2*runs {
			t.Errorf("%d runs count as %d", runs, got)
		}
	}
}
