package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// However much others have taken, a newcomer finds something, and a connection can
// always have its own part.
func TestMemoryIsShared(t *testing.T) {
	var m memory
	const shared = 64 << 20
	m.shared.Store(shared)
	var held [20]int64
	const some = 64 << 10
	for i := range held {
		for m.grow(&held[i], some) {
		}
		// So many bytes were to be had that it now has as much as is left.
		if left := m.shared.Load(); beyond(held[i]) > left || beyond(held[i])+2*some <= left {
			t.Errorf("connection %d has %d bytes, %d are left", i, held[i], left)
		}
	}
	if alone := beyond(held[0]); alone != shared/2 {
		t.Errorf("the first one got %d bytes of %d", alone, shared)
	}
	m.shared.Store(0)
	var poor int64
	if !m.grow(&poor, ownBytes) || m.grow(&poor, 1) {
		t.Errorf("a connection has %d bytes when nothing is shared", poor)
	}
	for i := range held {
		for held[i] > 0 {
			m.shrink(&held[i], some)
		}
	}
	if left := m.shared.Load(); left >= shared {
		t.Errorf("%d bytes are left of %d less what was taken away", left, shared)
	}
}

// count returns how many idle buffers a pool has, with and without memory.
func (b *buffers) count() (resident, bare int) {
	list := func(s *stack) (n int) {
		for e := s.top.Load(); e != nil; e = e.next {
			n++
		}
		return n
	}
	for i := range b.classes {
		c := &b.classes[i]
		resident += list(&c.fresh) + list(&c.stale)
		bare += list(&c.bare)
	}
	return resident, bare
}

func mustGet(t *testing.T, b *buffers, n int) *buffer {
	t.Helper()
	got, err := b.get(n)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestBuffers(t *testing.T) {
	b := buffers{limit: 1 << 30}
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 1<<20 + 1, maxRequest - 1, 1 << maxBufferBits} {
		got := mustGet(t, &b, n)
		if len(got.p) != n || cap(got.p) != bufferSize(n) || cap(got.p) > max(2*n, 1<<minBufferBits) {
			t.Errorf("buffer of %d bytes has length %d and capacity %d", n, len(got.p), cap(got.p))
		}
		whole := got.p[:cap(got.p)]
		whole[0], whole[len(whole)-1] = 1, 1
		b.put(got)
		if again := mustGet(t, &b, n); again != got || len(again.p) != n {
			t.Errorf("buffer of %d bytes was not used again", n)
		}
		b.put(got)
	}
	b.put(nil)
	if err := b.free(); err != nil {
		t.Error(err)
	}
}

// What is not used goes back to the kernel.
func TestIdleBuffersAreGivenBack(t *testing.T) {
	b := buffers{limit: 1 << 30}
	defer func() {
		if err := b.free(); err != nil {
			t.Error(err)
		}
	}()
	used, idle := mustGet(t, &b, 8192), mustGet(t, &b, 4<<20)
	used.p[0], idle.p[0] = 1, 1
	b.put(idle)
	for range 2 {
		b.turn()
		b.put(used)
		used = mustGet(t, &b, 8192)
	}
	if got := b.resident.Load(); got != 8192 {
		t.Errorf("%d bytes are in memory, want the 8192 in use", got)
	}
	if used.p[0] != 1 {
		t.Error("a buffer in use has lost its bytes")
	}
	again := mustGet(t, &b, 4<<20)
	if again != idle || again.p[0] != 0 {
		t.Errorf("the address of an idle buffer was not used again, or its memory was kept (%d)", again.p[0])
	}
	b.put(again)
	b.put(used)
}

func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := buffers{limit: 1 << 30}
		ctx, stop := context.WithCancel(t.Context())
		var aging sync.WaitGroup
		aging.Go(func() { b.age(ctx) })
		b.put(mustGet(t, &b, 4<<20))
		time.Sleep(idleTime - 1)
		if got := b.resident.Load(); got != 4<<20 {
			t.Errorf("%d bytes are in memory before they have aged", got)
		}
		time.Sleep(idleTime + 1)
		synctest.Wait()
		if got := b.resident.Load(); got != 0 {
			t.Errorf("%d bytes are in memory although nobody has used them for %v", got, 2*idleTime)
		}
		stop()
		aging.Wait()
		if err := b.free(); err != nil {
			t.Error(err)
		}
	})
}

