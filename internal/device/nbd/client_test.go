package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/device"
)

// testServer is a server that runs for the length of a test.
type testServer struct {
	*Server
	addr net.Addr
	stop context.CancelFunc // stops Run
	done chan error         // what Run returned
}

// startServer serves vol on a new unix socket unless opts names another address.
func startServer(t testing.TB, vol device.Volume, opts Options) *testServer {
	t.Helper()
	if opts.Network == "" {
		opts.Network, opts.Address = "unix", filepath.Join(t.TempDir(), "nbd.sock")
	}
	opts.Log = zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	listening := make(chan net.Addr, 1)
	opts.Listening = func(a net.Addr) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	s := &testServer{Server: New(vol, opts), stop: cancel, done: make(chan error, 1)}
	shared := s.memory.shared.Load()
	go func() { s.done <- s.Run(ctx) }()
	select {
	case s.addr = <-listening:
	case err := <-s.done:
		cancel()
		t.Fatalf("server did not start: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-s.done; err != nil {
			t.Errorf("server: %v", err)
		}
		if left := s.memory.shared.Load(); left != shared {
			t.Errorf("%d bytes of memory are left, there were %d", left, shared)
		}
		if n := len(s.buffers.slabs); n != 0 {
			t.Errorf("%d slabs are still mapped", n)
		}
	})
	return s
}

