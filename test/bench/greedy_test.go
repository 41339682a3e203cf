package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestLambertW(t *testing.T) {
	for _, w := range []float64{-1, -0.9, -0.5, -0.1, -1e-6, 0} {
		if got := lambertW(w * math.Exp(w)); math.Abs(got-w) > 1e-6 {
			t.Errorf("W of %v*exp(%v) is %v", w, w, got)
		}
	}
}

// The formula agrees with what greedy cleaning does.
func TestGreedyBound(t *testing.T) {
	// The share for which L. Xiang and B. Kurkoski, "An improved analytic expression for
	// write amplification in NAND flash", ICNC 2012, give 2.36, and 2.35 as simulated.
	if got := greedyBound(1/1.3, 1<<20); math.Abs(got-2.36) > 0.01 {
		t.Errorf("with 30 %% more room than data: %.3f, not 2.36", got)
	}
	for _, live := range []float64{0.5, 0.7, 0.85} {
		for _, pages := range []int{16, 64} {
			want := cleanGreedily(live, pages)
			if got := greedyBound(live, pages); math.Abs(got/want-1) > 0.03 {
				t.Errorf("%.0f %% live, %d blocks an object: %.3f, and %.3f when it is done", 100*live, pages, got, want)
			}
		}
		// Objects without end: alpha/(alpha + W(-alpha*exp(-alpha))).
		alpha := 1 / live
		limit := alpha / (alpha + lambertW(-alpha*math.Exp(-alpha)))
		if got := greedyBound(live, 1<<20); math.Abs(got/limit-1) > 1e-3 {
			t.Errorf("%.0f %% live, large objects: %.4f, not %.4f", 100*live, got, limit)
		}
	}
}

// cleanGreedily cleans a log of so many pages a segment, and returns the write
// amplification of the last part of it.
func cleanGreedily(live float64, pages int) float64 {
	const segments = 2000
	blocks := int(live * segments * float64(pages))
	rnd := rand.New(rand.NewPCG(1, 1))
	at := make([]int32, blocks) // the segment of each block
	held := make([][]int32, segments)
	lives := make([]int, segments)
	byLive := make([]map[int32]bool, pages+1) // closed segments
	for i := range byLive {
		byLive[i] = map[int32]bool{}
	}
	var free []int32
	for s := range int32(segments) {
		free = append(free, s)
	}
	open, closed := free[0], make([]bool, segments)
	free = free[1:]
	wrote := 0
	put := func(b int32) {
		if len(held[open]) == pages {
			closed[open] = true
			byLive[lives[open]][open] = true
			open, free = free[0], free[1:]
		}
		held[open] = append(held[open], b)
		lives[open]++
		at[b] = open
		wrote++
	}
	die := func(b int32) {
		s := at[b]
		if closed[s] {
			delete(byLive[lives[s]], s)
			byLive[lives[s]-1][s] = true
		}
		lives[s]--
	}
	for b := range int32(blocks) {
		put(b)
	}
	total := 12 * blocks
	from := 0
	for n := range total {
		if n == total*2/3 {
			from = wrote
		}
		b := int32(rnd.IntN(blocks))
		die(b)
		put(b)
		for len(free) < 2 {
			var victim int32
			for _, some := range byLive {
				if len(some) > 0 {
					for victim = range some {
						break
					}
					break
				}
			}
			delete(byLive[lives[victim]], victim)
			closed[victim] = false
			moved := held[victim]
			for _, b := range moved {
				if at[b] == victim {
					lives[victim]--
					at[b] = -1
					put(b)
				}
			}
			held[victim] = held[victim][:0]
			free = append(free, victim)
		}
	}
	return float64(wrote-from) / float64(total-total*2/3)
}
