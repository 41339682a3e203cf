package nbd

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// block is a block of bytes v.
func block(v byte) []byte { return bytes.Repeat([]byte{v}, 4096) }

func (c *client) startWrite(off uint64, p []byte) <-chan answer {
	return c.start(0, cmdWrite, off, uint32(len(p)), p)
}

// halfClose closes the sending side.
func (c *client) halfClose() {
	c.t.Helper()
	if err := c.nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
}

// sendRaw sends bytes that are not a request of the client.
func (c *client) sendRaw(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) disconnect() {
	c.t.Helper()
	c.sendRaw(requestBytes(0, cmdDisc, 0, 0, 0))
}

func awaitBlocked(t *testing.T, vol *devtest.Memory, n int) {
	t.Helper()
	if err := vol.AwaitBlocked(t.Context(), n); err != nil {
		t.Fatalf("want %d blocked: %v", n, err)
	}
}

// mustHold checks the first byte of each of the first blocks.
func mustHold(t *testing.T, vol device.Volume, want ...byte) {
	t.Helper()
	p := make([]byte, 4096)
	for b, v := range want {
		if err := vol.ReadAt(context.Background(), p, int64(b)*4096); err != nil {
			t.Fatal(err)
		}
		if p[0] != v {
			t.Errorf("block %d holds %d, want %d", b, p[0], v)
		}
	}
}

func TestRequestOfAClientThatVanishedIsNeverServed(t *testing.T) {
	local := Options{Network: "tcp", Address: "127.0.0.1:0"}
	for name, test := range map[string]struct {
		opts  Options
		leave func(*client)
	}{
		"close":          {Options{}, (*client).vanish},
		"half-close":     {Options{}, (*client).halfClose},
		"garbage":        {Options{}, func(c *client) { c.sendRaw(make([]byte, requestSize)) }},
		"TCP close":      {local, (*client).vanish},
		"TCP half-close": {local, (*client).halfClose},
		"TCP reset": {local, func(c *client) {
			if err := c.nc.(*net.TCPConn).SetLinger(0); err != nil {
				c.t.Error(err)
			}
			c.vanish()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			vol := devtest.NewMemory(testGeometry())
			s := startServer(t, vol, test.opts)
			old, other := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
			release := vol.Block(devtest.Write, devtest.Discard, devtest.WriteZeroes)
			other.startWrite(6<<12, block(1))
			old.startWrite(0, block(1))                            // whole
			old.startWrite(4096+1, block(1)[:10])                  // read-modify-write
			old.start(0, cmdTrim, 2<<12, 4096, nil)                // in one piece
			old.start(0, cmdWriteZeroes, 3<<12, 4096, nil)         //
			old.start(cmdFlagFUA, cmdWrite, 4<<12, 4096, block(1)) // with a flush behind it
			awaitBlocked(t, vol, 6)
			test.leave(old)
			awaitBlocked(t, vol, 1)
			release()
			for b := range uint64(6) {
				other.mustWrite(b<<12, block(byte(10+b)))
			}
			old.awaitEnd()
			mustHold(t, vol, 10, 11, 12, 13, 14, 15)
			if n := vol.Calls(devtest.Flush); n != 0 {
				t.Errorf("%d flushes for a client that is gone", n)
			}
		})
	}
}

// The client may send its requests again elsewhere when it has hung up. What
// the server then still reads from the old socket is not served.
func TestRequestsReadAfterTheHangUpAreDropped(t *testing.T) {
	for name, leave := range map[string]func(*client){"close": (*client).vanish, "half-close": (*client).halfClose} {
		t.Run(name, func(t *testing.T) {
			vol := newStalling(testGeometry())
			s := startServer(t, vol, Options{})
			old, other := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
			old.startWrite(7<<12, block(1)) // the server stalls in this one
			<-vol.entered
			old.startWrite(0, block(1))
			old.startWrite(4096+1, block(1)[:10])
			old.start(0, cmdTrim, 2<<12, 4096, nil)
			leave(old)
			other.mustWrite(0, bytes.Repeat([]byte{2}, 3<<12))
			close(vol.leave)
			waitFor(t, "the old connection to end", func() bool { return len(s.connections()) == 1 })
			mustHold(t, vol, 2, 2, 2, 0, 0, 0, 0, 1)
		})
	}
}

