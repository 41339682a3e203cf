package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

const (
	// readerSize is the buffer that requests are read into, in bytes. It holds
	// the largest option.
	readerSize = maxOption
	// peekMax is the largest payload that is written to the volume from there.
	peekMax = readerSize / 2
	// batchSize bounds the replies that wait to be sent together, in bytes.
	batchSize = 128 << 10
	// sendBuffer is the size requested for unix sockets, in bytes: with the
	// kernel's default of 208 KiB a large reply takes several turns with the
	// client. (Measured: 2.3 times the rate of 1 MiB reads, 1.5 times that of
	// 64 KiB ones.) TCP sizes its buffers itself.
	sendBuffer = 2 << 20
)

var (
	errDisconnect = errors.New("client disconnected")
	errStopping   = errors.New("server is stopping")
	errUnread     = errors.New("client hung up and left too many requests")
)

// longAgo returns a deadline that wakes the reader.
func longAgo() time.Time { return time.Unix(1, 0) }

// conn is one connection. One goroutine, the reader, reads from it and serves what
// can be served at once; each request that may wait gets a goroutine of its own
// (tasks).
//
// What happens when a client goes away. Its requests must not take effect after
// it could know that it is gone: it may send them again elsewhere and go on
// writing. The reader learns it from the end of the stream; but between its last
// read and that end it has requests in its buffer, and at the limit of waiting
// tasks it does not read at all. So it also asks the socket, after every read and
// while it is at the limit, whether the other side has hung up. From then on
// nothing can arrive but what the socket holds. What is read of that is parked,
// not served, until the end is known: after NBD_CMD_DISC all of it is finished;
// after a bare end all of it is dropped and the running tasks are cancelled.
type conn struct {
	srv    *Server
	nc     net.Conn
	raw    syscall.RawConn
	log    zerolog.Logger
	ctx    context.Context // of the requests; cancelled when the client is gone
	cancel context.CancelFunc
	sender *sender

	// For the reader only.
	r      *bufio.Reader // over conn.Read
	out    []byte        // replies not handed to sender yet; batchSize in the transmission phase
	hungUp bool          // the other side has hung up; requests are parked
	parked []*task
	poll   *hangUpPoll

	// Negotiated; constant in the transmission phase.
	structured bool   // structured replies
	status     bool   // base:allocation is selected
	statusOf   string // the export name it was selected for

	// gate is held while a write goes through device.Fast; changes counts the
	// spans of this connection. See overlaps.
	gate    sync.Mutex
	changes atomic.Int64

	serving  atomic.Bool   // the transmission phase has begun
	stopping atomic.Bool   // the server is stopping: read no more
	settled  chan struct{} // closed when no request of a client that vanished can take effect any more

	tasks sync.WaitGroup
	room  chan struct{} // holds something when a task has left since the reader found too little room
	mu    sync.Mutex
	// waiting tasks, and the memory that they and the reader hold (see memory);
	// limited while the reader waits for room.
	waiting int
	held    int64
	limited bool
}

func newConn(ctx context.Context, s *Server, nc net.Conn) (*conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is no socket", nc)
	}
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(sendBuffer) // the kernel bounds it by net.core.wmem_max
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &conn{
		srv:     s,
		nc:      nc,
		raw:     raw,
		log:     s.opts.Log.With().Stringer("client", nc.RemoteAddr()).Logger(),
		sender:  newSender(nc),
		poll:    newHangUpPoll(),
		settled: make(chan struct{}),
		room:    make(chan struct{}, 1),
	}
	// Requests outlive the server's ctx for as long as stop allows.
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.r = bufio.NewReaderSize(c, readerSize)
	return c, nil
}

// serve runs the connection from the handshake to the end, and returns when all
// its tasks have ended.
func (c *conn) serve() {
	defer c.cut()
	if err := c.handshake(); err != nil {
		c.flush(nil) // the answer to NBD_OPT_ABORT, which the client need not wait for
		c.log.Debug().Err(err).Msg("NBD handshake ended")
		return
	}
	c.log.Debug().Bool("structured", c.structured).Bool("status", c.status).Msg("NBD client is connected")
	err := c.serveRequests()
	c.log.Debug().Err(err).Msg("NBD client is gone")
}

// serveRequests is the transmission phase. It returns what ended it (see
// transmit) when all tasks have ended.
func (c *conn) serveRequests() error {
	batch, err := c.srv.buffers.get(batchSize)
	if err != nil {
		return err
	}
	defer c.srv.buffers.put(batch)
	c.out = append(batch.p[:0], c.out...)
	c.srv.settle(c)
	c.serving.Store(true)
	err = c.transmit()
	if errors.Is(err, errDisconnect) || errors.Is(err, errStopping) && !c.hungUp {
		close(c.settled)
		for _, t := range c.parked {
			c.enlist(t)
			c.run(t)
			c.free(t.payload)
		}
		c.flush(nil)
		c.tasks.Wait()
	} else {
		c.cut()
		c.tasks.Wait()
		close(c.settled)
		for _, t := range c.parked {
			c.free(t.payload)
		}
	}
	return err
}

// transmit serves requests until it returns errDisconnect, errStopping, or the
// error that ended the connection.
func (c *conn) transmit() error {
	// What the handshake has read ahead may be all there is.
	c.hungUp = c.hungUp || c.hasHungUp()
	c.rearm()
	for {
		if err := c.next(); err != nil {
			return err
		}
	}
}

