package rcache

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

const (
	benchBlock  = 4096
	benchFrames = 1 << 16 // 256 MiB, the default
	chunkBlocks = 1024
)

func benchCache(b *testing.B) *Cache {
	b.Helper()
	c, err := New(benchFrames*benchBlock, benchBlock, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	return c
}

// fill puts whole chunks, from key first, until the cache is full.
func fill(c *Cache, first key.Key) {
	chunk := make([]byte, chunkBlocks*benchBlock)
	for k := range key.Key(2 * benchFrames / chunkBlocks) {
		c.Put(layout.Loc(first+k, 0), numbers(chunkBlocks), chunk, benchBlock)
	}
}

// Hits at random places, on all processors.
func BenchmarkGet(b *testing.B) {
	c := benchCache(b)
	const n = benchFrames / 2
	for k := range key.Key(n / chunkBlocks) {
		c.Put(layout.Loc(k, 0), numbers(chunkBlocks), make([]byte, chunkBlocks*benchBlock), benchBlock)
	}
	b.SetBytes(benchBlock)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
		p := make([]byte, benchBlock)
		for pb.Next() {
			i := rnd.IntN(n)
			if !c.Get(layout.Loc(key.Key(i/chunkBlocks), uint32(i%chunkBlocks)), p) {
				b.Error("a miss")
				return
			}
		}
	})
}

// Put of a chunk into a full cache, as after each upload.
func BenchmarkPutChunk(b *testing.B) {
	c := benchCache(b)
	fill(c, 0)
	chunk := make([]byte, chunkBlocks*benchBlock)
	k := key.Key(1 << 20)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		c.Put(layout.Loc(k, 0), numbers(chunkBlocks), chunk, benchBlock)
		k++
	}
}

// Put of a block into a full cache, as after each miss.
func BenchmarkPutBlock(b *testing.B) {
	c := benchCache(b)
	fill(c, 0)
	block := make([]byte, benchBlock)
	at := make([]layout.Location, 1<<20)
	for i := range at {
		at[i] = layout.Loc(key.Key(1000+rand.Uint64N(1<<20)), rand.Uint32N(chunkBlocks))
	}
	i := 0
	b.SetBytes(benchBlock)
	b.ReportAllocs()
	for b.Loop() {
		c.Put(at[i%len(at)], numbers(1), block, benchBlock)
		i++
	}
}

// BenchmarkDiskFill writes chunks of random overwrites to the cache on the disk. What a
// block costs in time of the processors is cpu-ns/block.
func BenchmarkDiskFill(b *testing.B) {
	o := newOverwriter(1 << 17)
	d, err := OpenDisk(filepath.Join(b.TempDir(), "cache"), diskUUID, benchBlock, 1<<30, o.where, func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	stored := make([]byte, chunkBlocks*layout.Stride(benchBlock))
	fill := func() {
		loc, blocks := o.write(chunkBlocks)
		ended := make(chan struct{})
		if d.Lend(loc, 1, blocks, stored, func() { close(ended) }) == nil {
			b.Fatal("nothing was lent")
		}
		<-ended
	}
	for range 2 << 30 / benchBlock / chunkBlocks {
		fill()
	}
	b.SetBytes(chunkBlocks * benchBlock)
	before := cpuTime(b)
	for b.Loop() {
		fill()
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N*chunkBlocks), "cpu-ns/block")
}

// cpuTime returns how long the processors have worked for the process.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
