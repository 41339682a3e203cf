package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/device/devtest"
	"bs3/internal/null"
)

// gatedConn lets the test see and hold each write.
type gatedConn struct {
	net.Conn
	writes chan []byte
	result chan error
}

func (g *gatedConn) Write(p []byte) (int, error) {
	g.writes <- bytes.Clone(p)
	if err := <-g.result; err != nil {
		return 0, err
	}
	return len(p), nil
}

// Replies that come during a write go out after it, in order, and none is lost or
// torn.
func TestSenderGathers(t *testing.T) {
	g := &gatedConn{writes: make(chan []byte), result: make(chan error)}
	s := newSender(g)
	var wg sync.WaitGroup
	send := func(parts ...[]byte) {
		wg.Go(func() {
			if err := s.send(parts...); err != nil {
				t.Error(err)
			}
		})
	}
	queued := func(n int) func() bool {
		return func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.queue) == n
		}
	}
	send([]byte("first"))
	if got := <-g.writes; string(got) != "first" {
		t.Errorf("wrote %q", got)
	}
	for i := range 10 {
		send([]byte{'a' + byte(i)}, []byte("-body."))
		waitFor(t, "the reply to be queued", queued(2*(i+1)))
	}
	g.result <- nil
	var got []byte
	for len(got) < 70 { // net.Buffers writes piece by piece where there is no writev
		got = append(got, <-g.writes...)
		g.result <- nil
	}
	wg.Wait()
	if want := "a-body.b-body.c-body.d-body.e-body.f-body.g-body.h-body.i-body.j-body."; string(got) != want {
		t.Errorf("wrote %q, want %q", got, want)
	}
	if s.written != 2 {
		t.Errorf("%d batches, want 2", s.written)
	}
}

func TestSenderFails(t *testing.T) {
	g := &gatedConn{writes: make(chan []byte), result: make(chan error)}
	s := newSender(g)
	errs := make(chan error)
	go func() { errs <- s.send([]byte("first")) }()
	<-g.writes
	go func() { errs <- s.send([]byte("second")) }()
	waitFor(t, "the reply to be queued", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.queue) == 1
	})
	g.result <- io.ErrClosedPipe
	for range 2 {
		if err := <-errs; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("error %v", err)
		}
	}
	if err := s.send([]byte("third")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
}

// countingConn counts system calls.
type countingConn struct {
	*net.UnixConn
	reads, writes int
}

func (c *countingConn) Read(p []byte) (int, error) {
	c.reads++
	return c.UnixConn.Read(p)
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes++
	return c.UnixConn.Write(p)
}

// pipelined returns a connection in its transmission phase, which the caller runs
// with next, and the client's end of its socket.
func pipelined(t testing.TB, s *Server) (c *conn, counter *countingConn, client net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	counter = &countingConn{UnixConn: ends[0].(*net.UnixConn)}
	if c, err = newConn(context.Background(), s, counter); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.cut)
	c.out = make([]byte, 0, batchSize)
	c.structured = true
	c.serving.Store(true)
	return c, counter, ends[1]
}

// skipReply reads one reply and returns its cookie.
func skipReply(t *testing.T, r *bufio.Reader) (cookie uint64) {
	t.Helper()
	h, err := r.Peek(simpleSize)
	if err != nil {
		t.Fatal(err)
	}
	n := simpleSize
	switch m := binary.BigEndian.Uint32(h); m {
	case magicSimple:
	case magicStructured:
		if h, err = r.Peek(chunkSize); err != nil {
			t.Fatal(err)
		}
		n = chunkSize + int(binary.BigEndian.Uint32(h[16:]))
	default:
		t.Fatalf("reply magic %#x", m)
	}
	cookie = binary.BigEndian.Uint64(h[8:])
	if _, err := r.Discard(n); err != nil {
		t.Fatal(err)
	}
	return cookie
}

// All requests that came in one piece are answered in one piece.
func TestRepliesThatAreReadyTogetherGoOutTogether(t *testing.T) {
	c, counter, client := pipelined(t, New(devtest.NewMemory(testGeometry()), Options{Log: zerolog.Nop()}))
	var b []byte
	for i := range uint64(10) {
		b = append(b, requestBytes(0, cmdWrite, i, i<<12, 4096)...)
		b = append(b, block(byte(i))...)
		b = append(b, requestBytes(0, cmdRead, i, i<<12, 512)...)
	}
	if _, err := client.Write(b); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := c.next(); err != nil {
			t.Fatal(err)
		}
	}
	if counter.reads != 1 || counter.writes != 0 {
		t.Errorf("%d reads and %d writes while requests are in the buffer, want 1 and 0", counter.reads, counter.writes)
	}
	c.flush(nil)
	if counter.writes != 1 {
		t.Errorf("%d writes for 20 replies", counter.writes)
	}
	r := bufio.NewReader(client)
	for i := range uint64(20) {
		if got := skipReply(t, r); got != i/2 {
			t.Fatalf("reply %d has cookie %d", i, got)
		}
	}
}

// More replies than fit together go out in order, none twice or torn.
func TestFullBatchIsSentFirst(t *testing.T) {
	c, _, client := pipelined(t, New(devtest.NewMemory(testGeometry()), Options{Log: zerolog.Nop()}))
	var b []byte
	const n = 2000
	large := uint32(batchSize - chunkSize - offsetSize - 10)
	b = append(b, requestBytes(0, cmdRead, 0, 0, large)...) // fills it up to 10 bytes
	b = append(b, requestBytes(0, cmdWrite, 1, 0, 0)...)
	for i := uint64(2); i < n; i++ {
		b = append(b, requestBytes(0, 99, i, 0, 0)...)
	}
	go func() {
		if _, err := client.Write(b); err != nil {
			t.Error(err)
		}
	}()
	done := make(chan error, 1)
	go func() {
		for range n {
			if err := c.next(); err != nil {
				done <- err
				return
			}
		}
		c.flush(nil)
		done <- nil
	}()
	r := bufio.NewReader(client)
	for i := range uint64(n) {
		if got := skipReply(t, r); got != i {
			t.Fatalf("reply %d has cookie %d", i, got)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The path of a hit allocates nothing, neither for the request nor for its reply.
func TestHitsDoNotAllocate(t *testing.T) {
	c, _, client := pipelined(t, New(null.New(testGeometry()), Options{Log: zerolog.Nop()}))
	var b []byte
	for i := range uint64(8) {
		b = append(b, requestBytes(0, cmdWrite, i, i<<12, 4096)...)
		b = append(b, block(1)...)
		b = append(b, requestBytes(0, cmdRead, i, i<<12, 4096)...)
	}
	replies := make([]byte, 8*(simpleSize+chunkSize+offsetSize+4096))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := client.Write(b); err != nil {
			t.Fatal(err)
		}
		for range 16 {
			if err := c.next(); err != nil {
				t.Fatal(err)
			}
		}
		c.flush(nil)
		if _, err := io.ReadFull(client, replies); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for 16 requests", n)
	}
}
