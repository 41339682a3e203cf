package test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// Commands and numbers of the NBD protocol
// (github.com/NetworkBlockDevice/nbd, doc/proto.md).
const (
	nbdRead  = 0
	nbdWrite = 1
	nbdFlush = 3
	nbdTrim  = 4

	nbdOptExportName = 1
	nbdFixedNoZeroes = 3 // flags of the handshake, both ways

	magicOption  = 0x49484156454F5054
	magicRequest = 0x25609513
	magicReply   = 0x67446698
)

// client is a small NBD client that has many requests in flight on one
// connection and knows when each was acknowledged. It is safe for concurrent use.
type client struct {
	t    testing.TB
	conn net.Conn
	size int64
	gone chan struct{} // closed when the reader has ended

	sending sync.Mutex // keeps requests in one piece; before mu

	mu      sync.Mutex
	last    uint64 // cookie
	waiting map[uint64]*request
	err     error // why there will be no more replies
}

// request is a request that was sent; data and err are set when done is closed.
type request struct {
	done chan struct{}
	data []byte // what a read returns
	err  error
}

// dial connects to the default export on a unix socket.
func dial(t testing.TB, socket string) *client {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if end, ok := patience.Deadline(); ok { // what hangs fails then
		if err := conn.SetDeadline(end); err != nil {
			t.Fatal(err)
		}
	}
	c := &client{t: t, conn: conn, gone: make(chan struct{}), waiting: map[uint64]*request{}}
	r := bufio.NewReaderSize(conn, 64<<10)
	if err := c.handshake(r); err != nil {
		t.Fatalf("NBD handshake: %v", err)
	}
	go func() {
		defer close(c.gone)
		err := c.replies(r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err = err
		for _, q := range c.waiting {
			q.err = err
			close(q.done)
		}
		c.waiting = nil
	}()
	t.Cleanup(c.close)
	return c
}

func (c *client) close() {
	c.conn.Close()
	<-c.gone
}

func (c *client) handshake(r io.Reader) error {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(r, hello); err != nil {
		return err
	}
	if string(hello[:8]) != "NBDMAGIC" || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return fmt.Errorf("greeted by %q", hello)
	}
	b := binary.BigEndian.AppendUint32(nil, nbdFixedNoZeroes)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, nbdOptExportName)
	b = binary.BigEndian.AppendUint32(b, 0) // the default export
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	export := make([]byte, 10)
	if _, err := io.ReadFull(r, export); err != nil {
		return err
	}
	c.size = int64(binary.BigEndian.Uint64(export))
	return nil
}

// replies delivers replies until the connection ends.
func (c *client) replies(r io.Reader) error {
	for {
		var head [16]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		if m := binary.BigEndian.Uint32(head[:]); m != magicReply {
			return fmt.Errorf("reply with magic %#x", m)
		}
		errno, cookie := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
		c.mu.Lock()
		q := c.waiting[cookie]
		delete(c.waiting, cookie)
		c.mu.Unlock()
		if q == nil {
			return fmt.Errorf("reply to unknown request %d", cookie)
		}
		if errno != 0 {
			q.err = fmt.Errorf("NBD error %d", errno)
		} else if _, err := io.ReadFull(r, q.data); err != nil {
			q.err = err
		}
		close(q.done)
	}
}

// send sends a request for n bytes at off; payload is the data of a write.
func (c *client) send(cmd uint16, off int64, n int, payload []byte) *request {
	q := &request{done: make(chan struct{})}
	if cmd == nbdRead {
		q.data = make([]byte, n)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	cookie, err := c.enter(q)
	if err != nil {
		q.err = err
		close(q.done)
		return q
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28+len(payload)), magicRequest)
	b = binary.BigEndian.AppendUint16(b, 0) // flags
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	if _, err := c.conn.Write(append(b, payload...)); err != nil {
		c.conn.Close() // the reader then fails all requests
	}
	return q
}

// enter adds q to those that wait for a reply.
func (c *client) enter(q *request) (cookie uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0, c.err
	}
	c.last++
	c.waiting[c.last] = q
	return c.last, nil
}

// wait waits for the reply. The error is os.ErrDeadlineExceeded if there was
// none before the end of patience.
func (q *request) wait() ([]byte, error) {
	<-q.done
	return q.data, q.err
}

// answered reports whether the reply has come.
func (q *request) answered() bool {
	select {
	case <-q.done:
		return true
	default:
		return false
	}
}

// must waits for a reply that must not be an error. Only for the test's goroutine.
func (c *client) must(what string, q *request) []byte {
	c.t.Helper()
	data, err := q.wait()
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	return data
}

func (c *client) read(off int64, n int) []byte {
	c.t.Helper()
	return c.must(fmt.Sprintf("read %d bytes at %d", n, off), c.send(nbdRead, off, n, nil))
}

func (c *client) write(off int64, data []byte) {
	c.t.Helper()
	c.must(fmt.Sprintf("write %d bytes at %d", len(data), off), c.send(nbdWrite, off, len(data), data))
}

func (c *client) trim(off int64, n int) {
	c.t.Helper()
	c.must(fmt.Sprintf("trim %d bytes at %d", n, off), c.send(nbdTrim, off, n, nil))
}

func (c *client) flush() {
	c.t.Helper()
	c.must("flush", c.send(nbdFlush, 0, 0, nil))
}
