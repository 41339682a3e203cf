package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// unanswered fails the test if there is already an answer. It cannot prove that there
// will be none; the tests that use it prove the order by what is written.
func unanswered(t *testing.T, what string, ch <-chan answer) {
	t.Helper()
	select {
	case a := <-ch:
		t.Errorf("%s was answered too early: %+v", what, a)
	case <-time.After(20 * time.Millisecond):
	}
}

// While a read-modify-write is between its read and its write, changes of its blocks
// wait, on every connection and path; others do not.
func TestChangesWaitForAReadModifyWrite(t *testing.T) {
	p := func(v byte, n int) []byte { return bytes.Repeat([]byte{v}, n) }
	for name, change := range map[string]struct {
		cmd     uint16
		off     uint64
		length  uint32
		payload []byte
		want    byte // of the bytes that only the change touches
	}{
		"aligned write":   {cmdWrite, 4096, 4096, p(2, 4096), 2},
		"large write":     {cmdWrite, 0, 65536, p(2, 65536), 2},
		"unaligned write": {cmdWrite, 4000, 4000, p(2, 4000), 2},
		"trim":            {cmdTrim, 4096, 4096, nil, 0},
		"zeroes":          {cmdWriteZeroes, 4096, 4096, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			vol := devtest.NewMemory(testGeometry())
			s := startServer(t, vol, Options{})
			a, b := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
			a.mustWrite(0, p(1, 65536))

			release := vol.Block(devtest.Read)
			first := a.start(0, cmdWrite, 4096+200, 4, []byte("edge"))
			if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			second := b.start(0, change.cmd, change.off, change.length, change.payload)
			unanswered(t, name, second)
			b.mustWrite(32<<12, p(9, 4096)) // another block waits for nobody
			release()
			for _, ch := range []<-chan answer{first, second} {
				if r := b.await(ch); r.err != nil || r.e != 0 {
					t.Fatalf("%+v", r)
				}
			}
			if got := a.mustRead(4096+100, 1)[0]; got != change.want {
				t.Errorf("a byte beside the read-modify-write is %d, want %d: the later change was lost", got, change.want)
			}
			if got := a.mustRead(4096+200, 1)[0]; got != change.want {
				t.Errorf("the change that came second left %d", got)
			}
		})
	}
}

// A read-modify-write does not read a block before a running change of it has taken
// effect, and waits for nothing else.
func TestReadModifyWriteWaitsForChanges(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	s := startServer(t, vol, Options{})
	a, b := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
	release := vol.Block(devtest.Write)
	aligned := a.start(0, cmdWrite, 4096, 8192, bytes.Repeat([]byte{1}, 8192))
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	edge := b.start(0, cmdWrite, 8192+10, 2, []byte{7, 7})
	unanswered(t, "unaligned write", edge)
	if n := vol.Calls(devtest.Read); n != 0 {
		t.Errorf("the block was read %d times while a write to it was under way", n)
	}
	other := b.start(0, cmdWrite, 65536+10, 2, []byte{7, 7})
	if err := vol.AwaitCalls(t.Context(), devtest.Read, 1); err != nil {
		t.Errorf("a read-modify-write of another block waits: %v", err)
	}
	release()
	for _, ch := range []<-chan answer{aligned, edge, other} {
		if r := a.await(ch); r.err != nil || r.e != 0 {
			t.Fatalf("%+v", r)
		}
	}
	want := bytes.Repeat([]byte{1}, 4096)
	want[10], want[11] = 7, 7
	if got := a.mustRead(8192, 4096); !bytes.Equal(got, want) {
		t.Error("one of the two writes was lost")
	}
}

// A client that vanishes while it waits for blocks no longer counts, and lets those
// behind it pass.
func TestWaitingForBlocksCanBeGivenUp(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	s := startServer(t, vol, Options{})
	a, b, c := dial(t, s, clientOptions{}), dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
	release := vol.Block(devtest.Read)
	first := a.start(0, cmdWrite, 1, 1, []byte{1})
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	b.start(0, cmdWrite, 2, 1, []byte{2})
	waitFor(t, "the second write to wait", func() bool { return spans(s) == 2 })
	third := c.start(0, cmdWrite, 3, 1, []byte{3})
	waitFor(t, "the third write to wait", func() bool { return spans(s) == 3 })
	b.vanish()
	waitFor(t, "the second write to give up", func() bool { return spans(s) == 2 })
	release()
	a.await(first)
	c.await(third)
	if got := a.mustRead(0, 4); !bytes.Equal(got, []byte{0, 1, 0, 3}) {
		t.Errorf("block begins with %v", got)
	}
	if n := s.overlaps.announced.Load(); n != 0 {
		t.Errorf("%d read-modify-writes are announced when none is left", n)
	}
}

