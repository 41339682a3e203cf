package bs3_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// writeInOrder writes data, whole MiB, at the start of a volume.
func writeInOrder(t *testing.T, e *bs3.Engine, data []byte) {
	t.Helper()
	for off := 0; off < len(data); off += 1 << 20 {
		if err := e.WriteAt(t.Context(), data[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// countingGets returns a store that takes latency for each read of an object, and
// counts them.
func countingGets(inner objproxy.Store, gets *atomic.Int64, latency time.Duration) objproxy.Store {
	return &objtest.Hooks{Inner: inner, Before: func(_ context.Context, op objtest.Op) error {
		if op.Kind == objtest.Get && isObject(op) {
			gets.Add(1)
			time.Sleep(latency)
		}
		return nil
	}}
}

// coldVolume writes the first mib MiB of a volume and opens it again, cold, on
// a store of some latency whose reads of objects are counted.
func coldVolume(t *testing.T, mib int, latency time.Duration) (e *bs3.Engine, data []byte, gets *atomic.Int64) {
	t.Helper()
	memory := objtest.NewMemory()
	gets = new(atomic.Int64)
	o := bs3.Options{
		Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "a"}, Size: 256 << 20, BlockSize: 4096, ChunkSize: 1 << 20,
		Memory: 8 << 20, Uploaders: 4, Durable: true, ReadCache: 128 << 20, Readahead: 8 << 20,
	}
	data = make([]byte, mib<<20)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(data)
	w := open(t, o)
	writeInOrder(t, w, data)
	shut(t, w)
	o.Store = countingGets(memory, gets, latency)
	return open(t, o), data, gets
}

// TestSequentialReadIsReadAhead: in virtual time, a cold stream at depth one
// soon goes much faster than one round trip a read, with few requests.
func TestSequentialReadIsReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const latency, request = 15 * time.Millisecond, 128 << 10
		e, data, gets := coldVolume(t, 64, latency)
		p := make([]byte, request)
		start := time.Now()
		for off := 0; off < len(data); off += request {
			if !e.TryReadAt(p, int64(off)) {
				if err := e.ReadAt(t.Context(), p, int64(off)); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(p, data[off:off+request]) {
				t.Fatalf("bytes at %d differ", off)
			}
		}
		took, serial := time.Since(start), time.Duration(len(data)/request)*latency
		t.Logf("%v instead of %v, %d requests", took, serial, gets.Load())
		if took > serial/4 || gets.Load() > 150 {
			t.Fatal("the stream was not read ahead")
		}
		shut(t, e)
	})
}

// TestWhatIsReadAheadIsReadOnce: streams through more than the cache holds fetch
// each byte once, however many there are, and leave what is read often alone.
func TestWhatIsReadAheadIsReadOnce(t *testing.T) {
	synctest.Test(t, readAheadOnce)
}

func readAheadOnce(t *testing.T) {
	const mib, size = 1 << 20, 160 << 20
	memory := objtest.NewMemory()
	o := bs3.Options{
		Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "a"}, Size: 256 << 20, BlockSize: 4096, ChunkSize: mib,
		Memory: 8 * mib, Uploaders: 4, Durable: true, ReadCache: 32 * mib, Readahead: 32 * mib,
	}
	w := open(t, o)
	for off := int64(0); off < size; off += mib {
		if err := w.WriteAt(t.Context(), make([]byte, mib), off); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, w)
	var fetched atomic.Int64
	o.Store = &objtest.Hooks{Inner: memory, Before: func(_ context.Context, op objtest.Op) error {
		if op.Kind == objtest.Get && isObject(op) {
			fetched.Add(op.Bytes)
			time.Sleep(time.Millisecond) // so that what is read ahead has its turn
		}
		return nil
	}}
	const hot, request = 8 * mib, 128 << 10
	p := make([]byte, request)
	for _, streams := range []int64{1, 8} {
		e := open(t, o)
		read := func(p []byte, off int64) {
			if !e.TryReadAt(p, off) {
				if err := e.ReadAt(t.Context(), p, off); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 3 {
			for off := int64(0); off < hot; off += 8192 { // no stream
				read(p[:4096], off)
			}
		}
		fetched.Store(0)
		each := (size - hot) / streams / request * request
		for off := int64(0); off < each; off += request {
			for s := range streams {
				read(p, hot+s*each+off)
			}
		}
		if got := fetched.Load(); got > size*11/10 {
			t.Errorf("%d streams of %d MiB together fetched %d MiB", streams, (size-hot)/mib, got/mib)
		}
		synctest.Wait() // until nothing is read ahead any more
		fetched.Store(0)
		for off := int64(0); off < hot; off += 8192 {
			read(p[:4096], off)
		}
		if got := fetched.Load(); got > hot/2/20 {
			t.Errorf("beside %d streams %d KiB of %d that are read often had to be fetched again", streams, got>>10, hot/2>>10)
		}
		shut(t, e)
	}
}

// TestReadAheadLeavesDownloaders: however much a stream reads ahead, and in
// however many requests, a read beside it takes no longer than its own.
func TestReadAheadLeavesDownloaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, latency, region, downloaders = 1 << 20, 10 * time.Millisecond, 32 << 20, 8
		memory := objtest.NewMemory()
		o := bs3.Options{
			Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "a"}, Size: 256 << 20, BlockSize: 4096, ChunkSize: mib,
			Memory: 8 * mib, Uploaders: 4, Downloaders: downloaders, Durable: true, ReadCache: 128 * mib, Readahead: 8 * mib,
		}
		w := open(t, o)
		block := make([]byte, 4096)
		// In an order in which no two neighbours lie together.
		for i := range int64(region / 4096) {
			if err := w.WriteAt(t.Context(), block, i*2053%(region/4096)*4096); err != nil {
				t.Fatal(err)
			}
		}
		for off := int64(region); off < 2*region; off += mib {
			if err := w.WriteAt(t.Context(), make([]byte, mib), off); err != nil {
				t.Fatal(err)
			}
		}
		shut(t, w)
		o.Store = objproxy.NewPriority(&objtest.Hooks{Inner: memory, Before: func(_ context.Context, op objtest.Op) error {
			if op.Kind == objtest.Get && isObject(op) {
				time.Sleep(latency)
			}
			return nil
		}}, 4, downloaders)
		e := open(t, o)
		var wg sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		wg.Go(func() {
			p := make([]byte, 128<<10)
			for off := int64(0); off < region && ctx.Err() == nil; off += int64(len(p)) {
				_ = e.ReadAt(ctx, p, off) // until it is stopped
			}
		})
		time.Sleep(20 * latency)
		for i := range int64(20) {
			began := time.Now()
			if err := e.ReadAt(t.Context(), block, region+i*7*mib%region+40960); err != nil {
				t.Fatal(err)
			}
			// The stream's own reads, of 32 blocks, are before it in the line too.
			if took := time.Since(began); took > (1+(32+downloaders-1)/(downloaders/2))*latency {
				t.Errorf("a read of a block took %v", took)
			}
		}
		stop()
		wg.Wait()
		shut(t, e)
	})
}

