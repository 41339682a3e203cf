package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stallTime is how long the transfer of a request or of an answer may stand
	// still. A payload that is sent has longer, by its time at slowestRate: what
	// the kernel buffers moves without our seeing it.
	stallTime   = 30 * time.Second
	slowestRate = 16 << 10 // bytes per second

	// An answer is waited for, once its request was taken, for leastWait and twice
	// the slowest answer of late: 10 s where answers come in time. Each request
	// that is given up lets the next ones wait about twice as long, up to mostWait,
	// or what a payload may take at slowestRate if that is longer.
	leastWait = 10 * time.Second
	mostWait  = 2 * time.Minute
	// forgets is how many answers in time it takes to forget a slow one.
	forgets = 64
)

// givenUp is why a request was given up.
type givenUp struct{ why string }

func (g *givenUp) Error() string { return g.why }

// errStuck is a transfer that stood still.
var errStuck error = &givenUp{"it made no progress for too long"}

// pace is how long a store takes to answer requests of one kind, as its answers
// have shown. It is safe for concurrent use.
type pace struct {
	mu      sync.Mutex
	slowest time.Duration // of late
}

// bound returns how long to wait for an answer, at least and at most that long.
func (p *pace) bound(least, most time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(least+2*p.slowest, most)
}

// answered notes that an answer took that long.
func (p *pace) answered(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if took >= p.slowest {
		p.slowest = took
	} else {
		p.slowest -= (p.slowest - took) / forgets
	}
}

// unanswered notes that there was no answer for that long. Requests that are
// given up together count once.
func (p *pace) unanswered(waited time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slowest = max(p.slowest, waited)
}

// paces are those of a store. A list or delete may take much longer than a
// transfer.
type paces struct{ get, put, other pace }

func (p *paces) of(method string, hasPayload bool) *pace {
	switch {
	case method == http.MethodPut && hasPayload:
		return &p.put
	case method == http.MethodGet && hasPayload:
		return &p.get
	default:
		return &p.other
	}
}

// watched is one request, which is given up when it makes no progress: when a
// transfer stands still, or when the store has all of it and does not answer. On
// a slow line that many requests share, each takes long; with a limit on the
// whole request all would fail, and start again without end.
type watched struct {
	cancel      context.CancelCauseFunc
	pace        *pace
	stall       time.Duration // for a transfer that stands still
	sendStall   time.Duration // the same, while the payload is sent
	least, most time.Duration // for an answer

	mu    sync.Mutex
	timer *time.Timer
	due   time.Time // when the timer fires; it may have fired for an earlier time
	phase phase
	since time.Time     // when the request was written, in phase waiting
	bound time.Duration // to wait for the answer, in phase waiting
	conn  net.Conn      // of the request; nil = not known
	// unsent is how much the kernel still had to send when that was looked at last.
	unsent int
}

// phase is how far a request is.
type phase int

const (
	sending   phase = iota // it is not written to its connection yet
	waiting                // for the answer
	receiving              // the answer has begun
	ended
)

// watch returns a watched request of the given method, and a ctx that ends when
// it is given up. Its payload has that many bytes, in either direction; 0 for
// anything but the transfer of an object. The caller must call stop when the
// request is done.
func (s *Store) watch(ctx context.Context, method string, bytes int64) (reqCtx context.Context, w *watched) {
	reqCtx, cancel := context.WithCancelCause(ctx)
	atSlowest := s.stallTime + time.Duration(bytes)*time.Second/slowestRate
	w = &watched{
		cancel: cancel, pace: s.paces.of(method, bytes > 0),
		stall: s.stallTime, sendStall: s.stallTime,
		least: s.leastWait, most: max(mostWait, atSlowest),
	}
	if method == http.MethodPut {
		w.sendStall = atSlowest
	}
	w.due = time.Now().Add(w.sendStall)
	w.timer = time.AfterFunc(w.sendStall, w.look)
	return httptrace.WithClientTrace(reqCtx, &httptrace.ClientTrace{
		GotConn:      func(i httptrace.GotConnInfo) { w.got(i.Conn) },
		WroteRequest: func(i httptrace.WroteRequestInfo) { w.wrote(i.Err) },
	}), w
}

func (w *watched) stop() {
	w.mu.Lock()
	w.phase = ended
	w.timer.Stop()
	w.mu.Unlock()
	w.cancel(nil)
}

// wait lets the timer fire after d. The caller holds w.mu.
func (w *watched) wait(d time.Duration) {
	w.due = time.Now().Add(d)
	w.timer.Reset(d)
}

// got notes the connection of the request.
func (w *watched) got(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = conn
}

// wrote notes that the kernel has the whole request.
func (w *watched) wrote(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || w.phase != sending {
		return
	}
	w.phase, w.since, w.bound = waiting, time.Now(), w.pace.bound(w.least, w.most)
	w.wait(w.bound)
}

// answered notes that the answer has begun.
func (w *watched) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == waiting {
		w.pace.answered(time.Since(w.since))
	}
	w.phase = receiving
	w.wait(w.stall)
}

// moved notes that some of the payload was transferred.
func (w *watched) moved() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.phase {
	case sending:
		w.wait(w.sendStall)
	case receiving:
		w.wait(w.stall)
	}
}

// look is called when the request has not moved for as long as it may in its
// phase.
func (w *watched) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.phase == ended || time.Now().Before(w.due):
		return // the timer fired for what was before
	case w.phase != waiting:
		w.cancel(errStuck)
		return
	}
	switch unsent := unsentBytes(w.conn); {
	case unsent > 0 && unsent != w.unsent: // it is still on its way
		w.unsent = unsent
		w.wait(max(w.bound, w.stall))
	case unsent == 0 && w.unsent > 0: // it has arrived since the last look
		w.unsent = 0
		w.wait(w.bound)
	case unsent > 0:
		w.cancel(errStuck)
	default:
		w.pace.unanswered(w.bound)
		w.cancel(&givenUp{fmt.Sprintf("the store has taken the request and has not answered for %v", time.Since(w.since).Round(time.Millisecond))})
	}
}

// unsentBytes returns how many bytes of the request written to conn have not been
// acknowledged by the other side; 0 if that is not known, as with HTTP/2, where
// other requests use the connection too.
func unsentBytes(conn net.Conn) (n int) {
	if t, ok := conn.(*tls.Conn); ok {
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			return 0
		}
		conn = t.NetConn()
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); e != nil || err != nil {
		return 0
	}
	return n
}

// watchedReader is the payload of a watched request, in either direction.
type watchedReader struct {
	io.ReadCloser
	w *watched
}

func (r watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 && err == nil {
		r.w.moved()
	}
	return n, err
}

// stuck returns why the request was given up, if err is its failure because of
// that, and otherwise err.
func stuck(reqCtx context.Context, err error) error {
	if why, ok := errors.AsType[*givenUp](context.Cause(reqCtx)); ok && err != nil {
		return why
	}
	return err
}