// A connection's changes of the same blocks take effect in the order in which
// they were received, though some of them could be done at once and others
// have to wait. What a client trims and then writes is written.
func TestChangesOfOneConnectionKeepTheirOrder(t *testing.T) {
	for name, payload := range map[string]int{"small": 4096, "large": 2 * peekMax} {
		vol := devtest.NewMemory(testGeometry())
		c := dial(t, startServer(t, vol, Options{}), clientOptions{})
		p := func(v byte) []byte { return bytes.Repeat([]byte{v}, payload) }
		c.mustWrite(0, p(1))
		release := vol.Block(devtest.Discard)
		trim := c.start(0, cmdTrim, 0, uint32(payload), nil)
		awaitBlocked(t, vol, 1)
		write := c.startWrite(0, p(2))
		c.mustWrite(uint64(payload), p(3)) // what does not overlap does not wait
		unanswered(t, name+" write behind a trim", write)
		release()
		for _, ch := range []<-chan answer{trim, write} {
			if a := c.await(ch); a.err != nil || a.e != 0 {
				t.Fatalf("%+v", a)
			}
		}
		if got := c.mustRead(0, payload); !bytes.Equal(got, p(2)) {
			t.Errorf("%s: after trim and write it reads %d, want 2", name, got[0])
		}
	}
	// The same at random: the last one sent is what remains.
	vol := restless{devtest.NewMemory(testGeometry())}
	c := dial(t, startServer(t, vol, Options{}), clientOptions{})
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 0))
	model := make([]byte, 8<<12)
	var answers []<-chan answer
	for i := range 1000 {
		off := rnd.IntN(len(model) - 1)
		n := 1 + rnd.IntN(len(model)-off-1)
		if rnd.IntN(2) == 0 {
			off, n = off&^4095, (n+4095)&^4095
		}
		switch rnd.IntN(4) {
		case 0:
			off, n = off&^4095, (n+4095)&^4095
			clear(model[off:min(off+n, len(model))])
			answers = append(answers, c.start(0, cmdTrim, uint64(off), uint32(n), nil))
		case 1:
			clear(model[off:min(off+n, len(model))])
			answers = append(answers, c.start(0, cmdWriteZeroes, uint64(off), uint32(n), nil))
		default:
			p := bytes.Repeat([]byte{byte(i)}, n)
			copy(model[off:], p)
			answers = append(answers, c.startWrite(uint64(off), p))
		}
	}
	for _, ch := range answers {
		if a := c.await(ch); a.err != nil || a.e != 0 {
			t.Fatalf("%+v", a)
		}
	}
	if got := c.mustRead(0, len(model)); !bytes.Equal(got, model) {
		t.Error("changes sent without waiting took effect out of order")
	}
}

func spans(s *testServer) int {
	s.overlaps.mu.Lock()
	defer s.overlaps.mu.Unlock()
	return len(s.overlaps.spans)
}

