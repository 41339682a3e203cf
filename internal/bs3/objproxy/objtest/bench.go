package objtest

import (
	"fmt"
	"sync/atomic"
	"testing"

	"bs3/internal/bs3/objproxy"
)

// Benchmark measures the most frequent requests of the engine: puts of whole
// objects and reads of single blocks, several at once.
func Benchmark(b *testing.B, s objproxy.Store) {
	const objectSize, blockSize = 4 << 20, 4 << 10
	const name = "volume"
	data, tail := random(1, objectSize), random(2, 33<<10)
	b.Run("Put4M", func(b *testing.B) {
		b.SetBytes(int64(len(data) + len(tail)))
		var n atomic.Int64
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				// A few names, so that a long run does not fill the disk.
				name := fmt.Sprintf("%08x/00000000", n.Add(1)%64)
				if _, err := s.Put(b.Context(), name, objproxy.Body{Data: data, Tail: tail}, objproxy.Condition{}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("Get4K", func(b *testing.B) {
		if _, err := s.Put(b.Context(), name, objproxy.Body{Data: data, Tail: tail}, objproxy.Condition{}); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(blockSize)
		var n atomic.Int64
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			p := make([]byte, blockSize)
			for pb.Next() {
				off := n.Add(1) % (objectSize / blockSize) * blockSize
				if _, _, err := s.Get(b.Context(), name, p, off); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
