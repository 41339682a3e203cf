package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// The writers of a crash test. Each owns an area of the volume and has one
// request in flight at a time, so that the changes of a block have an order. A
// block is filled with its number and that of the change that wrote it.
const (
	blockSize  = 4096
	writers    = 8
	areaBlocks = 256 // of one writer
	maxBlocks  = 16  // of one change
)

// change is a write or a discard.
type change struct {
	id         uint64 // what a write stamps its blocks with; 0 for a discard
	first, n   int    // blocks
	sent, done int64  // ticks of the history's clock; done is 0 until it is acknowledged
}

// history is what the writers have done since the last look at the volume.
type history struct {
	flushes int // one of so many steps is a flush
	clock   atomic.Int64
	ids     atomic.Uint64
	flushed atomic.Int64 // everything done before this tick was flushed
	acked   atomic.Int64 // changes acknowledged
	// blocks has the changes of each block in order; the first is what the last
	// look found there. Only the owner of a block touches it.
	blocks [writers * areaBlocks][]*change
}

func newHistory() *history {
	h := &history{flushes: 200}
	for b := range h.blocks {
		h.blocks[b] = []*change{{done: 1}}
	}
	h.clock.Store(1)
	return h
}

// stamp returns what change id writes to block b.
func stamp(id uint64, b int) []byte {
	p := make([]byte, blockSize)
	if id == 0 {
		return p
	}
	for i := 0; i < blockSize; i += 16 {
		binary.LittleEndian.PutUint64(p[i:], id)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(b))
	}
	return p
}

// stamped returns the change that wrote block b.
func stamped(p []byte, b int) (id uint64, err error) {
	id = binary.LittleEndian.Uint64(p)
	if string(p) != string(stamp(id, b)) {
		return 0, fmt.Errorf("block %d has neither zeros nor one write: %x…", b, p[:32])
	}
	return id, nil
}

// run lets the writers work on the connections until these break. It fails on
// wrong data, or if a connection breaks although !ended().
func (h *history) run(clients []*client, seed uint64, ended func() bool) error {
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for errs[i] == nil {
				err := h.step(clients[i%len(clients)], rng, i*areaBlocks)
				var wrong *wrongData
				switch {
				case errors.As(err, &wrong), err != nil && !ended():
					errs[i] = err
				case err != nil:
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// wrongData is the error of a read that a live daemon answered wrongly.
type wrongData struct{ error }

// step sends one request for the area that begins at block area.
func (h *history) step(c *client, rng *rand.Rand, area int) error {
	n := 1 + rng.IntN(maxBlocks)
	first := area + rng.IntN(areaBlocks-n+1)
	if rng.IntN(h.flushes) == 0 {
		tick := h.clock.Add(1)
		if _, err := c.send(nbdFlush, 0, 0, nil).wait(); err != nil {
			return err
		}
		for old := h.flushed.Load(); old < tick && !h.flushed.CompareAndSwap(old, tick); old = h.flushed.Load() {
			continue
		}
		return nil
	}
	switch p := rng.IntN(200); {
	case p < 40:
		data, err := c.send(nbdRead, int64(first)*blockSize, n*blockSize, nil).wait()
		if err != nil {
			return err
		}
		return h.check(data, first)
	case p < 50:
		return h.change(c, &change{first: first, n: n}, nbdTrim, nil)
	default:
		x := &change{id: h.ids.Add(1), first: first, n: n}
		var data []byte
		for b := first; b < first+n; b++ {
			data = append(data, stamp(x.id, b)...)
		}
		return h.change(c, x, nbdWrite, data)
	}
}

func (h *history) change(c *client, x *change, cmd uint16, data []byte) error {
	for b := x.first; b < x.first+x.n; b++ {
		h.blocks[b] = append(h.blocks[b], x)
	}
	x.sent = h.clock.Add(1)
	if _, err := c.send(cmd, int64(x.first)*blockSize, x.n*blockSize, data).wait(); err != nil {
		return err
	}
	x.done = h.clock.Add(1)
	h.acked.Add(1)
	return nil
}

// check compares what the owner of blocks read with their last changes.
func (h *history) check(data []byte, first int) error {
	for b := first; len(data) > 0; b, data = b+1, data[blockSize:] {
		list := h.blocks[b]
		if want := list[len(list)-1].id; string(data[:blockSize]) != string(stamp(want, b)) {
			return &wrongData{fmt.Errorf("read from a live daemon: block %d is not as change %d left it: %x…", b, want, data[:32])}
		}
	}
	return nil
}

// held counts the changes that were acknowledged but not flushed.
func (h *history) held() int {
	seen := map[*change]bool{}
	for _, list := range h.blocks {
		for _, x := range list {
			if x.sent > 0 && x.done > h.flushed.Load() {
				seen[x] = true
			}
		}
	}
	return len(seen)
}