// waitFor polls for what shows only inside of the server.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end, limited := t.Deadline()
	for !ok() {
		if limited && time.Until(end) < time.Second {
			t.Fatalf("waited for %s until the end of -timeout", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// restless lets other goroutines run wherever an ordering could be missed, and sends
// some of the writes on the slow path.
type restless struct{ *devtest.Memory }

func yield() {
	for range rand.IntN(8) {
		runtime.Gosched()
	}
}

func (r restless) ReadAt(ctx context.Context, p []byte, off int64) error {
	yield()
	defer yield()
	return r.Memory.ReadAt(ctx, p, off)
}

func (r restless) WriteAt(ctx context.Context, p []byte, off int64) error {
	yield()
	return r.Memory.WriteAt(ctx, p, off)
}

func (r restless) TryWriteAt(p []byte, off int64) bool {
	if rand.IntN(4) == 0 {
		return false
	}
	yield() // may be preempted here
	return r.Memory.TryWriteAt(p, off)
}

// Each writer owns bytes that nobody else changes and finds in them what it
// wrote last, whatever is done to the same blocks beside it: other unaligned
// writes and zeroes, and whole blocks by their one aligned writer, whose bytes
// are those that no other owns.
func TestNoWriteIsLostBesideUnalignedOnes(t *testing.T) {
	const (
		bs      = 512
		blocks  = 8 // per owner of whole blocks
		aligned = 2 // writers of whole blocks, each with blocks of its own
		each    = 3 // unaligned writers in each block, of 100 bytes at 10, 120, 230
		rounds  = 250
	)
	vol := restless{devtest.NewMemory(device.Geometry{Size: aligned * blocks * bs, BlockSize: bs})}
	s := startServer(t, vol, Options{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	fail := func(err error) { cancel(err) }
	for w := range uint64(aligned) {
		wg.Go(func() {
			c := dial(t, s, clientOptions{})
			rnd := rand.New(rand.NewPCG(seed, w))
			for i := 0; i < rounds && ctx.Err() == nil; i++ {
				first := rnd.Uint64N(blocks)
				n := 1 + rnd.Uint64N(blocks-first)
				off := (w*blocks + first) * bs
				value := byte(128 + rnd.IntN(127))
				cmd, payload := uint16(cmdWrite), bytes.Repeat([]byte{value}, int(n*bs))
				if k := rnd.IntN(4); k < 2 {
					cmd, value, payload = []uint16{cmdTrim, cmdWriteZeroes}[k], 0, nil
				}
				if a := c.do(0, cmd, off, uint32(n*bs), payload); a.err != nil || a.e != 0 {
					fail(errors.New("aligned change failed"))
				}
				a := c.do(0, cmdRead, off, uint32(n*bs), nil)
				for b := range int(n) {
					if a.err != nil || a.data[b*bs] != value || a.data[b*bs+bs-1] != value {
						fail(errors.New("an aligned change was lost"))
						return
					}
				}
			}
		})
	}
	for w := range uint64(each) {
		wg.Go(func() {
			c := dial(t, s, clientOptions{})
			rnd := rand.New(rand.NewPCG(seed, 100+w))
			for i := 0; i < rounds && ctx.Err() == nil; i++ {
				off := rnd.Uint64N(aligned*blocks)*bs + 10 + w*110
				cmd, payload := uint16(cmdWrite), bytes.Repeat([]byte{byte(1 + w)}, 100)
				if rnd.IntN(4) == 0 {
					cmd, payload = cmdWriteZeroes, nil
				}
				if a := c.do(0, cmd, off, 100, payload); a.err != nil || a.e != 0 {
					fail(errors.New("unaligned change failed"))
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		t.Fatal(err)
	}
	cancel(nil)
}

func TestUnalignedWritersKeepTheirBytes(t *testing.T) {
	const (
		bs      = 512
		blocks  = 8
		writers = 6
		rounds  = 250
		// Owner w has the bytes that are w modulo writers, in runs of piece,
		// so that runs begin and end anywhere in a block and cross its edges.
		piece = 83
	)
	vol := restless{devtest.NewMemory(device.Geometry{Size: blocks * bs, BlockSize: bs})}
	s := startServer(t, vol, Options{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			c := dial(t, s, clientOptions{})
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			const pieces = blocks * bs / piece / writers
			var value [pieces]byte
			for range rounds {
				k := rnd.IntN(pieces)
				off := uint64((k*writers + w) * piece)
				value[k] = byte(rnd.IntN(256))
				cmd, payload := uint16(cmdWrite), bytes.Repeat(value[k:k+1], piece)
				if value[k] == 0 {
					cmd, payload = cmdWriteZeroes, nil
				}
				if a := c.do(0, cmd, off, piece, payload); a.err != nil || a.e != 0 {
					t.Errorf("writer %d: %+v", w, a)
					return
				}
				k = rnd.IntN(pieces)
				if a := c.do(0, cmdRead, uint64((k*writers+w)*piece), piece, nil); !bytes.Equal(a.data, bytes.Repeat(value[k:k+1], piece)) {
					t.Errorf("writer %d: bytes of its own were changed by another", w)
					return
				}
			}
		})
	}
	wg.Wait()
}
