package bs3_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy/objtest"
)

// scatteredVolume fills the first mib MiB of a volume in order and overwrites twice as
// much in blocks at random. It returns options to open the volume cold, with a read
// cache of so many MiB, on a store as countingGets returns. Its objects have chunk MiB.
func scatteredVolume(t *testing.T, mib, chunk, cache int, latency time.Duration) (o bs3.Options, data []byte, gets *atomic.Int64) {
	t.Helper()
	const block = 4096
	memory := objtest.NewMemory()
	gets = new(atomic.Int64)
	o = bs3.Options{
		Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "a"}, Size: 256 << 20, BlockSize: block, ChunkSize: chunk << 20,
		Memory: 32 << 20, Uploaders: 4, Durable: true, ReadCache: int64(cache) << 20, Readahead: 8 << 20, WholeObjects: true,
		GC: gc.Options{MaxMoves: 0.5},
	}
	data = make([]byte, mib<<20)
	rnd := rand.NewChaCha8([32]byte{2})
	_, _ = rnd.Read(data)
	w := open(t, o)
	writeInOrder(t, w, data)
	order := rand.New(rnd)
	for range 2 * len(data) / block {
		off := order.IntN(len(data)/block) * block
		_, _ = rnd.Read(data[off : off+8])
		if err := w.WriteAt(t.Context(), data[off:off+block], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // so that all is cold
		if err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, w)
	o.Store = countingGets(memory, gets, latency)
	return o, data, gets
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

// stream reads all of a volume in order and compares it.
func stream(t *testing.T, e *bs3.Engine, data []byte) {
	t.Helper()
	p := make([]byte, 128<<10)
	for off := 0; off < len(data); off += len(p) {
		readAt(t, e, p, int64(off))
		if !bytes.Equal(p, data[off:off+len(p)]) {
			t.Fatalf("other bytes at %d than were written", off)
		}
	}
}

// TestScatteredStream: in virtual time, a cold stream over what was written at
// random asks for each object about once, where the cache holds the volume.
func TestScatteredStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 192
		o, data, gets := scatteredVolume(t, mib, 1, 3*mib/2, 15*time.Millisecond)
		e := open(t, o)
		stream(t, e, data)
		if n := gets.Load(); n > 3*mib+150 { // objects, and the reads before it was known for a stream
			t.Errorf("%d GETs for %d objects", n, 3*mib)
		}
		shut(t, e)
	})
}

// TestRandomReadsWarmUp: in virtual time, random reads of a volume that the cache
// holds soon find everything in it.
func TestRandomReadsWarmUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, block = 64, 4096
		o, data, gets := scatteredVolume(t, mib, 1, 96, 15*time.Millisecond)
		e := open(t, o)
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
		if more := gets.Load() - before; more > 50 {
			t.Errorf("%d GETs for the first 1000 reads, %d for the next", before, more)
		}
		shut(t, e)
	})
}

// TestScatteredStreamBeyondTheCache: where the cache does not hold the volume, a cold
// stream over what was written at random takes far fewer requests than blocks. What it
// gathered is written back in order, so that the next one takes fewer again.
func TestScatteredStreamBeyondTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, block = 64, 4096
		o, data, gets := scatteredVolume(t, mib, 4, 8, 15*time.Millisecond)
		e := open(t, o)
		stream(t, e, data)
		first := gets.Swap(0)
		if first > int64(len(data)/block/2) {
			t.Errorf("%d GETs for %d blocks", first, len(data)/block)
		}
		moved := e.Status().Collected.MovedBytes
		if most := int64(len(data)) * 3 / 2; moved == 0 || moved > most {
			t.Errorf("%d bytes were written back, at most %d may be", moved, most)
		}
		shut(t, e)
		e = open(t, o)
		gets.Store(0)
		stream(t, e, data)
		t.Logf("%d GETs, %d MiB written back, then %d GETs", first, moved>>20, gets.Load())
		if again := gets.Load(); again > first*2/3 {
			t.Errorf("%d GETs, and again %d, although %d MiB were written back", first, again, moved>>20)
		}
		shut(t, e)
	})
}