// cut ends the connection at once and cancels its tasks.
func (c *conn) cut() {
	c.cancel()
	_ = c.nc.Close() // nothing is left to lose
}

// stop makes the reader end with errStopping after what it has read.
func (c *conn) stop() {
	c.stopping.Store(true)
	_ = c.nc.SetReadDeadline(longAgo()) // fails only if the connection has ended
}

// abandon cancels the tasks but still sends their replies if the client reads.
func (c *conn) abandon() {
	c.cancel()
	_ = c.nc.SetWriteDeadline(time.Now().Add(lastWordWait)) // as in stop
}

// rearm allows reading again after a deadline has woken the reader.
func (c *conn) rearm() {
	_ = c.nc.SetReadDeadline(time.Time{}) // a failure shows at the next read
	if c.stopping.Load() {                // stop may have come between
		_ = c.nc.SetReadDeadline(longAgo())
	}
}

// Read reads from the socket for c.r. It first sends the replies that have
// accumulated.
func (c *conn) Read(p []byte) (int, error) {
	c.flush(nil)
	for {
		n, err := c.nc.Read(p)
		switch {
		case err == nil:
			if c.serving.Load() && !c.hungUp {
				c.hungUp = c.hasHungUp()
			}
			return n, nil
		case !errors.Is(err, os.ErrDeadlineExceeded) || !c.serving.Load():
			return n, err
		case c.stopping.Load():
			return n, errStopping
		}
		c.rearm() // a task that left woke us too late, see leave
	}
}

// flush sends the accumulated replies and, if it is not empty, body. A client that
// takes no replies is gone, but what it has sent is still read: its last request
// may be NBD_CMD_DISC.
func (c *conn) flush(body []byte) {
	var err error
	switch {
	case len(body) > 0:
		err = c.sender.send(c.out, body)
	case len(c.out) > 0:
		err = c.sender.send(c.out)
	}
	c.out = c.out[:0]
	if err != nil {
		c.hungUp = true
	}
}

// skip drops n bytes that the buffer holds.
func (c *conn) skip(n int) { _, _ = c.r.Discard(n) }

// start runs t on a goroutine of its own. At the limit it waits for room first; if
// the client hangs up, it parks t. If it fails, it gives back the memory of t.
func (c *conn) start(t *task) error {
	for !c.hungUp {
		if c.enter() {
			c.enlist(t)
			c.tasks.Go(func() {
				c.run(t)
				c.leave(t)
			})
			return nil
		}
		if err := c.awaitRoom(); err != nil {
			c.free(t.payload)
			return err
		}
	}
	if _, ok := c.take(0, parkedBytes); !ok {
		c.free(t.payload)
		return errUnread
	}
	t.cost += parkedBytes
	c.parked = append(c.parked, t)
	return nil
}

// enter counts a task if there is room, and reports whether it did.
func (c *conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting >= maxWaiting {
		c.limited = true
		return false
	}
	c.limited = false
	c.waiting++
	return true
}

// leave ends the count of a task, gives back its memory, and wakes the reader if it
// waits for room.
func (c *conn) leave(t *task) {
	c.srv.buffers.put(t.buffer)
	c.mu.Lock()
	c.waiting--
	c.srv.memory.shrink(&c.held, t.cost)
	wake := c.limited
	c.limited = false
	c.mu.Unlock()
	if wake {
		select {
		case c.room <- struct{}{}:
		default:
		}
		_ = c.nc.SetReadDeadline(longAgo()) // fails only if the connection has ended
	}
}

// awaitRoom returns when a task has left or the client has hung up. Data in the
// socket does not wake it.
func (c *conn) awaitRoom() error {
	c.flush(nil)
	if c.stopping.Load() {
		<-c.room // stop bounds how long a task takes, and no hang-up has to be noticed any more
		return nil
	}
	// The runtime calls again at every event of the socket; a hang-up is one.
	err := c.raw.Read(c.poll.ask)
	switch {
	case err == nil:
		c.hungUp = true
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.rearm()
		return nil
	default:
		return err
	}
}

// hasHungUp reports whether the other side has closed or half-closed the socket,
// whatever is still to be read. Only for the reader.
func (c *conn) hasHungUp() bool {
	return c.raw.Control(c.poll.control) != nil || c.poll.yes
}

// vanished is hasHungUp for all other goroutines.
func (c *conn) vanished() bool {
	p := newHangUpPoll()
	return c.raw.Control(p.control) != nil || p.yes
}

// hangUpPoll has what asking a socket needs, the memory and the functions for the
// runtime, so that asking does not allocate. It is for one goroutine at a time.
type hangUpPoll struct {
	fds     [1]unix.PollFd
	yes     bool
	ask     func(fd uintptr) bool // for RawConn.Read
	control func(fd uintptr)      // for RawConn.Control
}

func newHangUpPoll() *hangUpPoll {
	p := &hangUpPoll{}
	p.ask = func(fd uintptr) bool {
		p.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
		n, err := unix.Poll(p.fds[:], 0)
		p.yes = n > 0 && err == nil
		return p.yes
	}
	p.control = func(fd uintptr) { p.ask(fd) }
	return p
}
