package test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Random writes of one block overwrite a range ten times. After a collection the
// store holds little more than the live data, all of which is there after a
// restart on nothing but the store, and in the end the idle daemon sends no more
// requests.
func TestChurn(t *testing.T) {
	live, quiet := 40*mib, 5*time.Second
	if *long {
		live, quiet = 400*mib, time.Minute
	}
	const perWriter = 10 // writes for each block, on average (4 GiB for 400 MiB)
	v, p := newProxiedVolume(t)
	v.with("gc.wait", 0)
	d := v.start()
	clients := []*client{dial(t, v.socket), dial(t, v.socket)}
	last := make([]uint64, live/blockSize) // the number of the write that each block holds
	var wg sync.WaitGroup
	began := time.Now()
	for w := range writers {
		wg.Go(func() { // writes the blocks whose number modulo writers is w, one at a time
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for id := uint64(1); id <= uint64(len(last)*perWriter/writers); id++ {
				b := rng.IntN(len(last)/writers)*writers + w
				if _, err := clients[w%2].send(nbdWrite, int64(b)*blockSize, blockSize, stamp(id, b)).wait(); err != nil {
					t.Errorf("write block %d: %v", b, err)
					return
				}
				last[b] = id
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	clients[0].flush()
	took := time.Since(began)
	weigh := func() (objects int, size int64) {
		for _, o := range v.bucket().objects(t) {
			objects, size = objects+1, size+o.Size
		}
		return objects, size
	}
	objects, before := weigh()
	var report gcReport
	v.call(&report, "gc", "--json")
	left, after := weigh()
	s := v.status()
	t.Logf("%d MB written in %v; a collection left %d objects with %d MB of %d with %d MB: %.2f times the %d MB of live data",
		s.WrittenBytes/mib, took.Round(time.Second), left, after/mib, objects, before/mib, float64(after)/float64(s.LiveBytes), s.LiveBytes/mib)
	t.Logf("it moved %d MB: write amplification of collection %.3f", report.MovedBytes/mib, float64(s.WrittenBytes+s.Collected.MovedBytes)/float64(s.WrittenBytes))
	if after > 2*s.LiveBytes || left >= objects || report.MovedBytes == 0 || s.LiveBytes < live*9/10 {
		t.Errorf("the store holds %d bytes in %d objects, before the collection %d in %d; status: %+v", after, left, before, objects, s)
	}
	d.kill()
	v.wipeState()

	d = v.with("gc.wait", 2).with("checkpoint.interval", 2).start()
	c := dial(t, v.socket)
	const some = 256 // blocks
	for first := 0; first < len(last); first += some {
		data := c.read(int64(first)*blockSize, some*blockSize)
		for i := range some {
			b := first + i
			if id, err := stamped(data[i*blockSize:][:blockSize], b); err != nil || id != last[b] {
				t.Fatalf("block %d has write %d, want %d (%v)", b, id, last[b], err)
			}
		}
	}
	c.write(0, stamp(1, 0)) // something to checkpoint and collect
	c.flush()
	began = time.Now()
	count := func() int { return len(p.requests("GET", "HEAD", "PUT", "POST", "DELETE")) }
	seen, since := count(), time.Now()
	d.waitFor("the idle daemon to be quiet", func() bool {
		if n := count(); n != seen {
			seen, since = n, time.Now()
		}
		return time.Since(since) > quiet
	})
	t.Logf("the daemon sent its last request %v after the last write", since.Sub(began).Round(time.Second))
	d.stop()
}
