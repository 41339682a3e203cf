package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"bs3/internal/device"
)

// task is a request that may wait.
type task struct {
	request
	// The memory of a write or a read covers whole blocks; the data begins at head.
	// That of a read may be for less than all of it, see runParts.
	payload
	head   int
	span   *span  // of a request that changes something
	split  *split // of a write that was received in parts
	more   bool   // another part of split follows this one
	header [64]byte
}

// split is a write that is received in parts, for want of memory. Each is a task of
// its own, and the last answers for all.
type split struct {
	before sync.WaitGroup // one for each part before the last
	mu     sync.Mutex
	err    error // the first one of those
}

// done ends a part before the last.
func (s *split) done(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.before.Done()
}

// wait returns what to answer, after the last part has ended with err. The parts
// before it were started before it.
func (s *split) wait(err error) error {
	s.before.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return err
}

// next reads one request and serves it or starts a task for it. An error ends
// the connection.
func (c *conn) next() error {
	b, err := c.r.Peek(requestSize)
	if err != nil {
		return err
	}
	req, err := parseRequest(b)
	if err != nil {
		return err
	}
	c.skip(requestSize)
	if req.cmd == cmdDisc {
		return errDisconnect
	}
	if e, why := c.check(req); e != 0 {
		if req.cmd == cmdWrite {
			if req.length > maxDropped {
				return fmt.Errorf("%w: a write of %d bytes", errProtocol, req.length)
			}
			if _, err := c.r.Discard(int(req.length)); err != nil {
				return err
			}
		}
		c.fail(req.cookie, e, why)
		return nil
	}
	switch {
	case req.cmd == cmdFlush:
		return c.start(&task{request: req})
	case req.length == 0:
		c.acknowledge(req)
		return nil
	case req.cmd == cmdRead:
		return c.read(req)
	case req.cmd == cmdWrite:
		return c.write(req)
	case req.cmd == cmdBlockStatus:
		return c.claimAndStart(req, statusBytes)
	case req.cmd == cmdWriteZeroes && !c.srv.aligned(req):
		return c.claimAndStart(req, bufferSize(c.srv.geometry.BlockSize)) // see zeroPart
	default:
		return c.start(&task{request: req})
	}
}

// claimAndStart starts a task that needs n bytes of memory beside its payload.
func (c *conn) claimAndStart(req request, n int) error {
	mem, err := c.claim(0, n)
	if err != nil {
		return err
	}
	return c.start(&task{request: req, payload: mem})
}

// check returns what is wrong with a request; 0 if nothing is.
func (c *conn) check(req request) (errno, string) {
	g := c.srv.geometry
	allowed, changes := uint16(cmdFlagFUA), false
	switch req.cmd {
	case cmdRead:
		if c.structured {
			allowed |= cmdFlagDF
		}
	case cmdWrite, cmdTrim:
		changes = true
	case cmdWriteZeroes:
		changes = true
		allowed |= cmdFlagNoHole | cmdFlagFastZero
	case cmdFlush:
	case cmdBlockStatus:
		allowed |= cmdFlagReqOne
		if !c.status {
			return errnoINVAL, "no metadata context was negotiated"
		}
	default:
		return errnoINVAL, "unknown command"
	}
	beyond := req.off > uint64(g.Size) || uint64(req.length) > uint64(g.Size)-req.off
	switch {
	case req.flags&^allowed != 0:
		return errnoINVAL, "flag is not known for this command"
	case changes && g.ReadOnly:
		return errnoPERM, "export is read-only"
	case req.cmd == cmdFlush && (req.off != 0 || req.length != 0):
		return errnoINVAL, "a flush has neither offset nor length"
	case (req.cmd == cmdRead || req.cmd == cmdWrite) && req.length > maxRequest:
		return errnoINVAL, "request is larger than the maximum block size"
	case beyond && (req.cmd == cmdWrite || req.cmd == cmdWriteZeroes):
		return errnoNOSPC, "beyond the end of the export"
	case beyond:
		return errnoINVAL, "beyond the end of the export"
	case req.cmd == cmdBlockStatus && req.length == 0:
		return errnoINVAL, "block status of nothing"
	case req.flags&cmdFlagFastZero != 0 && req.length > 0 && !c.srv.coversBlock(req):
		return errnoNOTSUP, "zeroing part of a block is no faster than writing it"
	}
	return 0, ""
}

// cover returns the whole blocks that req touches, and where in them it begins.
func (s *Server) cover(req request) (off, n int64, head int) {
	bs := int64(s.geometry.BlockSize)
	off = int64(req.off) &^ (bs - 1)
	n = (int64(req.off)+int64(req.length)+bs-1)&^(bs-1) - off
	return off, n, int(int64(req.off) - off)
}