// What is idle in other sizes does not add to what is in use.
func TestIdleBuffersDoNotExceedTheLimit(t *testing.T) {
	b := buffers{limit: 8 << 20}
	defer func() {
		if err := b.free(); err != nil {
			t.Error(err)
		}
	}()
	for _, size := range []int{4096, 1 << 20, 64 << 10, 8 << 20, 4096} {
		var all []*buffer
		for range b.limit / int64(size) {
			all = append(all, mustGet(t, &b, size))
			if got := b.resident.Load(); got > b.limit {
				t.Fatalf("%d bytes are in memory, the limit is %d", got, b.limit)
			}
		}
		for _, one := range all {
			b.put(one)
		}
	}
}

// Each buffer has one owner at a time, beside turns.
func TestBuffersAreExclusive(t *testing.T) {
	b := buffers{limit: 1 << 20}
	var wg sync.WaitGroup
	for w := range byte(8) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for range 2000 {
				got, err := b.get(1 << (12 + rnd.IntN(4)))
				if err != nil {
					t.Error(err)
					return
				}
				got.p[0], got.p[len(got.p)-1] = w, w
				if rnd.IntN(50) == 0 {
					b.turn()
				}
				if got.p[0] != w || got.p[len(got.p)-1] != w {
					t.Error("a buffer has two owners")
				}
				b.put(got)
			}
		})
	}
	wg.Wait()
	resident, bare := b.count()
	b.shed()
	if again, all := b.count(); again != 0 || all != resident+bare || b.resident.Load() != 0 {
		t.Errorf("%d buffers were idle in memory and %d without, then %d and %d; %d bytes are in memory", resident, bare, again, all, b.resident.Load())
	}
	if err := b.free(); err != nil {
		t.Error(err)
	}
}

// scarce returns options with which each connection has its own part of the memory
// and nothing more.
func scarce() Options { return Options{Memory: 1, MaxConns: 8} }

// silence makes a connection that sends b and never reads the replies.
func silence(t *testing.T, s *testServer, b []byte) {
	t.Helper()
	c := dialRaw(t, s)
	c.hello(flagFixedNewstyle | flagNoZeroes)
	c.send(cat(be64(magicOption), be32(optExportName), be32(0)))
	c.recv(10)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.nc.Write(b) // the server takes less; closing the connection ends it
	}()
	t.Cleanup(func() {
		_ = c.nc.Close()
		<-sent
	})
}

// awaitHolders waits until n connections hold memory.
func awaitHolders(t *testing.T, s *testServer, n int) {
	t.Helper()
	waitFor(t, "all of them to hold memory", func() bool {
		holders := 0
		for _, c := range s.connections() {
			c.mu.Lock()
			if c.held >= ownBytes/2 {
				holders++
			}
			c.mu.Unlock()
		}
		return holders == n
	})
}

// Clients that ask and never read the answers, or announce a write and never send
// it, get what one budget allows, and do not keep the others from anything.
func TestSilentClients(t *testing.T) {
	const size = 2 * maxRequest
	opts := Options{Memory: 48 << 20, MaxConns: 16}
	vol := devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})
	s := startServer(t, vol, opts)
	for i := range 15 {
		var b []byte
		for j := range uint64(20) {
			b = append(b, requestBytes(0, cmdRead, j, 4096*j+1, maxRequest)...)
		}
		if i%3 == 0 {
			b = append(requestBytes(0, cmdWrite, 1, 0, maxRequest), make([]byte, 100)...)
		}
		silence(t, s, b)
	}
	awaitHolders(t, s, 15)
	c := dial(t, s, clientOptions{parts: true})
	model := make([]byte, size)
	for i := range model {
		model[i] = byte(i >> 12)
	}
	c.mustWrite(0, model[:maxRequest])
	c.mustWrite(maxRequest-1, model[maxRequest-1:size-1]) // a block more than a buffer holds
	c.must(cmdFlagFUA, cmdWrite, size-100, 100, model[size-100:])
	c.must(0, cmdFlush, 0, 0, nil)
	for _, off := range []int{0, 1, maxRequest} {
		if got := c.mustRead(uint64(off), maxRequest); !bytes.Equal(got, model[off:off+maxRequest]) {
			t.Errorf("%d bytes at %d read back differently", maxRequest, off)
		}
	}
	var wg sync.WaitGroup
	for i := range maxWaiting { // small ones at once
		wg.Go(func() {
			if a := c.do(0, cmdRead, uint64(i)<<12+1, 4096, nil); a.err != nil || a.e != 0 {
				t.Errorf("a small read: errno %d, %v", a.e, a.err)
			}
		})
	}
	wg.Wait()
	if got := s.buffers.resident.Load(); got > opts.Memory {
		t.Errorf("%d bytes are in memory, the budget is %d", got, opts.Memory)
	}
}

