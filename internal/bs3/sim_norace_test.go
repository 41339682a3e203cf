//go:build !race

package bs3

import (
	"slices"
	"testing"
)

// simDefault is how many seeds a plain `go test` runs.
const simDefault = 250

// TestSimDeterminism: a seed is one run, or a failing one could not be found
// again. Where the engine finds two things ready at once Go takes either, so a
// few seeds may differ. The race detector makes Go shuffle whoever can run, on
// purpose: with it many do.
func TestSimDeterminism(t *testing.T) {
	root := simRoot(t)
	lines := func(seed uint64) []string {
		var l []string
		for _, e := range newSimRun(seed).doIn(t, root).trace {
			if !e.noise {
				l = append(l, e.String())
			}
		}
		return l
	}
	const seeds, most = 20, 3
	differ := 0
	for seed := range uint64(seeds) {
		if seed%simUnsteady == simUnsteady-1 {
			continue
		}
		a, b := lines(seed), lines(seed)
		if slices.Equal(a, b) {
			continue
		}
		differ++
		at := 0
		for at < min(len(a), len(b)) && a[at] == b[at] {
			at++
		}
		t.Logf("seed %d: the runs part at line %d of %d: %q, %q", seed, at, len(a), a[at:min(at+2, len(a))], b[at:min(at+2, len(b))])
	}
	if differ > most {
		t.Errorf("%d of %d seeds are not the same each time", differ, seeds)
	}
}