// rawClient speaks bytes.
type rawClient struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func dialRaw(t testing.TB, s *testServer) *rawClient {
	t.Helper()
	nc, err := net.Dial(s.addr.Network(), s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &rawClient{t: t, nc: nc, r: bufio.NewReader(nc)}
}

func (c *rawClient) send(parts ...[]byte) {
	c.t.Helper()
	for _, p := range parts {
		if _, err := c.nc.Write(p); err != nil {
			c.t.Fatalf("send: %v", err)
		}
	}
}

func (c *rawClient) recv(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.r, p); err != nil {
		c.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return p
}

// wantEnd fails unless the server closes the connection without another word.
func (c *rawClient) wantEnd() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err == nil {
		c.t.Fatalf("server went on with %#x, want the connection closed", b)
	} else if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		c.t.Fatal("server kept the connection open")
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// hello reads the greeting and answers it.
func (c *rawClient) hello(flags uint32) {
	c.t.Helper()
	c.recv(18)
	c.send(be32(flags))
}

// optReply is one reply to an option.
type optReply struct {
	option, kind uint32
	data         []byte
}

func (c *rawClient) option(option uint32, data []byte) optReply {
	c.t.Helper()
	c.send(cat(be64(magicOption), be32(option), be32(uint32(len(data))), data))
	return c.optReply()
}

func (c *rawClient) optReply() optReply {
	c.t.Helper()
	h := c.recv(20)
	if m := binary.BigEndian.Uint64(h); m != magicOptReply {
		c.t.Fatalf("option reply magic %#x", m)
	}
	return optReply{
		option: binary.BigEndian.Uint32(h[8:]),
		kind:   binary.BigEndian.Uint32(h[12:]),
		data:   c.recv(int(binary.BigEndian.Uint32(h[16:]))),
	}
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func str(s string) []byte { return append(be32(uint32(len(s))), s...) }

func cat(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func requestBytes(flags, cmd uint16, cookie, off uint64, length uint32) []byte {
	return cat(be32(magicRequest), be16(flags), be16(cmd), be64(cookie), be64(off), be32(length))
}

// client is a complete NBD client, with any number of requests in flight. It is
// a device.Volume, so that the contract suite can be run through a server.
type client struct {
	t          testing.TB
	nc         net.Conn
	size       uint64
	flags      uint16
	structured bool
	parts      bool // replies may have several chunks
	blockSize  int
	maxDiscard int64

	mu      sync.Mutex
	cookie  uint64
	pending map[uint64]pending
	dead    error
	ended   chan struct{} // the connection is closed by the other side
}

// pending is a request that has no answer yet.
type pending struct {
	answer chan answer
	length int // bytes that follow a simple reply without error
	off    uint64
	data   []byte // of the chunks so far
}

// answer is the whole reply to a request.
type answer struct {
	e       errno
	message string
	data    []byte
	extents []uint32 // pairs of length and state
	err     error    // the connection broke instead
}

type clientOptions struct {
	simple bool // do not negotiate structured replies
	parts  bool // take several chunks for one reply
	name   string
}

func dial(t testing.TB, s *testServer, o clientOptions) *client {
	t.Helper()
	raw := dialRaw(t, s)
	raw.hello(flagFixedNewstyle | flagNoZeroes)
	c := &client{
		t: t, nc: raw.nc, structured: !o.simple, parts: o.parts, blockSize: s.geometry.BlockSize,
		pending: make(map[uint64]pending), ended: make(chan struct{}),
	}
	if c.structured {
		if r := raw.option(optStructuredReply, nil); r.kind != repAck {
			t.Fatalf("structured reply: %+v", r)
		}
		r := raw.option(optSetMetaContext, cat(str(o.name), be32(1), str(contextName)))
		for r.kind == repMetaContext {
			r = raw.optReply()
		}
		if r.kind != repAck {
			t.Fatalf("set meta context: %+v", r)
		}
	}
	r := raw.option(optGo, cat(str(o.name), be16(0)))
	for ; r.kind == repInfo; r = raw.optReply() {
		if binary.BigEndian.Uint16(r.data) == infoExport {
			c.size = binary.BigEndian.Uint64(r.data[2:])
			c.flags = binary.BigEndian.Uint16(r.data[10:])
		}
	}
	if r.kind != repAck {
		t.Fatalf("go: %+v", r)
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go c.receive(raw.r)
	return c
}

// receive delivers answers until the connection ends.
func (c *client) receive(r io.Reader) {
	defer close(c.ended)
	err := c.receiveAll(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = fmt.Errorf("connection ended: %w", err)
	for cookie, p := range c.pending {
		p.answer <- answer{err: c.dead}
		delete(c.pending, cookie)
	}
}

func (c *client) receiveAll(r io.Reader) error {
	h := make([]byte, 20)
	for {
		if _, err := io.ReadFull(r, h[:16]); err != nil {
			return err
		}
		var a answer
		cookie := binary.BigEndian.Uint64(h[8:])
		c.mu.Lock()
		wanted := c.pending[cookie]
		ch := wanted.answer
		delete(c.pending, cookie)
		c.mu.Unlock()
		if ch == nil {
			return fmt.Errorf("answer to unknown cookie %d", cookie)
		}
		switch magic := binary.BigEndian.Uint32(h); magic {
		case magicSimple:
			a.e = errno(binary.BigEndian.Uint32(h[4:]))
			if a.e == 0 {
				a.data = make([]byte, wanted.length)
				if _, err := io.ReadFull(r, a.data); err != nil {
					ch <- answer{err: err}
					return err
				}
			}
		case magicStructured:
			if _, err := io.ReadFull(r, h[16:]); err != nil {
				ch <- answer{err: err}
				return err
			}
			p := make([]byte, binary.BigEndian.Uint32(h[16:]))
			if _, err := io.ReadFull(r, p); err != nil {
				ch <- answer{err: err}
				return err
			}
			kind := binary.BigEndian.Uint16(h[6:])
			if f := binary.BigEndian.Uint16(h[4:]); f != replyFlagDone {
				if f != 0 || kind != chunkOffsetData || !c.parts {
					c.t.Errorf("chunk of type %d with flags %#x; every reply should be one chunk", kind, f)
				}
				wanted.data = append(wanted.data, p[8:]...)
				c.mu.Lock()
				c.pending[cookie] = wanted
				c.mu.Unlock()
				continue
			}
			switch kind {
			case chunkNone:
			case chunkOffsetData:
				if off := binary.BigEndian.Uint64(p); off != wanted.off+uint64(len(wanted.data)) {
					c.t.Errorf("chunk for offset %d, after %d bytes from %d", off, len(wanted.data), wanted.off)
				}
				a.data = append(wanted.data, p[8:]...)
			case chunkBlockStatus:
				for p = p[4:]; len(p) > 0; p = p[4:] {
					a.extents = append(a.extents, binary.BigEndian.Uint32(p))
				}
			case chunkError:
				a.e = errno(binary.BigEndian.Uint32(p))
				a.message = string(p[6:])
			default:
				ch <- answer{err: errProtocol}
				return fmt.Errorf("chunk of type %d", kind)
			}
		default:
			ch <- answer{err: errProtocol}
			return fmt.Errorf("reply magic %#x", magic)
		}
		ch <- a
	}
}

// start sends a request and returns the channel for its answer.
func (c *client) start(flags, cmd uint16, off uint64, length uint32, payload []byte) <-chan answer {
	ch := make(chan answer, 1)
	want := pending{answer: ch, off: off}
	if cmd == cmdRead {
		want.length = int(length)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		ch <- answer{err: c.dead}
		return ch
	}
	c.cookie++
	c.pending[c.cookie] = want
	if _, err := c.nc.Write(append(requestBytes(flags, cmd, c.cookie, off, length), payload...)); err != nil {
		delete(c.pending, c.cookie)
		ch <- answer{err: err}
	}
	return ch
}

// do sends a request and waits for its answer.
func (c *client) do(flags, cmd uint16, off uint64, length uint32, payload []byte) answer {
	return c.await(c.start(flags, cmd, off, length, payload))
}

func (c *client) await(ch <-chan answer) answer { return <-ch }

// must sends a request that has to succeed.
func (c *client) must(flags, cmd uint16, off uint64, length uint32, payload []byte) answer {
	c.t.Helper()
	a := c.do(flags, cmd, off, length, payload)
	if a.err != nil || a.e != 0 {
		c.t.Fatalf("command %d at %d of %d bytes: errno %d (%s), %v", cmd, off, length, a.e, a.message, a.err)
	}
	return a
}

func (c *client) mustWrite(off uint64, p []byte) {
	c.t.Helper()
	c.must(0, cmdWrite, off, uint32(len(p)), p)
}

func (c *client) mustRead(off uint64, n int) []byte {
	c.t.Helper()
	return c.must(0, cmdRead, off, uint32(n), nil).data
}

// vanish closes the connection without a word.
func (c *client) vanish() {
	if err := c.nc.Close(); err != nil {
		c.t.Error(err)
	}
}

// awaitEnd waits until the server has closed the connection.
func (c *client) awaitEnd() {
	c.t.Helper()
	<-c.ended
}

// The client as a volume.

func (c *client) Geometry() device.Geometry {
	return device.Geometry{Size: int64(c.size), BlockSize: c.blockSize, MaxDiscard: c.maxDiscard, ReadOnly: c.flags&flagReadOnly != 0}
}

func (c *client) call(ctx context.Context, cmd uint16, off int64, n int, payload []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := c.do(0, cmd, uint64(off), uint32(n), payload)
	if a.err == nil && a.e != 0 {
		a.err = fmt.Errorf("errno %d: %s", a.e, a.message)
	}
	return a.data, a.err
}

func (c *client) ReadAt(ctx context.Context, p []byte, off int64) error {
	data, err := c.call(ctx, cmdRead, off, len(p), nil)
	if err == nil && copy(p, data) != len(p) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *client) WriteAt(ctx context.Context, p []byte, off int64) error {
	_, err := c.call(ctx, cmdWrite, off, len(p), p)
	return err
}

func (c *client) Flush(ctx context.Context) error {
	_, err := c.call(ctx, cmdFlush, 0, 0, nil)
	return err
}

func (c *client) Discard(ctx context.Context, off, n int64) error {
	_, err := c.call(ctx, cmdTrim, off, int(n), nil)
	return err
}

func (c *client) WriteZeroes(ctx context.Context, off, n int64) error {
	_, err := c.call(ctx, cmdWriteZeroes, off, int(n), nil)
	return err
}

func (c *client) Allocation(ctx context.Context, off, n int64) ([]device.Extent, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := c.do(0, cmdBlockStatus, uint64(off), uint32(n), nil)
	if a.err != nil || a.e != 0 {
		return nil, fmt.Errorf("errno %d: %w", a.e, a.err)
	}
	var extents []device.Extent
	for i := 0; i < len(a.extents); i += 2 {
		extents = append(extents, device.Extent{Length: int64(a.extents[i]), Hole: a.extents[i+1]&stateZero != 0})
	}
	return extents, nil
}
