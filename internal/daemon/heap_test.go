package daemon

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What many requests need at a time goes back when they have ended, also if they
// were waiting for long, and a process at rest is then left alone.
func TestHeapIsGivenBack(t *testing.T) { synctest.Test(t, testHeapIsGivenBack) }

func testHeapIsGivenBack(t *testing.T) {
	defer keepHeapSmall(t.Context())()
	settle := func() {
		time.Sleep(3*heapLook + 1) // the first look sees collections of what was before
		synctest.Wait()
	}
	leave := make(chan struct{})
	var requests sync.WaitGroup
	for range 10_000 {
		requests.Go(func() {
			var onStack [4 << 10]byte
			onHeap := make([]byte, 4<<10)
			<-leave
			runtime.KeepAlive(&onStack)
			runtime.KeepAlive(onHeap)
		})
	}
	settle()
	held := readHeap()
	if held.bytes < 80<<20 {
		t.Fatalf("%d requests hold no more than %d bytes", 10_000, held.bytes)
	}
	close(leave)
	requests.Wait()
	settle()
	rest := readHeap()
	if rest.bytes > 2*heapGrowth {
		t.Errorf("%d bytes are not given back, it held %d", rest.bytes, held.bytes)
	}
	settle()
	if again := readHeap(); again.cycles != rest.cycles {
		t.Errorf("%d more collections at rest", again.cycles-rest.cycles)
	}
	grown := make([]byte, 2*heapGrowth)
	for i := range grown {
		grown[i] = 1
	}
	runtime.KeepAlive(grown)
	settle()
	if rest := readHeap(); rest.bytes > 2*heapGrowth {
		t.Errorf("%d bytes are not given back that the heap has grown by", rest.bytes)
	}
}
