package test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Chunk memory is reused again and again while others read from it. A read
// returns each block as a write left it that the read may see: none older than
// the last that was acknowledged, none that was not sent, and nothing of another
// block.
func TestRecycledChunkMemory(t *testing.T) {
	const (
		// As many as chunk memory holds: what is reused next still has blocks that
		// nobody has replaced. Long reads last for many writes.
		blocks = 1024
		run    = 768
		worked = 5 * time.Second
	)
	v := newVolume(t, onDir).with("write.chunk_size", 1).with("write.memory", 4)
	d := v.start()
	clients := []*client{dial(t, v.socket), dial(t, v.socket), dial(t, v.socket), dial(t, v.socket)}
	var sent, acked [blocks]atomic.Uint64 // the last version of each block
	var done, failed atomic.Bool
	var reads, writes atomic.Int64
	errs := make([]error, 2*len(clients))
	work := func(i int, step func(c *client, rng *rand.Rand) error) {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
		for !done.Load() && errs[i] == nil {
			if errs[i] = step(clients[i%len(clients)], rng); errs[i] != nil {
				failed.Store(true)
			}
		}
	}
	var wg sync.WaitGroup
	for i := range clients {
		// Each writer owns blocks.
		const own = blocks / 4
		wg.Go(func() {
			work(i, func(c *client, rng *rand.Rand) error {
				n := 1 + rng.IntN(64)
				first := i*own + rng.IntN(own-n+1)
				var data []byte
				for b := first; b < first+n; b++ {
					data = append(data, stamp(sent[b].Add(1), b)...)
				}
				if _, err := c.send(nbdWrite, int64(first)*blockSize, len(data), data).wait(); err != nil {
					return err
				}
				for b := first; b < first+n; b++ {
					acked[b].Store(sent[b].Load())
				}
				writes.Add(1)
				return nil
			})
		})
		wg.Go(func() {
			work(len(clients)+i, func(c *client, rng *rand.Rand) error {
				first := rng.IntN(blocks - run + 1)
				var least [run]uint64
				for j := range least {
					least[j] = acked[first+j].Load()
				}
				data, err := c.send(nbdRead, int64(first)*blockSize, run*blockSize, nil).wait()
				if err != nil {
					return err
				}
				for j := range least {
					b := first + j
					version, err := stamped(data[j*blockSize:][:blockSize], b)
					if err != nil {
						return err
					}
					if most := sent[b].Load(); version < least[j] || version > most {
						return fmt.Errorf("block %d reads as version %d, want %d to %d", b, version, least[j], most)
					}
				}
				reads.Add(1)
				return nil
			})
		})
	}
	// For some seconds, and on a slow machine until it shows something.
	began := time.Now()
	d.waitFor("enough reads beside writes", func() bool {
		return time.Since(began) > worked && reads.Load() >= 100 && writes.Load() >= 100 || failed.Load()
	})
	done.Store(true)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d reads beside %d writes", reads.Load(), writes.Load())
	d.stop()
}
