package bs3_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy/objtest"
)

// BenchmarkBesideGC measures the latency of reads that miss and of writes, in
// turns without and beside a collection, over a store that takes 15 ms to
// answer. ratio-p99 is the median of the turns' p99 beside one over without.
func BenchmarkBesideGC(b *testing.B) {
	const size, turn, turns = 128 << 20, 2 * time.Second, 5
	o := bigOptions(b, delayed(objtest.NewMemory(), 15*time.Millisecond), size)
	o.Memory, o.Uploaders = 160<<20, 32
	o.GC = gc.Options{Step: 1024, IdleTimeout: 200 * time.Millisecond, LiveData: 0.9}
	e, err := bs3.Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := e.Close(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	litter := func() {
		p := make([]byte, 64<<10)
		rnd := rand.New(rand.NewPCG(1, 1))
		for i := range 2 * size / len(p) {
			off := int64(i * len(p))
			if off >= size { // then here and there
				off = int64(rnd.IntN(size/len(p)) * len(p))
			}
			if err := e.WriteAt(b.Context(), p, off); err != nil {
				b.Fatal(err)
			}
		}
		if err := e.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	measure := func() time.Duration {
		var mu sync.Mutex
		var all []time.Duration
		var wg sync.WaitGroup
		end := time.Now().Add(turn)
		for range 8 {
			wg.Go(func() {
				p := make([]byte, 4096)
				var took []time.Duration
				for now := time.Now(); now.Before(end); now = time.Now() {
					var err error
					if off := rand.Int64N(size/4096) * 4096; rand.IntN(10) < 7 {
						err = e.ReadAt(b.Context(), p, off)
					} else {
						err = e.WriteAt(b.Context(), p, off)
					}
					if err != nil {
						b.Error(err)
						return
					}
					took = append(took, time.Since(now))
				}
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took...)
			})
		}
		wg.Wait()
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	for b.Loop() {
		var ratios []float64
		var without, beside []float64
		for range turns {
			litter()
			quiet := measure()
			done := make(chan error, 1)
			go func() {
				_, err := e.GC(b.Context())
				done <- err
			}()
			busy := measure()
			if len(done) > 0 {
				b.Fatal("the collection ended before the turn did")
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			ratios = append(ratios, float64(busy)/float64(quiet))
			without, beside = append(without, quiet.Seconds()*1000), append(beside, busy.Seconds()*1000)
		}
		for _, s := range [][]float64{ratios, without, beside} {
			slices.Sort(s)
		}
		b.ReportMetric(ratios[turns/2], "ratio-p99")
		b.ReportMetric(without[turns/2], "ms-p99-without")
		b.ReportMetric(beside[turns/2], "ms-p99-beside")
	}
}
