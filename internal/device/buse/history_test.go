package buse

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/device"
)

var (
	historySeed  = flag.Uint64("history.seed", 0, "run only this seed of TestHistory")
	historySeeds = flag.Int("history.seeds", 150, "how many seeds TestHistory runs")
)

// journal is a volume that keeps its changes in order. When the machine dies
// it loses some of the last, but none that a flush covers.
type journal struct {
	g       device.Geometry
	durable bool // otherwise a flush keeps nothing, as in barrier mode
	lag     func()

	mu      sync.Mutex
	base    []byte // before the changes
	now     []byte
	changes []change
	flushed int // changes
	crashed bool
}

// change is a write, or with zeros a discard.
type change struct {
	off  int64
	data []byte
}

var errCrashed = fmt.Errorf("%w: the machine has crashed", device.ErrStopped)

func (j *journal) Geometry() device.Geometry { return j.g }

func (j *journal) ReadAt(_ context.Context, p []byte, off int64) error {
	j.lag()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.crashed {
		return errCrashed
	}
	copy(p, j.now[off:])
	return nil
}

func (j *journal) WriteAt(_ context.Context, p []byte, off int64) error {
	j.lag()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.crashed {
		return errCrashed
	}
	j.changes = append(j.changes, change{off, bytes.Clone(p)})
	copy(j.now[off:], p)
	return nil
}

func (j *journal) Flush(context.Context) error {
	j.mu.Lock()
	covered := len(j.changes)
	j.mu.Unlock()
	j.lag()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.crashed {
		return errCrashed
	}
	if j.durable {
		j.flushed = max(j.flushed, covered)
	}
	return nil
}

func (j *journal) Discard(ctx context.Context, off, n int64) error {
	return j.WriteAt(ctx, make([]byte, n), off)
}

func (j *journal) WriteZeroes(ctx context.Context, off, n int64) error {
	return j.WriteAt(ctx, make([]byte, n), off)
}

// crash ends the volume, with a prefix of its changes.
func (j *journal) crash(rnd *rand.Rand) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.crashed = true
	keep := j.flushed + rnd.IntN(len(j.changes)-j.flushed+1)
	for _, c := range j.changes[:keep] {
		copy(j.base[c.off:], c.data)
	}
}

// history is what was asked of a device, and what may therefore be found
// there. Each write of a block makes a version of it, stamped with the block
// and the version; a discard makes one of zeros. Versions are made in the order
// in which the module numbers writes, which is when it acknowledges them.
type history struct {
	blocks int

	mu      sync.Mutex
	stamp   uint64
	content [][]uint64 // by block and version: its stamp, 0 = zeros
	flushed []int      // by block: the version that has to survive
	fences  []fence
}

// fence is a flush that was acknowledged: the versions there were before it
// began and when it was done.
type fence struct{ before, after []int }

func newHistory(blocks int) *history {
	h := &history{blocks: blocks, content: make([][]uint64, blocks), flushed: make([]int, blocks)}
	for b := range h.content {
		h.content[b] = []uint64{0}
	}
	return h
}

// versions are the newest of all blocks, under mu.
func (h *history) versions() []int {
	list := make([]int, h.blocks)
	for b := range list {
		list[b] = len(h.content[b]) - 1
	}
	return list
}

func (h *history) newest() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.versions()
}

// fresh returns n unused stamps.
func (h *history) fresh(n int) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stamp += uint64(n)
	return h.stamp - uint64(n) + 1
}

// changed notes versions of n blocks; stamp 0 means zeros.
func (h *history) changed(first, n int, stamp uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range n {
		v := stamp
		if stamp != 0 {
			v += uint64(i)
		}
		h.content[first+i] = append(h.content[first+i], v)
	}
}

func (h *history) flushDone(before []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fences = append(h.fences, fence{before, h.versions()})
	for b, v := range before {
		h.flushed[b] = max(h.flushed[b], v)
	}
}