// inner returns the whole blocks inside req, if any (n > 0).
func (s *Server) inner(req request) (off, n int64) {
	bs := int64(s.geometry.BlockSize)
	off = (int64(req.off) + bs - 1) &^ (bs - 1)
	return off, (int64(req.off)+int64(req.length))&^(bs-1) - off
}

func (s *Server) coversBlock(req request) bool {
	_, n := s.inner(req)
	return n > 0
}

// aligned reports whether req consists of whole blocks.
func (s *Server) aligned(req request) bool {
	return (req.off|uint64(req.length))&uint64(s.geometry.BlockSize-1) == 0
}

// read serves a read from memory, or starts a task.
func (c *conn) read(req request) error {
	s := c.srv
	need := simpleSize + int(req.length)
	if c.structured {
		need = chunkSize + offsetSize + int(req.length)
	}
	fits := need <= batchSize
	if fits && len(c.out)+need > batchSize {
		c.flush(nil)
	}
	try := s.fast != nil && !c.hungUp
	if try && fits && s.aligned(req) {
		// Directly into the batch of replies.
		start := len(c.out)
		c.out = c.appendReadHeader(c.out, req)
		body := len(c.out)
		c.out = c.out[:body+int(req.length)]
		if s.fast.TryReadAt(c.out[body:], int64(req.off)) {
			return nil
		}
		c.out = c.out[:start]
		try = false
	}
	off, n, head := s.cover(req)
	mem, err := c.claim(int(n), 0)
	if err != nil {
		return err
	}
	if !try || c.hungUp || len(mem.p) < int(n) || !s.fast.TryReadAt(mem.p, off) {
		return c.start(&task{request: req, payload: mem, head: head})
	}
	defer c.free(mem)
	c.out = c.appendReadHeader(c.out, req)
	body := mem.p[head : head+int(req.length)]
	if fits {
		c.out = append(c.out, body...)
		return nil
	}
	c.flush(body)
	return nil
}

// write passes the payload of a write to the volume, or starts a task.
func (c *conn) write(req request) error {
	s := c.srv
	n := int(req.length)
	aligned := s.aligned(req)
	tried := !aligned
	if aligned && n <= peekMax {
		// Directly from the buffer of the connection.
		p, err := c.r.Peek(n)
		if err != nil {
			return err
		}
		if c.tryWrite(p, int64(req.off)) {
			c.skip(n)
			return c.written(req)
		}
		tried = true
	}
	extra := 0
	if !aligned {
		extra = bufferSize(s.geometry.BlockSize) // see writeBlocks
	}
	var parts *split
	for {
		_, covered, head := s.cover(req)
		mem, err := c.claim(int(covered), extra)
		if err != nil {
			return err
		}
		part := req
		more := len(mem.p) < int(covered)
		if more {
			part.length = uint32(len(mem.p) - head)
			part.flags &^= cmdFlagFUA // the last part flushes
			if parts == nil {
				parts = new(split)
			}
		}
		if _, err := io.ReadFull(c.r, mem.p[head:head+int(part.length)]); err != nil {
			c.free(mem)
			return err
		}
		if !tried && parts == nil && c.tryWrite(mem.p, int64(req.off)) {
			c.free(mem)
			return c.written(req)
		}
		if more {
			parts.before.Add(1)
		}
		if err := c.start(&task{request: part, payload: mem, head: head, split: parts, more: more}); err != nil || !more {
			return err
		}
		req.off += uint64(part.length)
		req.length -= part.length
	}
}

// written answers a write that the volume has done. With FUA that needs a flush,
// and a flush may wait.
func (c *conn) written(req request) error {
	if req.flags&cmdFlagFUA == 0 {
		c.acknowledge(req)
		return nil
	}
	return c.start(&task{request: request{cmd: cmdFlush, cookie: req.cookie}})
}

// acknowledge adds a reply without payload to the batch.
func (c *conn) acknowledge(req request) {
	if len(c.out)+chunkSize > batchSize {
		c.flush(nil)
	}
	c.out = c.appendDone(c.out, req)
}

// appendDone appends a reply without payload. It is a simple one wherever the
// protocol allows that, whatever was negotiated: clients have to read a structured
// one in two steps, for which libnbd makes two system calls.
func (c *conn) appendDone(b []byte, req request) []byte {
	if c.structured && req.cmd == cmdRead {
		return appendChunk(b, req.cookie, chunkNone, 0)
	}
	return appendSimple(b, req.cookie, 0)
}

