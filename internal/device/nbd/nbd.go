// Package nbd serves a device.Volume over the NBD protocol (fixed newstyle,
// doc/proto.md of the NBD project) on a unix socket or TCP.
//
// Each connection has one goroutine that reads requests. Reads and writes that
// device.Fast can serve at once are served right there, directly from and to the
// connection's buffers, and their replies go out together when the goroutine is
// about to read from the socket again. Each request that may wait gets a goroutine
// of its own, so that it holds up nothing behind it. Their number is bounded, and the
// memory of all connections is (see memory); at a limit the connection reads no
// further.
//
// If a client hangs up, its waiting requests are cancelled, and none of them takes
// effect afterwards: it may come back on another connection, send them again and
// go on writing. If it sends NBD_CMD_DISC first, they are finished. See conn for
// how that is ensured, and overlaps for requests that are not multiples of the
// block size.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/device"
	"bs3/internal/listen"
)

// Options of a Server. Zero values mean the defaults.
type Options struct {
	Network string // "unix" or "tcp"
	Address string // path of the socket, or host:port

	// ExportName is the name in the list of exports. Clients may ask for it or
	// for "" (the protocol's default export); other names are refused.
	ExportName string

	Log zerolog.Logger

	// Memory bounds the memory of all connections together, in bytes, 256 MiB by
	// default. A connection that finds too little reads no further for a while.
	Memory int64

	// MaxConns bounds the number of connections that have chosen the export. A
	// further one may not. By default it is one for each 2 MiB of Memory, at most
	// 128.
	MaxConns int

	// HandshakeTimeout bounds the time from accepting a connection to its
	// transmission phase, 30 s by default.
	HandshakeTimeout time.Duration

	// StopTimeout bounds how long Run, once stopped, waits for requests that it
	// has received, 10 s by default. Then it cancels them.
	StopTimeout time.Duration

	// Listening, if set, is called once, as soon as clients can connect.
	Listening func(net.Addr)
}

const (
	defaultMemory           = 256 << 20
	defaultMaxConns         = 128
	defaultHandshakeTimeout = 30 * time.Second
	defaultStopTimeout      = 10 * time.Second

	// maxHandshakes bounds the connections that have not chosen the export yet.
	maxHandshakes = 128
	// hangUpWait bounds how long a new connection waits until one whose client
	// has hung up has read what is left in its socket; see settle.
	hangUpWait = time.Second
	// lastWordWait bounds the writing of the last replies to a client whose
	// requests were cancelled because the server stops.
	lastWordWait = time.Second
	// acceptRetry is the pause after an accept that failed for lack of
	// descriptors or memory.
	acceptRetry = 100 * time.Millisecond
)

// Server serves one volume. Make it with New; Run it once.
type Server struct {
	vol      device.Volume
	fast     device.Fast      // nil if vol has none
	alloc    device.Allocator // nil if vol has none
	geometry device.Geometry
	opts     Options
	errLog   zerolog.Logger // for what a broken volume would repeat endlessly

	memory   memory
	buffers  buffers
	overlaps overlaps

	wg      sync.WaitGroup // one for each connection
	mu      sync.Mutex
	conns   map[*conn]struct{}
	unsure  []*conn // those of conns that have not chosen the export, oldest first
	stopped bool    // accepts no more of them
}

// New returns a server of vol.
func New(vol device.Volume, opts Options) *Server {
	if opts.Memory == 0 {
		opts.Memory = defaultMemory
	}
	if opts.MaxConns == 0 {
		opts.MaxConns = int(max(1, min(opts.Memory/bytesPerConn, defaultMaxConns)))
	}
	if opts.HandshakeTimeout == 0 {
		opts.HandshakeTimeout = defaultHandshakeTimeout
	}
	if opts.StopTimeout == 0 {
		opts.StopTimeout = defaultStopTimeout
	}
	s := &Server{
		vol:      vol,
		geometry: vol.Geometry(),
		opts:     opts,
		errLog:   opts.Log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Minute}),
		conns:    make(map[*conn]struct{}),
	}
	s.memory.divide(opts.Memory, opts.MaxConns)
	s.buffers.limit = opts.Memory
	s.fast, _ = vol.(device.Fast)
	s.alloc, _ = vol.(device.Allocator)
	return s
}

