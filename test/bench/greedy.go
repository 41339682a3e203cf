package main

import "math"

// greedyBound returns the write amplification of greedy cleaning, which always cleans
// the object with the fewest live blocks, where blocks are overwritten uniformly at
// random, live (0 to 1) is the share of live blocks in the log, and an object has so
// many blocks. It is that of P. Desnoyers, "Analytic modeling of SSD write
// performance", SYSTOR 2012. As objects grow it approaches that of cleaning the
// oldest object.
func greedyBound(live float64, objectBlocks int) float64 {
	// As there: alpha is how much larger the log is than what lives, a block of flash
	// is an object, and so many of its pages are live when it is cleaned.
	alpha, pages := 1/live, float64(objectBlocks)
	beta := (1 + 1/(2*pages)) * alpha
	valid := 0.5 - pages/alpha*lambertW(-beta*math.Exp(-beta)) - 1
	return pages / (pages - valid)
}

// lambertW returns the principal branch of Lambert's W: the w from -1 on for which
// w*exp(w) is x. x is from -1/e to 0.
func lambertW(x float64) float64 {
	low, high := -1.0, 0.0
	for range 60 {
		if mid := (low + high) / 2; mid*math.Exp(mid) < x {
			low = mid
		} else {
			high = mid
		}
	}
	return (low + high) / 2
}
