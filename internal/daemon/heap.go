package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// heapLook is the time between two looks at the heap. No garbage collection
	// within it means that the process has come to rest.
	heapLook = 15 * time.Second
	// A collection at rest is worth it if there are so many bytes more than after the
	// last one, or so many goroutines less, each of which leaves a stack.
	heapGrowth      = 16 << 20
	goroutinesEnded = 1000
)

// heap gives memory of the Go heap, and of stacks, back to the kernel when the process
// has come to rest. The runtime alone takes minutes for it: at rest it collects every
// two, and expects until the next time that as much is needed again.
type heap struct {
	rest   heapState // after the last collection of ours
	cycles uint64    // collections until the last look
}

type heapState struct {
	bytes      uint64 // of memory that the Go runtime has
	cycles     uint64 // garbage collections so far
	goroutines int
}

// keepHeapSmall looks at the heap now and then until stop is called.
func keepHeapSmall(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(heapLook)
		defer t.Stop()
		var h heap
		for {
			select {
			case <-t.C:
				h.look()
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// look collects garbage, and gives back what that leaves, if it is worth it.
func (h *heap) look() {
	now := readHeap()
	atRest := now.cycles == h.cycles
	h.cycles = now.cycles
	h.rest.bytes = min(h.rest.bytes, now.bytes)
	if !atRest || now.bytes < h.rest.bytes+heapGrowth && now.goroutines > h.rest.goroutines-goroutinesEnded {
		return
	}
	runtime.GC() // it takes two to empty pools
	debug.FreeOSMemory()
	h.rest = readHeap()
	h.cycles = h.rest.cycles
}

func readHeap() heapState {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(s)
	return heapState{bytes: s[0].Value.Uint64() - s[1].Value.Uint64(), cycles: s[2].Value.Uint64(), goroutines: runtime.NumGoroutine()}
}
