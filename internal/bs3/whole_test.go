package bs3_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy/objtest"
)

// scatteredVolume fills the first mib MiB of a volume in order, writes all of it
// again in blocks at random, and opens it cold, with a read cache of so many MiB, on
// a store that takes latency for each read of an object and counts them.
func scatteredVolume(t *testing.T, mib, cache int, latency time.Duration) (e *bs3.Engine, data []byte, gets *atomic.Int64) {
	t.Helper()
	const block = 4096
	memory := objtest.NewMemory()
	gets = new(atomic.Int64)
	o := bs3.Options{
		Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "a"}, Size: 256 << 20, BlockSize: block, ChunkSize: 1 << 20,
		Memory: 8 << 20, Uploaders: 4, Durable: true, ReadCache: int64(cache) << 20, Readahead: 8 << 20, WholeObjects: true,
	}
	data = make([]byte, mib<<20)
	rnd := rand.NewChaCha8([32]byte{2})
	_, _ = rnd.Read(data)
	w := open(t, o)
	for off := 0; off < len(data); off += 1 << 20 {
		if err := w.WriteAt(t.Context(), data[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	order := rand.New(rnd)
	for range len(data) / block {
		off := order.IntN(len(data)/block) * block
		_, _ = rnd.Read(data[off : off+8])
		if err := w.WriteAt(t.Context(), data[off:off+block], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, w)
	o.Store = &objtest.Hooks{Inner: memory, Before: func(ctx context.Context, op objtest.Op) error {
		if op.Kind == objtest.Get && isObject(op) {
			gets.Add(1)
			time.Sleep(latency)
		}
		return nil
	}}
	return open(t, o), data, gets
}

// readAt reads as a transport does.
func readAt(t *testing.T, e *bs3.Engine, p []byte, off int64) {
	t.Helper()
	if !e.TryReadAt(p, off) {
		if err := e.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScatteredStream: in virtual time, a cold stream over what was written at
// random asks for each object once or twice, where the cache holds the volume.
func TestScatteredStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, request = 64, 128 << 10
		e, data, gets := scatteredVolume(t, mib, 96, 15*time.Millisecond)
		p := make([]byte, request)
		start := time.Now()
		for off := 0; off < len(data); off += request {
			readAt(t, e, p, int64(off))
			if !bytes.Equal(p, data[off:off+request]) {
				t.Fatalf("other bytes at %d than were written", off)
			}
		}
		t.Logf("%d GETs, %v", gets.Load(), time.Since(start))
		if n := gets.Load(); n > 2*2*mib+300 { // objects, and the reads before it was known for a stream
			t.Errorf("%d GETs for %d objects", n, 2*mib)
		}
		shut(t, e)
	})
}

// TestRandomReadsWarmUp: in virtual time, random reads of a volume that the cache
// holds soon find everything in it.
func TestRandomReadsWarmUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, block = 64, 4096
		e, data, gets := scatteredVolume(t, mib, 96, 15*time.Millisecond)
		rnd := rand.New(rand.NewPCG(1, 2))
		p := make([]byte, block)
		for range 1000 {
			off := rnd.IntN(len(data)/block) * block
			readAt(t, e, p, int64(off))
			if !bytes.Equal(p, data[off:off+block]) {
				t.Fatalf("other bytes at %d than were written", off)
			}
		}
		before := gets.Load()
		for range 1000 {
			readAt(t, e, p, int64(rnd.IntN(len(data)/block)*block))
		}
		if more := gets.Load() - before; more > 20 {
			t.Errorf("%d GETs for the first 1000 reads, %d for the next", before, more)
		}
		shut(t, e)
	})
}

// TestScatteredStreamBeyondTheCache: where the cache does not hold the volume, a cold
// stream over what was written at random takes far fewer requests than blocks.
func TestScatteredStreamBeyondTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, request, block = 64, 128 << 10, 4096
		e, data, gets := scatteredVolume(t, mib, 16, 15*time.Millisecond)
		p := make([]byte, request)
		start := time.Now()
		for off := 0; off < len(data); off += request {
			readAt(t, e, p, int64(off))
			if !bytes.Equal(p, data[off:off+request]) {
				t.Fatalf("other bytes at %d than were written", off)
			}
		}
		t.Logf("%d GETs, %v", gets.Load(), time.Since(start))
		if n := gets.Load(); n > int64(len(data)/block/2) {
			t.Errorf("%d GETs for %d blocks", n, len(data)/block)
		}
		shut(t, e)
	})
}