// TestRandomReadIsNotReadAhead: reads that follow no stream cause no requests
// but their own.
func TestRandomReadIsNotReadAhead(t *testing.T) {
	e, data, gets := coldVolume(t, 64, 0)
	rnd := rand.New(rand.NewPCG(1, 1))
	seen := make(map[int]bool)
	p := make([]byte, 4096)
	gets.Store(0)
	for range 2000 {
		block := rnd.IntN(len(data) / 4096)
		if seen[block] || seen[block-1] {
			continue
		}
		seen[block] = true
		if err := e.ReadAt(t.Context(), p, int64(block)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if got := int(gets.Load()); got > len(seen) {
		t.Fatalf("%d requests for %d reads", got, len(seen))
	}
	shut(t, e)
}

// TestIdenticalMissesShareOneRequest.
func TestIdenticalMissesShareOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, data, gets := coldVolume(t, 2, 10*time.Millisecond)
		gets.Store(0)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				p := make([]byte, 8192)
				if err := e.ReadAt(t.Context(), p, 40960); err != nil || !bytes.Equal(p, data[40960:40960+8192]) {
					t.Errorf("read: %v", err)
				}
			})
		}
		wg.Wait()
		if got := gets.Load(); got != 1 {
			t.Fatalf("%d requests for the same blocks", got)
		}
		shut(t, e)
	})
}
