package bs3_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy/objtest"
)

// TestFlushesAreGathered: in virtual time, many jobs that flush after each
// write share puts, and none waits much longer than one put takes.
func TestFlushesAreGathered(t *testing.T) {
	const put = 25 * time.Millisecond
	run := func(jobs int) (flushes, puts int, worst time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			calls := objtest.NewRecorder(&objtest.Hooks{Inner: objtest.NewMemory(), Before: func(ctx context.Context, op objtest.Op) error {
				if op.Kind == objtest.Put {
					time.Sleep(put)
				}
				return nil
			}})
			o := options(t, calls)
			o.StatePath, o.Memory, o.Uploaders = "", 64*8*blockSize, 32
			e := open(t, o)
			calls.Reset()
			var mu sync.Mutex
			var wg sync.WaitGroup
			end := time.Now().Add(2 * time.Second)
			for j := range jobs {
				wg.Go(func() {
					for time.Now().Before(end) {
						if err := e.WriteAt(t.Context(), make([]byte, blockSize), int64(j*blockSize)); err != nil {
							t.Error(err)
						}
						start := time.Now()
						if err := e.Flush(t.Context()); err != nil {
							t.Error(err)
						}
						mu.Lock()
						flushes++
						worst = max(worst, time.Since(start))
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			puts = calls.Count(objtest.Put)
			shut(t, e)
		})
		return flushes, puts, worst
	}
	alone, _, worst := run(1)
	if worst != put {
		t.Fatalf("a flush alone takes %v, not the %v of its put", worst, put)
	}
	together, puts, worst := run(16)
	t.Logf("flushes in 2 s: 1 job %d, 16 jobs %d with %d puts, slowest %v", alone, together, puts, worst)
	if together < 12*alone || together < 4*puts {
		t.Fatalf("16 jobs flush %d times with %d puts, one job %d times", together, puts, alone)
	}
}
