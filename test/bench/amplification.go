package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sort"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// A volume that is small, so that it comes to a steady state soon, with objects so
// small that there are hundreds of them, as in a large one.
const (
	steadyBlocks = 16 * kib // of the volume: 64 MiB
	steadyChunk  = 64       // blocks of an object
	// slack is by how many objects the store may have more than the collector is to
	// leave: those that the kept checkpoints still need, and what is open.
	slack = 8
)

// amplified is the steady state of a volume that is overwritten again and again.
type amplified struct {
	Pattern string
	Allowed float64 // share of live data that the collector is to leave, 0 to 1
	Write   float64 // bytes of objects put for each byte written
	Space   float64 // bytes of objects in the store for each live byte
	Bound   float64 // of Write, if it is known; else 0
	Moved   float64 // bytes moved for each byte written
}

// metered counts the bytes of the log's objects.
type metered struct {
	objproxy.Store
	put atomic.Int64
}

func (m *metered) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if _, err := key.Parse(name); err == nil {
		m.put.Add(int64(len(body.Data) + len(body.Tail)))
	}
	return m.Store.Put(ctx, name, body, cond)
}

// stored returns the bytes of the log's objects in the store.
func (m *metered) stored(ctx context.Context) (sum int64, err error) {
	for after := ""; ; {
		infos, err := m.List(ctx, "", after, 1000)
		if err != nil || len(infos) == 0 {
			return sum, err
		}
		for _, i := range infos {
			if _, err := key.Parse(i.Name); err == nil {
				sum += i.Size
			}
		}
		after = infos[len(infos)-1].Name
	}
}

// overwrites returns which block is overwritten next.
func overwrites(pattern string) func() uint64 {
	rnd := rand.New(rand.NewPCG(1, 2))
	switch pattern {
	case uniformly:
		return func() uint64 { return rnd.Uint64N(steadyBlocks) }
	case byZipf:
		// The block of rank i is overwritten in proportion to i to the power of -0.99.
		// Where it lies has nothing to do with its rank.
		sums, sum, place := make([]float64, steadyBlocks), 0.0, rnd.Perm(steadyBlocks)
		for i := range sums {
			sum += math.Pow(float64(i+1), -0.99)
			sums[i] = sum
		}
		return func() uint64 {
			rank := sort.SearchFloat64s(sums, rnd.Float64()*sum)
			return uint64(place[min(rank, steadyBlocks-1)])
		}
	default:
		next := uint64(0)
		return func() uint64 {
			next++
			return (next - 1) % steadyBlocks
		}
	}
}

// The patterns of overwrites.
const (
	uniformly = "uniform"
	byZipf    = "Zipf 0.99"
	inTurn    = "sequential"
)

// amplify brings a volume to a steady state and measures it there. Times play no
// part: whoever writes waits until the collector has caught up.
func amplify(ctx context.Context, pattern string, allowed float64, rounds int) (a amplified, err error) {
	store := &metered{Store: objtest.NewMemory()}
	host, err := bs3.LocalHost()
	if err != nil {
		return a, err
	}
	e, err := bs3.Open(ctx, bs3.Options{
		Store: store, Host: host, Log: zerolog.New(io.Discard),
		Size: steadyBlocks * blockSize, BlockSize: blockSize, ChunkSize: steadyChunk * blockSize,
		Durable: true, Memory: 64 * steadyChunk * blockSize, Uploaders: 4, Downloaders: 8,
		// Any object with garbage may be cleaned; nothing is merged or sorted.
		GC: gc.Options{Wait: time.Millisecond, Step: 1 << 20, LiveData: 1, MaxGarbage: 1 - allowed},
	})
	if err != nil {
		return a, err
	}
	a = amplified{Pattern: pattern, Allowed: allowed}
	block := make([]byte, blockSize)
	write := func(n uint64) error {
		return e.WriteAt(ctx, block, int64(n)*blockSize)
	}
	most := int64(float64(steadyBlocks*blockSize)/allowed) + slack*steadyChunk*blockSize
	caughtUp := func() error {
		for e.Status().StoredBytes > most {
			if err := e.Checkpoint(ctx); err != nil { // so that what is dead can be deleted
				return err
			}
			if err := pause(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	}
	var before bs3.Status
	var put, stored int64
	var space []float64
	next := overwrites(pattern)
	err = func() error {
		for n := range uint64(steadyBlocks) {
			if err := write(n); err != nil {
				return err
			}
		}
		last := rounds * 2 / 3 * steadyBlocks
		for n := range rounds * steadyBlocks {
			if n == last {
				if err := e.Flush(ctx); err != nil { // or what it puts would count
					return err
				}
				before, put = e.Status(), store.put.Load()
			}
			if err := write(next()); err != nil {
				return err
			}
			if n%steadyChunk == 0 {
				if err := caughtUp(); err != nil {
					return err
				}
			}
			if n >= last && n%(steadyBlocks/8) == 0 {
				if stored, err = store.stored(ctx); err != nil {
					return err
				}
				space = append(space, float64(stored)/float64(e.Status().LiveBytes))
			}
		}
		return e.Flush(ctx)
	}()
	if err == nil {
		after := e.Status()
		written := float64(after.WrittenBytes - before.WrittenBytes)
		a.Write = float64(store.put.Load()-put) / written
		a.Moved = float64(after.Collected.MovedBytes-before.Collected.MovedBytes) / written
		a.Space = median(space)
		if pattern == uniformly {
			a.Bound = greedyBound(allowed, steadyChunk)
		}
	}
	if e := e.Close(ctx); err == nil {
		err = e
	}
	return a, err
}

// measureAmplification measures write and space amplification in steady state.
func measureAmplification(ctx context.Context, b *bench) (rows []row, err error) {
	rounds := 12
	if b.quick {
		rounds = 3
	}
	var all []amplified
	for _, allowed := range []float64{0.5, 0.7, 0.85} {
		of := map[string]amplified{}
		for _, pattern := range []string{uniformly, byZipf, inTurn} {
			a, err := amplify(ctx, pattern, allowed, rounds)
			if err != nil {
				return nil, fmt.Errorf("%s, %.0f %%: %w", pattern, 100*allowed, err)
			}
			of[pattern] = a
			all = append(all, a)
		}
		uniform, zipf := of[uniformly], of[byZipf]
		name := fmt.Sprintf("write amplification, %.0f %% live data allowed: ", 100*allowed)
		rows = append(rows,
			row{
				Name: name + "uniform overwrites, against greedy cleaning", Target: 1.15, AtMost: true, Value: uniform.Write / uniform.Bound,
				Details: []detail{{"bs3", uniform.Write, ""}, {"bound", uniform.Bound, ""}},
			},
			row{
				Name: name + "Zipf 0.99, against uniform overwrites", Target: 1, AtMost: true, Value: zipf.Write / uniform.Write,
				Details: []detail{{"Zipf", zipf.Write, ""}, {"uniform", uniform.Write, ""}},
			})
	}
	b.amplified = all
	return rows, nil
}