// find returns the lowest and the highest version from low to high that p is, or
// fails.
func (h *history) find(b int, p []byte, low, high int) (lowest, highest int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	got := binary.LittleEndian.Uint64(p)
	if !bytes.Equal(p, block(b, got)) {
		return 0, 0, fmt.Errorf("block %d is damaged: %x", b, p[:24])
	}
	lowest = -1
	for v := low; v <= high; v++ {
		if h.content[b][v] == got {
			if lowest < 0 {
				lowest = v
			}
			highest = v
		}
	}
	if lowest < 0 {
		return 0, 0, fmt.Errorf("block %d holds stamp %d, which is none of %v (versions %d to %d)",
			b, got, h.content[b][low:high+1], low, high)
	}
	return lowest, highest, nil
}

// survived checks what is left after a crash, and starts again with it.
func (h *history) survived(state []byte, durable bool) error {
	lowest, highest := make([]int, h.blocks), make([]int, h.blocks)
	newest := h.newest()
	for b := range h.blocks {
		low := 0
		if durable {
			low = h.flushed[b]
		}
		var err error
		if lowest[b], highest[b], err = h.find(b, state[b*testBlock:][:testBlock], low, newest[b]); err != nil {
			return fmt.Errorf("after the crash: %w", err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.fences {
		for later := range h.blocks {
			if lowest[later] <= f.after[later] {
				continue
			}
			for b := range h.blocks {
				if highest[b] < f.before[b] {
					return fmt.Errorf("version %d of block %d survived, which was written after a flush, "+
						"but of block %d only version %d, and before that flush there was %d",
						lowest[later], later, b, highest[b], f.before[b])
				}
			}
		}
	}
	h.fences = nil
	clear(h.flushed)
	for b := range h.blocks {
		h.content[b] = []uint64{h.content[b][lowest[b]]}
	}
	return nil
}

const (
	testBlock = 512 // bytes
	testArea  = 8   // blocks
)

// block is what block b holds for a stamp.
func block(b int, stamp uint64) []byte {
	p := make([]byte, testBlock)
	if stamp == 0 {
		return p
	}
	for i := 0; i < testBlock; i += 16 {
		binary.LittleEndian.PutUint64(p[i:], stamp)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(b))
	}
	return p
}

// TestHistory has several users write, discard, read and flush a few blocks
// through several queues, whose chunks and flushes take their time, and kills
// the machine now and then, upon which the counters of the module begin again.
// Reads have to find what was acknowledged before them, a flush has to keep
// what was acknowledged before it, and what comes after a flush must not
// survive without what was before it, even where a flush keeps nothing.
func TestHistory(t *testing.T) {
	if *historySeed != 0 {
		testHistory(t, *historySeed)
		return
	}
	var read, survivors int
	for range *historySeeds {
		seed := rand.Uint64()
		r, s := testHistory(t, seed)
		read, survivors = read+r, survivors+s
		if t.Failed() {
			t.Fatalf("repeat with -history.seed=%d", seed)
		}
	}
	t.Logf("%d blocks read, %d crashes with acknowledged writes that were not flushed", read, survivors)
	if read == 0 || survivors == 0 {
		t.Error("nothing was tested")
	}
}

func testHistory(t *testing.T, seed uint64) (read, unflushed int) {
	t.Run("", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { read, unflushed = runHistory(t, seed) })
	})
	return read, unflushed
}