// TestReadGivenUp: in virtual time, a read that is given up while it waits for an object
// that does not come returns at once.
func TestReadGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const block = 4096
		o, data, _ := scatteredVolume(t, 16, 1, 96, 0)
		var hangs atomic.Bool
		o.Store = &objtest.Hooks{Inner: o.Store, Before: func(ctx context.Context, op objtest.Op) error {
			if hangs.Load() && op.Kind == objtest.Get && isObject(op) {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return nil
		}}
		e := open(t, o)
		hangs.Store(true)
		for _, length := range []int{block, 64 * block} { // the second read goes on where the first one ends
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			err := e.ReadAt(ctx, make([]byte, length), int64(len(data)/2+min(length-block, block)))
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
				t.Errorf("a read of %d bytes took %v: %v", length, took, err)
			}
			cancel()
		}
		shut(t, e)
	})
}

// TestWholeObjectsBesideDiskCache: what the disk cache has is not asked of the store, be
// it scattered over objects or not.
func TestWholeObjectsBesideDiskCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, data, gets := scatteredVolume(t, 16, 1, 96, 0)
		o.CachePath, o.DiskCache = t.TempDir(), 128<<20
		few := o
		few.Readahead = 0
		e := open(t, few)
		p := make([]byte, 4096)
		for off := 0; off < len(data); off += len(p) {
			readAt(t, e, p, int64(off))
			synctest.Wait() // or the disk cache would not follow
		}
		shut(t, e)
		e = open(t, o)
		gets.Store(0)
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 100 {
			readAt(t, e, p, int64(rnd.IntN(len(data)/len(p))*len(p)))
		}
		stream(t, e, data)
		if n, s := gets.Load(), e.Status().DiskCache; n > 0 {
			t.Errorf("%d GETs of what the disk cache has: %+v", n, s)
		}
		shut(t, e)
	})
}

// TestNothingIsWrittenBackToAFullStore: in virtual time, what a stream gathered waits for
// a store that takes nothing, rather than the other way round.
func TestNothingIsWrittenBackToAFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, data, _ := scatteredVolume(t, 64, 4, 8, 15*time.Millisecond)
		var full atomic.Bool
		room := make(chan struct{})
		o.Store = &objtest.Hooks{Inner: o.Store, Before: func(ctx context.Context, op objtest.Op) error {
			if full.Load() && op.Kind == objtest.Put {
				select {
				case <-room:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return nil
		}}
		e := open(t, o)
		full.Store(true)
		if err := e.WriteAt(t.Context(), data[:4096], int64(len(data))); err != nil {
			t.Fatal(err)
		}
		stream(t, e, data)
		time.Sleep(time.Minute)
		if n := e.Status().ChunksInMemory; n > 1 {
			t.Errorf("%d objects wait for the store, of which one was written", n)
		}
		close(room)
		stream(t, e, data)
		shut(t, e)
	})
}

// TestStreamBesideWholeObjects: of what lies in order nothing is fetched twice, wherever
// its objects begin.
func TestStreamBesideWholeObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib, first = 64, 1<<20 - 64<<10
		memory := objtest.NewMemory()
		o := bs3.Options{
			Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "a"}, Size: mib << 20, BlockSize: 4096, ChunkSize: 1 << 20,
			Memory: 8 << 20, Uploaders: 4, Durable: true, ReadCache: 2 * mib << 20, Readahead: 8 << 20, WholeObjects: true,
		}
		data := make([]byte, mib<<20)
		_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
		e := open(t, o)
		if err := e.WriteAt(t.Context(), data[:first], 0); err != nil {
			t.Fatal(err)
		}
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for off := first; off < len(data); off += 1 << 20 {
			end := min(off+1<<20, len(data))
			if err := e.WriteAt(t.Context(), data[off:end], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		shut(t, e)
		var fetched atomic.Int64
		o.Store = &objtest.Hooks{Inner: memory, Before: func(_ context.Context, op objtest.Op) error {
			if op.Kind == objtest.Get && isObject(op) {
				fetched.Add(op.Bytes)
				time.Sleep(15 * time.Millisecond)
			}
			return nil
		}}
		e = open(t, o)
		fetched.Store(0)
		stream(t, e, data)
		if most := int64(len(data)) * 11 / 10; fetched.Load() > most {
			t.Errorf("%d bytes were fetched for %d", fetched.Load(), len(data))
		}
		shut(t, e)
	})
}