// Clients that hold memory, and whose requests wait for more, do not keep the server
// from stopping.
func TestStopDespiteSilentClients(t *testing.T) {
	for _, parts := range []bool{false, true} {
		opts := Options{Memory: 512 << 20, MaxConns: 8, StopTimeout: 20 * time.Millisecond}
		if parts {
			opts.Memory = 1
		}
		s := startServer(t, devtest.NewMemory(device.Geometry{Size: 2 * maxRequest, BlockSize: 4096}), opts)
		for range opts.MaxConns {
			var b []byte
			for i := range uint64(100) {
				b = append(b, requestBytes(0, cmdRead, i, i, maxRequest)...)
			}
			silence(t, s, b)
		}
		awaitHolders(t, s, opts.MaxConns)
		s.stop()
		if err := <-s.done; err != nil {
			t.Error(err)
		}
		s.done <- nil // for the cleanup
	}
}

// What a request takes is counted, also if a buffer is larger than a block.
func TestSmallBlocksAreCounted(t *testing.T) {
	const n = 32
	vol := devtest.NewMemory(device.Geometry{Size: 1 << 20, BlockSize: 512})
	s := startServer(t, vol, scarce())
	c := dial(t, s, clientOptions{})
	release := vol.Block(devtest.Read)
	defer release()
	for i := range uint64(n) {
		if i%2 == 0 {
			c.startWrite(i*1024+1, []byte{1})
		} else {
			c.start(0, cmdWriteZeroes, i*1024+1, 1, nil)
		}
	}
	awaitBlocked(t, vol, n)
	one := s.connections()[0]
	one.mu.Lock()
	defer one.mu.Unlock()
	if got := s.buffers.resident.Load() - batchSize; got > one.held {
		t.Errorf("%d requests take %d bytes, %d are counted", n, got, one.held)
	}
}

// failing fails reads and writes of a block.
type failing struct {
	slow
	block int64 // its offset
}

func (f failing) hit(off int64, n int) bool { return off <= f.block && f.block < off+int64(n) }

var errBadBlock = errors.New("bad block")

func (f failing) ReadAt(ctx context.Context, p []byte, off int64) error {
	if f.hit(off, len(p)) {
		return errBadBlock
	}
	return f.slow.ReadAt(ctx, p, off)
}

func (f failing) WriteAt(ctx context.Context, p []byte, off int64) error {
	if f.hit(off, len(p)) {
		return errBadBlock
	}
	return f.slow.WriteAt(ctx, p, off)
}

// A part that fails fails the request, and nothing else.
func TestPartFails(t *testing.T) {
	const size = 4 * ownBytes
	for _, bad := range []int64{0, 2 * ownBytes, size - 4096, size} {
		vol := failing{slow{devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})}, bad}
		s := startServer(t, vol, scarce())
		c := dial(t, s, clientOptions{parts: true})
		for _, off := range []uint64{0, 1} {
			n := uint32(size - 2*off)
			want := errnoIO
			if bad == size {
				want = 0
			}
			if a := c.do(cmdFlagFUA, cmdWrite, off, n, make([]byte, n)); a.err != nil || a.e != want {
				t.Errorf("write at %d, block %d is bad: errno %d, %v", off, bad, a.e, a.err)
			}
			if a := c.do(0, cmdRead, off, n, nil); a.err != nil || a.e != want {
				t.Errorf("read at %d, block %d is bad: errno %d, %v", off, bad, a.e, a.err)
			}
			c.must(0, cmdFlush, 0, 0, nil)
		}
		// One reply in one piece is not begun if a part fails.
		for _, o := range []clientOptions{{simple: true}, {}} {
			c = dial(t, s, o)
			a := c.do(onePiece(o), cmdRead, 0, size, nil)
			switch {
			case bad < size && (a.err != nil || a.e != errnoIO), bad == size && (a.err != nil || len(a.data) != size):
				t.Errorf("a read in one piece, block %d is bad: errno %d, %d bytes, %v", bad, a.e, len(a.data), a.err)
			}
		}
	}
}

// onePiece returns the flags with which a client gets one piece for a read.
func onePiece(o clientOptions) uint16 {
	if o.simple {
		return 0
	}
	return cmdFlagDF
}

// fading fails all reads after a number of them.
type fading struct {
	slow
	left *atomic.Int64
}

func (f fading) ReadAt(ctx context.Context, p []byte, off int64) error {
	if f.left.Add(-1) < 0 {
		return errBadBlock
	}
	return f.slow.ReadAt(ctx, p, off)
}