func runHistory(t *testing.T, seed uint64) (read, unflushed int) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	const blocks = 3 * testArea
	h := newHistory(blocks)
	state := make([]byte, blocks*testBlock)
	durable := rnd.IntN(2) == 0
	for range 1 + rnd.IntN(4) {
		vol := &journal{
			g:    device.Geometry{Size: blocks * testBlock, BlockSize: testBlock},
			base: state, now: bytes.Clone(state), durable: durable,
		}
		vol.lag = lagger(rnd.Uint64(), time.Duration(1+rnd.IntN(2000)))
		m := newModule(t)
		m.lag = lagger(rnd.Uint64(), time.Duration(1+rnd.IntN(5000)))
		opts := small()
		opts.CollisionArea = testArea * testBlock
		opts.WriteBuffer = opts.ChunkSize * int64(4+rnd.IntN(4))
		s := serve(t, m, vol, opts)
		// Where counters go round, and where they change their sign.
		start := []uint32{0, 0, 1<<31 - 20, 1<<32 - 20}[rnd.IntN(4)]
		m.mu.Lock()
		for i := range m.counters {
			m.counters[i] = start
		}
		m.mu.Unlock()

		var users sync.WaitGroup
		counts := make([]int, 1+rnd.IntN(6))
		for i := range counts {
			u := user{t: t, m: m, h: h, rnd: rand.New(rand.NewPCG(seed, rnd.Uint64())), read: &counts[i]}
			users.Go(u.run)
		}
		if rnd.IntN(5) == 0 {
			// A clean stop: users get errors, and nothing is lost. The removal may hang.
			time.Sleep(time.Duration(rnd.IntN(100_000)))
			s.stop()
			<-s.unused
			state = bytes.Clone(vol.now)
			time.Sleep(time.Second) // for the removal and what lags
			m.mu.Lock()
			hangs := !m.removed
			m.mu.Unlock()
			m.kill()
			users.Wait()
			if err := <-s.ended; err != nil && !hangs {
				t.Errorf("Run: %v", err)
			}
			h.flushDone(h.newest())
			if err := h.survived(state, true); err != nil {
				t.Errorf("clean stop: %v", err)
			}
		} else {
			time.Sleep(time.Duration(rnd.IntN(200_000)))
			vol.crash(rnd)
			m.kill()
			users.Wait()
			if err := s.end(t); err == nil {
				t.Error("Run ended well on a machine that crashed")
			}
			time.Sleep(time.Second) // for what lags still; a bubble waits for nobody
			state = vol.base
			if h.unflushed() {
				unflushed++
			}
			if err := h.survived(state, durable); err != nil {
				t.Error(err)
			}
		}
		for _, n := range counts {
			read += n
		}
		if t.Failed() {
			return read, unflushed
		}
	}
	return read, unflushed
}

func (h *history) unflushed() bool {
	for b, v := range h.newest() {
		if v > h.flushed[b] {
			return true
		}
	}
	return false
}

// lagger returns a function that waits for up to most of the time of the bubble.
func lagger(seed uint64, most time.Duration) func() {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 1))
	return func() {
		mu.Lock()
		d := time.Duration(rnd.Int64N(int64(most)))
		if rnd.IntN(8) == 0 {
			d *= 10
		}
		mu.Unlock()
		time.Sleep(d)
	}
}

// user uses the device until it returns an error.
type user struct {
	t    *testing.T
	m    *module
	h    *history
	rnd  *rand.Rand
	read *int // blocks
}

func (u *user) run() {
	for {
		time.Sleep(time.Duration(u.rnd.IntN(500)))
		q := u.rnd.IntN(3)
		first := u.rnd.IntN(u.h.blocks)
		n := 1 + u.rnd.IntN(min(u.h.blocks-first, 12))
		var err error
		switch u.rnd.IntN(10) {
		case 0, 1, 2, 3, 4:
			stamp := u.h.fresh(n)
			var data []byte
			for i := range n {
				data = append(data, block(first+i, stamp+uint64(i))...)
			}
			err = u.write(q, opWrite, first, n, data, stamp)
		case 5:
			op := []operation{opDiscard, opWriteZeroes}[u.rnd.IntN(2)]
			err = u.write(q, op, first, n, nil, 0)
		case 6:
			var before []int
			if err = u.m.flush(func() { before = u.h.newest() }); err == nil {
				u.h.flushDone(before)
			}
		default:
			err = u.check(q, first, n)
		}
		if err != nil {
			return
		}
	}
}

func (u *user) write(q int, op operation, first, n int, data []byte, stamp uint64) error {
	return u.m.write(q, op, int64(first)*testBlock, int64(n)*testBlock, data, func() { u.h.changed(first, n, stamp) })
}

func (u *user) check(q, first, n int) error {
	low := u.h.newest()
	p := bytes.Repeat([]byte{0x5A}, n*testBlock)
	if err := u.m.read(q, p, int64(first)*testBlock); err != nil {
		return err
	}
	high := u.h.newest()
	for i := range n {
		if _, _, err := u.h.find(first+i, p[i*testBlock:][:testBlock], low[first+i], high[first+i]); err != nil {
			u.t.Error(err)
			return err
		}
	}
	*u.read += n
	return nil
}
