package bs3_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy/objtest"
)

// BenchmarkLogFlush is a write of 4 KiB and a flush in the mode of the local
// log, by one client and by 16, on the disk that holds TMPDIR; raw is a write of
// 4 KiB and an fdatasync there.
func BenchmarkLogFlush(b *testing.B) {
	b.Run("raw", func(b *testing.B) {
		const size = 64 << 20
		f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(make([]byte, size)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		p := make([]byte, 4096)
		inParallel(b, 1, func(i int64) error {
			p[0]++
			if _, err := f.WriteAt(p, i*4096%size); err != nil {
				return err
			}
			return unix.Fdatasync(int(f.Fd()))
		})
	})
	for name, clients := range map[string]int{"1": 1, "16": 16} {
		b.Run(name, func(b *testing.B) {
			o := bigOptions(b, sink{objtest.NewMemory()}, 4<<30)
			o.CachePath, o.LogSize, o.Memory, o.Linger = b.TempDir(), 256<<20, 64<<20, time.Second
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
			inParallel(b, clients, func(i int64) error {
				if err := e.WriteAt(b.Context(), p, i%(1<<20)*4096); err != nil {
					return err
				}
				return e.Flush(b.Context())
			})
			if l := e.Status().LocalLog; l.FullFlushes > 0 || l.Failed != "" {
				b.Errorf("%+v", *l)
			}
		})
	}
}

// inParallel runs f b.N times in all and reports its median.
func inParallel(b *testing.B, clients int, f func(i int64) error) {
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				begin := time.Now()
				if err := f(i); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(begin)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
}
