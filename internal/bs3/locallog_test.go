package bs3

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy/objtest"
)

// TestLogFlushSealsNothing: 1,000 flushes in the mode of the local log, each
// after a write, make a handful of objects, also from several clients, who
// share syncs.
func TestLogFlushSealsNothing(t *testing.T) {
	for _, clients := range []int{1, 16} {
		t.Run(fmt.Sprint(clients), func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				const block, flushes = 512, 1000
				a := w.open("a", w.local("a"), func(o *Options) {
					o.ChunkSize, o.Memory, o.LogSize, o.Linger = 512*block, 16*512*block, 64<<20, time.Second
				})
				syncs := 0
				w.disks["a"].sync = func() error {
					syncs++
					time.Sleep(100 * time.Microsecond)
					return nil
				}
				puts := 0
				a.way.After = func(_ context.Context, op objtest.Op, err error) error {
					if isObjectPut(op) {
						puts++
					}
					return err
				}
				var left atomic.Int64
				left.Store(flushes)
				var wg sync.WaitGroup
				for c := range clients {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							a.write(1, uint64(c))
							a.flush()
						}
					})
				}
				wg.Wait()
				if puts >= 20 {
					t.Errorf("%d flushes made %d puts", flushes, puts)
				}
				if clients > 1 && syncs > flushes/4 {
					t.Errorf("%d flushes of %d clients made %d syncs", flushes, clients, syncs)
				}
				t.Logf("%d flushes: %d puts, %d syncs", flushes, puts, syncs)
				synctest.Wait()
			})
		})
	}
}
