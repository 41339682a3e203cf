package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
)

// execute does what t asks for and returns the payload of the reply, if any. It
// may wait, but not longer than the connection lives.
func (c *conn) execute(t *task) (payload []byte, err error) {
	s := c.srv
	switch t.cmd {
	case cmdRead:
		off, _, _ := s.cover(t.request)
		if err := s.vol.ReadAt(c.ctx, t.p, off); err != nil {
			return nil, err
		}
		return t.p[t.head : t.head+int(t.length)], nil
	case cmdBlockStatus:
		return c.blockStatus(t.request)
	case cmdFlush:
		return nil, s.vol.Flush(c.ctx)
	}
	err = c.change(t)
	if t.split != nil {
		err = t.split.wait(err)
	}
	if err != nil {
		return nil, err
	}
	if t.flags&cmdFlagFUA != 0 {
		return nil, s.vol.Flush(c.ctx)
	}
	return nil, nil
}

// change waits for the turn of t and does what it asks for.
func (c *conn) change(t *task) error {
	if t.span == nil {
		return nil // a trim of less than a block
	}
	defer c.delist(t)
	if err := t.span.wait(c.ctx); err != nil {
		return err
	}
	switch t.cmd {
	case cmdWrite:
		return c.writeBlocks(t)
	case cmdTrim:
		// A trim is a hint: partial blocks at its edges stay as they are.
		off, n := c.srv.inner(t.request)
		return c.pieces(off, n, c.srv.vol.Discard)
	default:
		// NBD_CMD_FLAG_NO_HOLE asks that later writes find room. A Volume cannot
		// reserve any: every write goes to a new place.
		return c.writeZeroes(t.request)
	}
}

// writeBlocks writes the payload of t in one write, completing the blocks at its
// edges with what they hold.
func (c *conn) writeBlocks(t *task) error {
	s := c.srv
	off, n, head := s.cover(t.request)
	if s.aligned(t.request) {
		return s.vol.WriteAt(c.ctx, t.p, off)
	}
	bs := s.geometry.BlockSize
	edge, err := s.buffers.get(bs)
	if err != nil {
		return err
	}
	defer s.buffers.put(edge)
	s.beginRMW()
	defer s.endRMW()
	tail := head + int(t.length) // where the payload ends
	if head > 0 || tail < bs {
		if err := s.vol.ReadAt(c.ctx, edge.p, off); err != nil {
			return err
		}
		copy(t.p[:head], edge.p)
		if tail < bs {
			copy(t.p[tail:], edge.p[tail:])
		}
	}
	if last := int(n) - bs; last > 0 && tail < int(n) {
		if err := s.vol.ReadAt(c.ctx, edge.p, off+int64(last)); err != nil {
			return err
		}
		copy(t.p[tail:], edge.p[tail-last:])
	}
	return s.vol.WriteAt(c.ctx, t.p, off)
}

// writeZeroes zeroes exactly the bytes of req.
func (c *conn) writeZeroes(req request) error {
	s := c.srv
	off, n, _ := s.cover(req)
	if s.aligned(req) {
		return c.pieces(off, n, s.vol.WriteZeroes)
	}
	s.beginRMW()
	defer s.endRMW()
	bs := int64(s.geometry.BlockSize)
	from, to := int64(req.off), int64(req.off)+int64(req.length)
	if whole, length := s.inner(req); length > 0 {
		if err := c.pieces(whole, length, s.vol.WriteZeroes); err != nil {
			return err
		}
	}
	if from%bs != 0 {
		if err := c.zeroPart(off, from-off, min(to-off, bs)); err != nil {
			return err
		}
	}
	// The last block, unless it is the first, which is done.
	if last := off + n - bs; to%bs != 0 && (last != off || from%bs == 0) {
		return c.zeroPart(last, 0, to-last)
	}
	return nil
}

// zeroPart zeroes the bytes from to to of the block at off.
func (c *conn) zeroPart(off, from, to int64) error {
	s := c.srv
	block, err := s.buffers.get(s.geometry.BlockSize)
	if err != nil {
		return err
	}
	defer s.buffers.put(block)
	if err := s.vol.ReadAt(c.ctx, block.p, off); err != nil {
		return err
	}
	clear(block.p[from:to])
	return s.vol.WriteAt(c.ctx, block.p, off)
}

// pieces calls do for [off, off+n) in pieces of at most MaxDiscard.
func (c *conn) pieces(off, n int64, do func(ctx context.Context, off, n int64) error) error {
	return c.srv.geometry.Pieces(off, n, func(off, n int64) error { return do(c.ctx, off, n) })
}

// blockStatus returns the payload of a reply to NBD_CMD_BLOCK_STATUS. It may
// describe less than was asked for, as the protocol allows.
func (c *conn) blockStatus(req request) ([]byte, error) {
	s := c.srv
	off, n, head := s.cover(req)
	extents, err := s.alloc.Allocation(c.ctx, off, n)
	if err != nil {
		return nil, err
	}
	most := maxStatus
	if req.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	b := binary.BigEndian.AppendUint32(nil, contextID)
	skip, left := int64(head), int64(req.length)
	for i := 0; i < len(extents) && most > 0 && left > 0; most-- {
		hole, length := extents[i].Hole, int64(0)
		for ; i < len(extents) && extents[i].Hole == hole; i++ {
			length += extents[i].Length
		}
		length = min(length-skip, left)
		skip = 0
		left -= length
		var state uint32
		if hole {
			state = stateHole | stateZero
		}
		b = binary.BigEndian.AppendUint32(b, uint32(length))
		b = binary.BigEndian.AppendUint32(b, state)
	}
	if left == int64(req.length) {
		return nil, fmt.Errorf("volume returned no allocation at %d", req.off)
	}
	return b, nil
}