// The same for what was read together with the end of the handshake.
func TestRequestsReadWithTheHandshakeAreDropped(t *testing.T) {
	vol := newStalling(testGeometry())
	s := startServer(t, vol, Options{})
	first, other := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
	first.startWrite(7<<12, block(1))
	<-vol.entered
	first.vanish() // holds up the next one's handshake, see settle
	hasty := dialRaw(t, s)
	hasty.send(be32(flagFixedNewstyle), be64(magicOption), be32(optExportName), be32(0),
		requestBytes(0, cmdWrite, 1, 0, 4096), block(1))
	waitFor(t, "the hasty client to be read", func() bool { return len(s.connections()) == 3 })
	if err := hasty.nc.Close(); err != nil {
		t.Fatal(err)
	}
	other.mustWrite(0, block(2))
	close(vol.leave)
	waitFor(t, "the old connections to end", func() bool { return len(s.connections()) == 1 })
	mustHold(t, vol, 2)
}

// stalling holds the first write through Fast until the test lets it go, as a
// server that does not get the processor would.
type stalling struct {
	*devtest.Memory
	held           atomic.Bool
	entered, leave chan struct{}
}

func newStalling(g device.Geometry) *stalling {
	return &stalling{Memory: devtest.NewMemory(g), entered: make(chan struct{}), leave: make(chan struct{})}
}

func (s *stalling) TryWriteAt(p []byte, off int64) bool {
	if s.held.CompareAndSwap(false, true) {
		close(s.entered)
		<-s.leave
	}
	return s.Memory.TryWriteAt(p, off)
}

// A client that comes back is served only when its old requests can have no more
// effect: neither those in the buffer of the old connection, nor those in flight.
func TestNewConnectionWaitsForVanishedOnes(t *testing.T) {
	t.Run("buffered", func(t *testing.T) {
		vol := newStalling(testGeometry())
		s := startServer(t, vol, Options{})
		old := dial(t, s, clientOptions{})
		// One piece, so that the server has both in its buffer.
		b := append(requestBytes(0, cmdWrite, 1, 1<<12, 4096), block(1)...)
		b = append(append(b, requestBytes(0, cmdWrite, 2, 0, 4096)...), block(1)...)
		if _, err := old.nc.Write(b); err != nil {
			t.Fatal(err)
		}
		<-vol.entered
		old.vanish()
		served := make(chan *client)
		go func() { served <- dial(t, s, clientOptions{}) }()
		select {
		case <-served:
			t.Error("the new connection was served while the old one was not done")
		case <-time.After(50 * time.Millisecond):
			close(vol.leave)
			c := <-served
			c.mustWrite(0, block(2))
		}
		waitFor(t, "the old connection to end", func() bool { return len(s.connections()) == 1 })
		mustHold(t, vol, 2)
	})
	t.Run("under way", func(t *testing.T) {
		vol := &lingering{Memory: devtest.NewMemory(testGeometry())}
		s := startServer(t, vol, Options{})
		old := dial(t, s, clientOptions{})
		vol.Block(devtest.Write)
		old.startWrite(0, block(1))
		awaitBlocked(t, vol.Memory, 1)
		old.vanish()
		dial(t, s, clientOptions{})
		vol.mu.Lock()
		defer vol.mu.Unlock()
		if vol.returned != 1 {
			t.Error("the new connection was served while a request of the old one was under way")
		}
	})
	t.Run("cut off", func(t *testing.T) {
		// It closes only its sending side and takes no replies, so the server cannot
		// reach the end of what was sent. The server does not wait for ever.
		vol := devtest.NewMemory(device.Geometry{Size: 64 << 20, BlockSize: 4096})
		s := startServer(t, vol, Options{})
		old := dialRaw(t, s)
		old.hello(flagFixedNewstyle | flagNoZeroes)
		old.send(cat(be64(magicOption), be32(optExportName), be32(0)))
		old.recv(10)
		old.send(requestBytes(0, cmdRead, 1, 0, maxRequest))
		waitFor(t, "the reply to fill the socket", func() bool { return vol.Calls(devtest.Read) == 1 })
		old.send(append(requestBytes(0, cmdWrite, 2, 0, 4096), block(1)...))
		if err := old.nc.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c := dial(t, s, clientOptions{})
		c.mustWrite(0, block(2))
		waitFor(t, "the old connection to end", func() bool { return len(s.connections()) == 1 })
		mustHold(t, vol, 2)
	})
}