// Run listens and serves until ctx is cancelled, and then returns nil. It stops in
// this order: it accepts no more, reads no more, waits for at most StopTimeout for
// the requests that it has received, cancels the rest, closes the connections, waits
// for all that it started and frees the memory. An error says why it could not listen
// or accept.
func (s *Server) Run(ctx context.Context) error {
	l, release, err := listen.Listen(ctx, s.opts.Network, s.opts.Address)
	if err != nil {
		return fmt.Errorf("listen for NBD on %s:%s: %w", s.opts.Network, s.opts.Address, err)
	}
	if s.opts.Listening != nil {
		s.opts.Listening(l.Addr())
	}
	closed := make(chan error, 1)
	unwatch := context.AfterFunc(ctx, func() {
		release()
		closed <- l.Close()
	})
	var aging sync.WaitGroup
	untilStopped, stopAging := context.WithCancel(context.WithoutCancel(ctx))
	aging.Go(func() { s.buffers.age(untilStopped) })
	err = s.accept(ctx, l)
	if unwatch() {
		// It has failed, and was not stopped.
		release()
		closed <- l.Close()
	}
	err = errors.Join(err, <-closed)
	s.stop()
	stopAging()
	aging.Wait()
	err = errors.Join(err, s.buffers.free())
	if err != nil {
		return fmt.Errorf("serve NBD on %s:%s: %w", s.opts.Network, s.opts.Address, err)
	}
	return nil
}

// accept accepts connections until ctx is cancelled (nil) or the listener fails.
func (s *Server) accept(ctx context.Context, l net.Listener) error {
	for {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close() // it has heard nothing from us yet
			}
			return nil
		case err == nil:
			s.take(ctx, nc)
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ECONNABORTED):
			s.errLog.Warn().Err(err).Msg("cannot accept an NBD connection, trying again")
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
				return nil
			}
		default:
			return err
		}
	}
}

// take starts a connection. If too many have not chosen the export, it ends the
// oldest of those: clients choose at once.
func (s *Server) take(ctx context.Context, nc net.Conn) {
	c, err := newConn(ctx, s, nc)
	if err != nil {
		s.errLog.Warn().Err(err).Stringer("client", nc.RemoteAddr()).Msg("NBD connection refused")
		_ = nc.Close() // nothing was sent on it
		return
	}
	s.mu.Lock()
	var oldest *conn
	if len(s.unsure) >= maxHandshakes {
		oldest = s.unsure[0]
		s.unsure = slices.Delete(s.unsure, 0, 1)
		delete(s.conns, oldest)
	}
	s.conns[c] = struct{}{}
	s.unsure = append(s.unsure, c)
	s.mu.Unlock()
	if oldest != nil {
		s.errLog.Warn().Stringer("client", oldest.nc.RemoteAddr()).Msg("NBD handshake ended: too many newer clients are in theirs")
		oldest.cut()
	}
	s.wg.Go(func() {
		c.serve()
		s.drop(c)
	})
}

// admit lets c choose the export, unless there are too many that have.
func (s *Server) admit(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.unsure, c)
	if i < 0 {
		return errStopping // its place was given to a newer one
	}
	if n := len(s.conns) - len(s.unsure); n >= s.opts.MaxConns {
		err := fmt.Errorf("there are already %d connections", n)
		s.errLog.Warn().Err(err).Stringer("client", c.nc.RemoteAddr()).Msg("NBD connection refused")
		return err
	}
	s.unsure = slices.Delete(s.unsure, i, i+1)
	return nil
}

// stop ends all connections and waits for them.
func (s *Server) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	for _, c := range s.connections() {
		c.stop()
	}
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	timeout := time.NewTimer(s.opts.StopTimeout)
	defer timeout.Stop()
	select {
	case <-done:
		return
	case <-timeout.C:
	}
	s.opts.Log.Warn().Dur("after", s.opts.StopTimeout).Msg("NBD requests do not end: cancelling them")
	for _, c := range s.connections() {
		c.abandon()
	}
	<-done
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		list = append(list, c)
	}
	return list
}

// settle returns when no request of a client that has hung up can take effect any
// more, unless the client asked for that with NBD_CMD_DISC. newcomer calls it
// before its first request: its client may have come back to send its requests
// again. A connection that was hung up has only to read what is in its socket, so
// this is short; one that takes longer is cut off.
func (s *Server) settle(newcomer *conn) {
	for _, c := range s.connections() {
		if c == newcomer || !c.serving.Load() || !c.vanished() {
			continue
		}
		timeout := time.NewTimer(hangUpWait)
		select {
		case <-c.settled:
		case <-timeout.C:
			c.cut()
			<-c.settled
		}
		timeout.Stop()
	}
}
