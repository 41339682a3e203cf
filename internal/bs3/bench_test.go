package bs3_test

import (
	"context"
	"math/rand/v2"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// sink is a store that drops the objects of the log, so that a benchmark of
// writes is one of the engine.
type sink struct{ *objtest.Memory }

func (s sink) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if isObject(objtest.Op{Name: name}) {
		return "v", nil
	}
	return s.Memory.Put(ctx, name, body, cond)
}

const benchSize = 4 << 30

func benchEngine(b *testing.B, store objproxy.Store, readCache int64) *bs3.Engine {
	o := bigOptions(b, store, benchSize)
	o.Memory, o.Log, o.ReadCache = 64<<20, zerolog.Nop(), readCache
	e, err := bs3.Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return e
}

// write writes n bytes at off, as a transport does.
func write(b *testing.B, e *bs3.Engine, p []byte, off int64) (waited bool) {
	if e.TryWriteAt(p, off) {
		return false
	}
	if err := e.WriteAt(b.Context(), p, off); err != nil {
		b.Fatal(err)
	}
	return true
}

func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		name  string
		n     int
		cache int64
	}{
		{"4K", 4 << 10, 0},
		{"4K, read cache", 4 << 10, 256 << 20},
		{"128K, read cache", 128 << 10, 256 << 20},
		{"1M, read cache", 1 << 20, 256 << 20},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := benchEngine(b, sink{objtest.NewMemory()}, c.cache)
			p := make([]byte, c.n)
			rnd := rand.New(rand.NewPCG(1, 1))
			// First all that is taken from the kernel as it is used.
			for off := int64(0); off < 512<<20; off += 64 << 10 {
				write(b, e, p[:min(len(p), 64<<10)], off)
			}
			b.SetBytes(int64(c.n))
			b.ReportAllocs()
			waits := 0
			for b.Loop() {
				if write(b, e, p, rnd.Int64N(benchSize/int64(c.n))*int64(c.n)) {
					waits++
				}
			}
			b.ReportMetric(float64(waits)/float64(b.N), "waits/op")
		})
	}
}

// BenchmarkReadHit reads blocks of 4 KiB without asking the store, on all
// processors. lock-% is the share of the time, of all of them, that is spent
// waiting for locks.
func BenchmarkReadHit(b *testing.B) {
	const area = 64 << 20
	for _, c := range []struct {
		name    string
		prepare func(*bs3.Engine)
	}{
		{"hole", func(*bs3.Engine) {}},
		{"chunk memory", func(e *bs3.Engine) { fillArea(b, e, 1<<20) }},
		{"read cache", func(e *bs3.Engine) {
			fillArea(b, e, area)
			if err := e.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			for off := int64(0); off < area; off += 4096 {
				if err := e.ReadAt(b.Context(), make([]byte, 4096), off); err != nil {
					b.Fatal(err)
				}
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := benchEngine(b, objtest.NewMemory(), 256<<20)
			c.prepare(e)
			within := int64(area)
			if c.name == "chunk memory" {
				within = 1 << 20
			}
			b.SetBytes(4096)
			b.ReportAllocs()
			b.ResetTimer()
			waited, began := lockWait(), time.Now()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 4096)
				rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
				for pb.Next() {
					if off := rnd.Int64N(within/4096) * 4096; !e.TryReadAt(p, off) {
						b.Error("a miss")
						return
					}
				}
			})
			b.ReportMetric(100*(lockWait()-waited)/time.Since(began).Seconds(), "lock-%")
		})
	}
}

// fillArea writes the first n bytes in blocks of 4 KiB.
func fillArea(b *testing.B, e *bs3.Engine, n int64) {
	p := make([]byte, 4096)
	for off := int64(0); off < n; off += 4096 {
		write(b, e, p, off)
	}
}

// lockWait is how long goroutines have waited for locks so far, in seconds.
func lockWait() float64 {
	s := []metrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}}
	metrics.Read(s)
	return s[0].Value.Float64()
}

// BenchmarkReadMiss reads blocks of 4 KiB that are in the store alone, which
// answers at once.
func BenchmarkReadMiss(b *testing.B) {
	const area = 256 << 20
	for name, cache := range map[string]int64{"no cache": 0, "cache": 16 << 20} {
		b.Run(name, func(b *testing.B) {
			e := benchEngine(b, objtest.NewMemory(), cache)
			p := make([]byte, 1<<20)
			for off := int64(0); off < area; off += 1 << 20 {
				write(b, e, p, off)
			}
			if err := e.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			rnd := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(4096)
			b.ReportAllocs()
			for b.Loop() {
				if err := e.ReadAt(b.Context(), p[:4096], rnd.Int64N(area/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFlush writes a block and flushes it to a store that answers at once.
func BenchmarkFlush(b *testing.B) {
	o := bigOptions(b, sink{objtest.NewMemory()}, benchSize)
	o.Memory, o.Log, o.Durable = 64<<20, zerolog.Nop(), true
	e, err := bs3.Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := e.Close(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	p := make([]byte, 4096)
	rnd := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		write(b, e, p, rnd.Int64N(benchSize/4096)*4096)
		if err := e.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteDiskCache writes 4 KiB at random, with and without a cache on a disk.
// cpu-ns/op is the time of the processors, the kernel's included; dropped-% what of it
// the disk cache did not take.
func BenchmarkWriteDiskCache(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
		rate int // writes a second; 0 = as many as there can be
	}{
		{"off", 0, 0},
		{"on", 1 << 30, 0},
		{"off, 100k a second", 0, 100_000},
		{"on, 100k a second", 1 << 30, 100_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			o := bigOptions(b, sink{objtest.NewMemory()}, 512<<20)
			o.Memory, o.Log, o.ReadCache = 128<<20, zerolog.Nop(), 64<<20
			o.CachePath, o.DiskCache, o.Durable = b.TempDir(), c.size, true
			e, err := bs3.Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = e.Close(context.Background()) }()
			p := make([]byte, 4096)
			rnd := rand.New(rand.NewPCG(1, 1))
			one := func() { write(b, e, p, rnd.Int64N(512<<20/4096)*4096) }
			for range 2 << 30 / 4096 { // all of the file is there then
				one()
			}
			b.SetBytes(4096)
			b.ResetTimer()
			dropped := func() (n uint64) {
				if s := e.Status().DiskCache; s != nil {
					n = s.Dropped
				}
				return n
			}
			began, cpu, n, before := time.Now(), cpuTime(b), 0, dropped()
			for b.Loop() {
				if n++; c.rate > 0 && n%64 == 0 {
					time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(c.rate))))
				}
				one()
			}
			b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(100*float64(dropped()-before)/float64(n), "dropped-%")
		})
	}
}

// cpuTime returns how long the processors have worked for the process.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