// fail adds an error reply to the batch.
func (c *conn) fail(cookie uint64, e errno, why string) {
	if len(c.out)+chunkSize+maxName > batchSize {
		c.flush(nil)
	}
	c.out = c.appendFailure(c.out, cookie, e, why)
}

func (c *conn) appendFailure(b []byte, cookie uint64, e errno, why string) []byte {
	if c.structured {
		return appendErrorChunk(b, cookie, e, why)
	}
	return appendSimple(b, cookie, e)
}

// appendReadHeader appends what precedes the data of a read.
func (c *conn) appendReadHeader(b []byte, req request) []byte {
	if !c.structured {
		return appendSimple(b, req.cookie, 0)
	}
	b = appendChunk(b, req.cookie, chunkOffsetData, offsetSize+int(req.length))
	return binary.BigEndian.AppendUint64(b, req.off)
}

// run serves t and sends its reply.
func (c *conn) run(t *task) {
	if t.more {
		t.split.done(c.change(t))
		return
	}
	if _, n, _ := c.srv.cover(t.request); t.cmd == cmdRead && len(t.p) < int(n) {
		c.runParts(t)
		return
	}
	payload, err := c.execute(t)
	b := t.header[:0]
	switch {
	case err != nil:
		c.logFailure(t, err)
		b = c.appendFailure(b, t.cookie, errnoOf(err), err.Error())
	case t.cmd == cmdRead:
		b = c.appendReadHeader(b, t.request)
	case t.cmd == cmdBlockStatus:
		b = appendChunk(b, t.cookie, chunkBlockStatus, len(payload))
	default:
		b = c.appendDone(b, t.request)
	}
	// The reader sees a failure as well.
	if len(payload) > 0 {
		_ = c.sender.send(b, payload)
	} else {
		_ = c.sender.send(b)
	}
}

// runParts serves a read whose memory is for a part of it. With structured replies
// each part is a chunk of its own, sent as soon as it is read. Without, or if the client
// forbids several chunks, they are one reply: no other one can come between them, and
// an error can only end the connection. So all of them are read once before that
// begins: what fails, or has to be waited for, does it then.
func (c *conn) runParts(t *task) {
	whole := !c.structured || t.flags&cmdFlagDF != 0
	err := c.readParts(t, func(part request, data []byte) bool {
		if whole {
			return true
		}
		b := c.appendReadHeader(t.header[:0], part)
		if part.off+uint64(part.length) < t.off+uint64(t.length) {
			binary.BigEndian.PutUint16(b[4:], 0) // without replyFlagDone
		}
		return c.sender.send(b, data) == nil
	})
	switch {
	case err != nil:
		c.logFailure(t, err)
		_ = c.sender.send(c.appendFailure(t.header[:0], t.cookie, errnoOf(err), err.Error())) // as in run
	case whole:
		c.sendParts(t)
	}
}

// sendParts reads the parts of t and sends them as one reply.
func (c *conn) sendParts(t *task) {
	if c.sender.begin() != nil {
		return // as in run
	}
	defer c.sender.end()
	b := c.appendReadHeader(t.header[:0], t.request)
	err := c.readParts(t, func(_ request, data []byte) bool {
		err := c.sender.write(b, data)
		b = nil
		return err == nil
	})
	if err != nil {
		c.logFailure(t, err)
		c.cut()
	}
}

// readParts reads the parts of t in order and passes each to use, until that
// returns false.
func (c *conn) readParts(t *task, use func(part request, data []byte) bool) error {
	for rest := t.request; rest.length > 0; {
		off, n, head := c.srv.cover(rest)
		p := t.p[:min(len(t.p), int(n))]
		if err := c.srv.vol.ReadAt(c.ctx, p, off); err != nil {
			return err
		}
		part := rest
		part.length = uint32(min(int(rest.length), len(p)-head))
		if !use(part, p[head:head+int(part.length)]) {
			return nil
		}
		rest.off += uint64(part.length)
		rest.length -= part.length
	}
	return nil
}

// logFailure logs the failure of t, unless its client is gone.
func (c *conn) logFailure(t *task, err error) {
	if c.ctx.Err() == nil {
		c.srv.errLog.Error().Err(err).Uint16("command", t.cmd).Uint64("offset", t.off).Uint32("length", t.length).
			Msg("NBD request failed")
	}
}

// errnoOf returns the errno for an error of the volume.
func errnoOf(err error) errno {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, device.ErrStopped) {
		return errnoSHUTDOWN
	}
	return errnoIO
}
