package ublk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
)

// shown is the device as its queues see it. It is constant while they run.
type shown struct {
	vol      device.Volume
	fast     device.Fast // nil if vol has none
	geometry device.Geometry
	dev      charDevice
	depth    int
	maxIO    int  // bytes, of a read or write
	userCopy bool // data is copied by us (flagUserCopy), else by the kernel (flagNeedGetData)
	legacy   bool // commands are not encoded
	buffers  *buffers
	errLog   zerolog.Logger // for what a broken volume would repeat endlessly
}

func (d *shown) op(nr uint32) uint32 {
	if d.legacy {
		return nr
	}
	return encode(nr)
}

// queue serves one hardware queue of the device. Only its thread, the one that
// calls run, talks to the kernel about requests: the driver takes commands from no
// other. What may block runs on goroutines, which pass their completions to it.
//
// A request has a tag, 0 to depth-1. At any time the kernel has the tag (waiting
// to be filled, or being copied), or we do.
type queue struct {
	*shown
	id          uint16
	ring        ring
	descriptors []ioDesc
	live        int       // tags that have not been aborted
	written     []*buffer // by tag: the data of a write that the kernel copies or has copied
	sent        []*buffer // of reads, which the kernel copies as it takes the completion

	wg   sync.WaitGroup // goroutines of requests
	quit atomic.Bool    // end without waiting for the kernel

	mu    sync.Mutex
	done  []completion // from goroutines, for the thread
	spare []completion // a slice for done
	open  bool         // ring can be woken
}

// completion is the end of a request.
type completion struct {
	tag    uint16
	result int32   // bytes, or a negative errno
	buf    *buffer // the data of a read for the kernel to copy, or nil
	failed bool    // a read that the kernel would have copied
}

// nowhere is the address of a failed read: the driver requires one, but does not
// use it.
const nowhere = 1

// errAborted: the driver took back all requests because the device was stopped.
var errAborted = errors.New("the device was stopped")

// stages coordinates the start of the queues of a device. They take their first
// requests only when all of them can: a device with only some queues is useless,
// and worse, see Options.Marker.
type stages struct {
	prepared func()          // called when the queue has what it needs
	begin    <-chan struct{} // closed when it may ask for requests
	fetching func()          // called when it has asked
}

// run serves the queue until the device is stopped (errAborted), abandon is called
// (nil), or something fails. ctx is for the requests; a failure cancels it. No
// request is in flight when run returns.
//
// It keeps its thread for good. The thread ends with the goroutine, which tells
// the driver that no more will come from it.
func (q *queue) run(ctx context.Context, fail context.CancelFunc, s stages) (err error) {
	runtime.LockOSThread()
	if q.descriptors, err = q.dev.descriptors(q.id, q.depth); err == nil {
		q.ring, err = q.dev.ring(q.depth)
	}
	if err != nil {
		fail()
		return fmt.Errorf("queue %d: %w", q.id, err)
	}
	q.setOpen(true)
	q.live = q.depth
	q.written = make([]*buffer, q.depth)
	s.prepared()
	<-s.begin
	if !q.quit.Load() {
		err = q.serve(ctx, s.fetching)
	}
	if err != nil && !errors.Is(err, errAborted) {
		err = fmt.Errorf("queue %d: %w", q.id, err)
		fail()
	}
	q.wg.Wait()
	q.setOpen(false)
	if cerr := q.ring.close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("queue %d: %w", q.id, cerr))
	}
	for _, c := range q.take() {
		q.buffers.put(c.buf)
	}
	for _, buf := range append(q.written, q.sent...) {
		q.buffers.put(buf)
	}
	return err
}

// serve is run without setting up and cleaning up.
func (q *queue) serve(ctx context.Context, fetching func()) error {
	for tag := range uint16(q.depth) {
		q.ring.command(q.op(ioFetchReq), ioCmd{queue: q.id, tag: tag})
	}
	if err := q.ring.submit(); err != nil {
		return err
	}
	if tag, res, ok := q.ring.next(); ok { // there cannot be requests yet
		return fmt.Errorf("fetch for tag %d: %w", tag, unix.Errno(-res))
	}
	fetching()
	for !q.quit.Load() {
		if err := q.ring.wait(); err != nil {
			return err
		}
		for _, buf := range q.sent {
			q.buffers.put(buf)
		}
		q.sent = q.sent[:0]
		for {
			tag, res, ok := q.ring.next()
			if !ok {
				break
			}
			if err := q.handle(ctx, tag, res); err != nil {
				return err
			}
		}
		done := q.take()
		for _, c := range done {
			q.commit(c)
		}
		q.spare = done[:0]
		if q.live == 0 {
			return errAborted
		}
	}
	return nil
}

// abandon makes run return, once it may begin, although the device is not stopped.
// Cancel the requests first. It may be called at any time.
func (q *queue) abandon() {
	q.quit.Store(true)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open {
		q.ring.wake()
	}
}

func (q *queue) setOpen(open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = open
}

// handle handles a completion from the kernel for a tag.
func (q *queue) handle(ctx context.Context, tag uint16, res int32) error {
	switch {
	case int(tag) >= q.depth || res > resNeedGetData || res == resNeedGetData && q.userCopy:
		return fmt.Errorf("unexpected result %d from the driver for tag %d", res, tag)
	case res == resOK:
		q.start(ctx, tag)
	case res == resNeedGetData:
		cmd := ioCmd{queue: q.id, tag: tag}
		buf, err := q.buffers.get(int(q.descriptors[tag].sectors512) << sectorShift)
		if err != nil {
			// Without an address the kernel cannot copy, and asks again soon.
			q.errLog.Error().Err(err).Msg("ublk request waits for memory")
		} else {
			q.written[tag] = buf
			cmd.addr = buf.address()
		}
		q.ring.command(q.op(ioNeedGetData), cmd)
	case unix.Errno(-res) == unix.ENODEV: // UBLK_IO_RES_ABORT
		q.live--
	default:
		return fmt.Errorf("command for tag %d: %w", tag, unix.Errno(-res))
	}
	return nil
}

// start serves a request at once if that needs no wait, or else starts a goroutine
// for it.
func (q *queue) start(ctx context.Context, tag uint16) {
	buf := q.written[tag]
	q.written[tag] = nil
	r, err := q.parse(tag)
	if err == nil {
		buf, err = q.data(r, buf)
	}
	if err != nil {
		q.commit(q.answer(r, buf, err))
		return
	}
	tried := q.try(r, buf)
	if tried && !r.fua {
		q.commit(q.answer(r, buf, nil))
		return
	}
	q.wg.Go(func() {
		q.finish(q.answer(r, buf, q.execute(ctx, r, buf, tried)))
	})
}

// finish passes a completion to the thread. Any goroutine may call it.
func (q *queue) finish(c completion) {
	q.mu.Lock()
	q.done = append(q.done, c)
	first := len(q.done) == 1
	q.mu.Unlock()
	if first {
		q.ring.wake()
	}
}

// take returns the completions that finish was called with.
func (q *queue) take() []completion {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.done
	q.done, q.spare = q.spare, nil
	return list
}

// commit prepares the command that ends a request and asks for the next.
func (q *queue) commit(c completion) {
	cmd := ioCmd{queue: q.id, tag: c.tag, result: c.result}
	switch {
	case c.buf != nil:
		cmd.addr = c.buf.address()
		q.sent = append(q.sent, c.buf)
	case c.failed:
		cmd.addr = nowhere
	}
	q.ring.command(q.op(ioCommitAndFetchReq), cmd)
}
