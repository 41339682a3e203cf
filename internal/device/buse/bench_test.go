package buse

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"bs3/internal/device"
	"bs3/internal/null"
)

// BenchmarkWrite is a chunk of 4 MiB full of writes of 4 KiB, over the volume
// that drops them: what the adapter costs. Chunks of one goroutine come in
// order, those of several on areas of their own or on the same.
func BenchmarkWrite(b *testing.B) {
	for name, test := range map[string]struct {
		workers int64
		shared  bool
	}{
		"1": {1, false}, "4": {4, false}, "4Shared": {4, true},
	} {
		b.Run(name, func(b *testing.B) {
			const size = 1 << 40
			opts := Options{}
			opts.fill()
			r := new(requests)
			r.start(context.Background(), null.New(device.Geometry{Size: size, BlockSize: 4096}), opts, runtime.Goexit)
			cb := &callbacks{r}
			slots := opts.ChunkSize / 4096
			writes := slots - slots*recordSize/4096
			b.SetBytes(writes * 4096)
			b.ReportAllocs()
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range test.workers {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(1, uint64(w)))
					span := int64(1 << 30) // bytes that one worker writes to
					base := w * span
					if test.shared {
						base = 0
					}
					p := make([]byte, opts.ChunkSize)
					number := uint32(0)
					for n := w; n < int64(b.N); n += test.workers {
						for i := range writes {
							number++
							putRecord(p[i*recordSize:], opWrite, base+rnd.Int64N(span/4096)*4096, 4096, number)
						}
						_ = cb.BuseWrite(writes, p) // nil or nothing
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			if err := r.failure(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(writes)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mwrites/s")
		})
	}
}