// A reply in one piece that has been begun ends with the connection if a part fails.
func TestPartFailsLate(t *testing.T) {
	const size = 4 * ownBytes
	for _, o := range []clientOptions{{simple: true}, {}} {
		vol := fading{slow{devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})}, new(atomic.Int64)}
		vol.left.Store(4 + 2) // all parts once, and two of them again
		c := dial(t, startServer(t, vol, scarce()), o)
		if a := c.do(onePiece(o), cmdRead, 0, size, nil); !errors.Is(a.err, io.ErrUnexpectedEOF) {
			t.Errorf("%+v: errno %d, %d bytes, %v", o, a.e, len(a.data), a.err)
		}
	}
}

// A read in parts that has to wait holds up no other reply.
func TestNothingWaitsBehindAReadInParts(t *testing.T) {
	for _, o := range []clientOptions{{simple: true}, {parts: true}} {
		vol := devtest.NewMemory(device.Geometry{Size: 2 * ownBytes, BlockSize: 4096})
		c := dial(t, startServer(t, slow{vol}, scarce()), o)
		release := vol.Block(devtest.Read)
		read := c.start(0, cmdRead, 0, 2*ownBytes, nil)
		awaitBlocked(t, vol, 1)
		c.must(0, cmdFlush, 0, 0, nil)
		release()
		if a := c.await(read); a.err != nil || len(a.data) != 2*ownBytes {
			t.Errorf("%+v: errno %d, %d bytes, %v", o, a.e, len(a.data), a.err)
		}
	}
}

// Replies of other requests stay outside of a reply that is sent in parts.
func TestPartsBesideOtherReplies(t *testing.T) {
	const size = 4 * ownBytes
	for _, o := range []clientOptions{{simple: true}, {parts: true}} {
		vol := devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})
		c := dial(t, startServer(t, vol, scarce()), o)
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i >> 9)
		}
		c.mustWrite(0, want)
		var wg sync.WaitGroup
		for i := range uint64(8) {
			wg.Go(func() {
				for j := range uint64(20) {
					off, n := (i*20+j)*4096, uint32(4096)
					if j%5 == 0 {
						off, n = i, size/2+uint32(j)
					}
					if a := c.do(0, cmdRead, off, n, nil); !bytes.Equal(a.data, want[off:off+uint64(n)]) {
						t.Errorf("%d bytes at %d read back differently (errno %d, %v)", n, off, a.e, a.err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// The parts of a write whose client vanishes meanwhile have no more effect.
func TestVanishDuringParts(t *testing.T) {
	vol := devtest.NewMemory(device.Geometry{Size: 4 * ownBytes, BlockSize: 4096})
	s := startServer(t, vol, scarce())
	c, other := dial(t, s, clientOptions{}), dial(t, s, clientOptions{parts: true})
	release := vol.Block(devtest.Write)
	go c.startWrite(0, bytes.Repeat([]byte{1}, 2*ownBytes+ownBytes/2)) // the socket does not take all of it
	awaitBlocked(t, vol, 1)                                            // its first part; there is no memory for the second
	c.vanish()
	awaitBlocked(t, vol, 0)
	release()
	waitFor(t, "the connection to end", func() bool { return len(s.connections()) == 1 })
	if got := other.mustRead(0, 4*ownBytes/2); !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("a part took effect after the client had vanished")
	}
}

// The memory of a connection is free when it has ended, however it ends.
func TestEndOfAConnectionFreesItsMemory(t *testing.T) {
	for name, leave := range map[string]func(*client){"vanish": (*client).vanish, "half-close": (*client).halfClose, "disconnect": (*client).disconnect} {
		t.Run(name, func(t *testing.T) {
			vol := newStalling(device.Geometry{Size: 16 << 20, BlockSize: 4096})
			s := startServer(t, vol, Options{})
			c := dial(t, s, clientOptions{})
			c.startWrite(0, block(1))
			<-vol.entered
			one := s.connections()[0]
			for i := range uint64(20) { // what is parked among it
				c.startWrite(4095+i, block(1)[:2])
				c.start(0, cmdRead, 0, 1<<20, nil)
			}
			leave(c)
			close(vol.leave)
			waitFor(t, "the connection to end", func() bool { return len(s.connections()) == 0 })
			if one.held != 0 {
				t.Errorf("the connection still holds %d bytes", one.held)
			}
			s.buffers.shed()
			if got := s.buffers.resident.Load(); got != 0 {
				t.Errorf("%d bytes of buffers were not put back", got)
			}
		})
	}
}