// lingering needs some time to notice that it was cancelled.
type lingering struct {
	*devtest.Memory
	mu       sync.Mutex
	returned int
}

func (l *lingering) WriteAt(ctx context.Context, p []byte, off int64) error {
	err := l.Memory.WriteAt(ctx, p, off)
	time.Sleep(50 * time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returned++
	return err
}

// NBD_CMD_DISC: what was sent before is finished, whether the client waits,
// closes its side, or closes at once, and however much it was.
func TestDisconnectFinishesRequests(t *testing.T) {
	for name, test := range map[string]struct {
		n     int
		leave func(*client)
	}{
		"waits":             {50, func(*client) {}},
		"half-close":        {50, (*client).halfClose},
		"close":             {50, (*client).vanish},
		"many, waits":       {300, func(*client) {}},
		"many, half-closes": {300, (*client).halfClose},
		"many, closes":      {300, (*client).vanish},
	} {
		t.Run(name, func(t *testing.T) {
			vol := devtest.NewMemory(device.Geometry{Size: 4 << 20, BlockSize: 4096})
			s := startServer(t, vol, Options{})
			c := dial(t, s, clientOptions{})
			release := vol.Block(devtest.Write)
			sent := make(chan struct{})
			var answers []<-chan answer
			go func() { // the socket may not take all of it at once
				defer close(sent)
				for b := range test.n {
					answers = append(answers, c.startWrite(uint64(b)<<12, block(1)))
				}
				c.disconnect()
				test.leave(c)
			}()
			// As many as the server takes; what comes with the end is kept for later.
			if err := vol.AwaitCalls(t.Context(), devtest.Write, 1); err != nil {
				t.Fatal(err)
			}
			select {
			case <-sent:
			case <-time.After(20 * time.Millisecond):
			}
			release()
			<-sent
			waitFor(t, "the connection to end", func() bool { return len(s.connections()) == 0 })
			mustHold(t, vol, bytes.Repeat([]byte{1}, test.n)...)
			if name != "close" && name != "many, closes" {
				for b, ch := range answers {
					if a := c.await(ch); a.err != nil || a.e != 0 {
						t.Fatalf("request %d before the disconnect: %+v", b, a)
					}
				}
			}
		})
	}
}

// A slow request holds up nothing behind it: not a memory hit, not a write, not a
// read of another block.
func TestNothingWaitsBehindASlowRequest(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	c := dial(t, startServer(t, vol, Options{}), clientOptions{})
	c.mustWrite(0, block(7))
	release := vol.Block(devtest.Write, devtest.Flush, devtest.Discard)
	defer release()
	c.start(0, cmdFlush, 0, 0, nil)
	c.start(0, cmdTrim, 1<<12, 4096, nil)
	for i := uint64(2); i < maxWaiting; i++ {
		c.startWrite((8+i)<<12, block(1)) // the pool is full
	}
	awaitBlocked(t, vol, maxWaiting)
	if got := c.mustRead(0, 4096); got[0] != 7 {
		t.Errorf("hit behind %d waiting requests reads %d", maxWaiting, got[0])
	}
	if got := c.mustRead(1, 4096); got[0] != 7 {
		t.Errorf("unaligned hit behind them reads %d", got[0])
	}
	release()
	release = vol.Block(devtest.Read)
	miss := c.start(0, cmdRead, 0, 4096, nil)
	awaitBlocked(t, vol, 1)
	c.mustWrite(3<<12, block(4))
	release()
	if a := c.await(miss); a.err != nil || a.data[0] != 7 {
		t.Errorf("the miss in the end: %v", a.err)
	}
}

// At the limit of waiting requests reading stops, and continues when there is room;
// the client's end is noticed all the same.
func TestLimitOfWaitingRequests(t *testing.T) {
	opts := Options{Memory: 64 << 20, MaxConns: 8}
	alone := int(New(devtest.NewMemory(testGeometry()), opts).memory.shared.Load()/2 + ownBytes)
	for name, test := range map[string]struct{ n, size, limit int }{
		"requests": {maxWaiting + 70, 4096, maxWaiting},
		"bytes":    {20, 4 << 20, alone / (4 << 20)},
	} {
		setup := func(t *testing.T) (*devtest.Memory, *testServer, *client, func()) {
			vol := devtest.NewMemory(device.Geometry{Size: 256 << 20, BlockSize: 4096})
			s := startServer(t, vol, opts)
			c := dial(t, s, clientOptions{})
			release := vol.Block(devtest.Write)
			p := bytes.Repeat([]byte{1}, test.size)
			go func() { // the socket does not take all of it
				for i := range test.n {
					c.startWrite(uint64(i*test.size), p)
				}
			}()
			awaitBlocked(t, vol, test.limit)
			time.Sleep(20 * time.Millisecond) // would pass the limit now
			if n := vol.Calls(devtest.Write); n != test.limit {
				t.Errorf("%d requests wait, the limit is %d", n, test.limit)
			}
			return vol, s, c, release
		}
		t.Run(name+" go on", func(t *testing.T) {
			vol, _, c, release := setup(t)
			release()
			if err := vol.AwaitCalls(t.Context(), devtest.Write, test.n); err != nil {
				t.Fatal(err)
			}
			c.mustRead(0, 4096)
		})
		t.Run(name+" vanish", func(t *testing.T) {
			vol, s, c, release := setup(t)
			c.vanish()
			awaitBlocked(t, vol, 0)
			release()
			waitFor(t, "the connection to end", func() bool { return len(s.connections()) == 0 })
			mustHold(t, vol, 0)
		})
		t.Run(name+" stop", func(t *testing.T) {
			_, s, _, release := setup(t)
			s.stop()
			release()
			if err := <-s.done; err != nil {
				t.Error(err)
			}
			s.done <- nil // for the cleanup
		})
	}
}

// A client that leaves more behind than is sane is not read to its end, so
// that its last word is not heard.
func TestTooMuchLeftBehind(t *testing.T) {
	vol := newStalling(testGeometry())
	s := startServer(t, vol, scarce()) // each connection has ownBytes
	c := dial(t, s, clientOptions{})
	c.startWrite(0, block(1))
	<-vol.entered
	// Each of the small writes takes two blocks of memory, far more than on the
	// wire. Fill the socket with them.
	if err := c.nc.(*net.UnixConn).SetWriteBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	one := append(requestBytes(0, cmdWrite, 9, 4095, 2), 1, 1)
	n, err := c.nc.Write(bytes.Repeat(one, 200<<10))
	if n/len(one)*8192 < ownBytes {
		t.Skipf("the socket took %d bytes (%v), which does not reach the limit", n, err)
	}
	c.vanish()
	close(vol.leave)
	waitFor(t, "the connection to end", func() bool { return len(s.connections()) == 0 })
	mustHold(t, vol, 1, 0)
}

// A connection that is cut off while it waits for room ends.
func TestCutAtTheLimit(t *testing.T) {
	vol := devtest.NewMemory(device.Geometry{Size: 1 << 20, BlockSize: 4096})
	s := startServer(t, vol, Options{})
	c := dial(t, s, clientOptions{})
	vol.Block(devtest.Write)
	for b := range uint64(maxWaiting + 1) {
		c.startWrite(b<<12, block(1))
	}
	awaitBlocked(t, vol, maxWaiting)
	one := s.connections()[0]
	waitFor(t, "the limit", func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return one.limited
	})
	one.cut()
	awaitBlocked(t, vol, 0)
	waitFor(t, "the connection to end", func() bool { return len(s.connections()) == 0 })
}

// A task that leaves may wake the reader when that no longer waits for room.
func TestLateWakeUpIsHarmless(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{})
	c := dial(t, s, clientOptions{})
	c.mustRead(0, 1)
	for range 10 {
		if err := s.connections()[0].nc.SetReadDeadline(longAgo()); err != nil {
			t.Fatal(err)
		}
		c.mustRead(0, 1)
	}
}
