package ublk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// request is a request of the kernel in the terms of a Volume.
type request struct {
	tag    uint16
	op     uint32
	fua    bool
	off, n int64 // bytes
}

// errUnknown: a request for an operation that was never offered.
var errUnknown = errors.New("unknown operation")

// parse reads the descriptor of a tag. The kernel observes the limits of the
// device, but a Volume relies on them, so parse checks them.
func (q *queue) parse(tag uint16) (request, error) {
	d := q.descriptors[tag]
	r := request{
		tag: tag,
		op:  d.opFlags & 0xff,
		off: int64(d.startSector512) << sectorShift,
		n:   int64(d.sectors512) << sectorShift,
	}
	g := q.geometry
	most := g.Size
	switch r.op {
	case opFlush:
		return r, nil
	case opRead:
		most = int64(q.maxIO)
	case opWrite:
		most = int64(q.maxIO)
		r.fua = d.opFlags&ioFlagFUA != 0
	case opDiscard, opWriteZeroes:
		if g.MaxDiscard > 0 {
			most = g.MaxDiscard
		}
		r.fua = d.opFlags&ioFlagFUA != 0
	default:
		return r, fmt.Errorf("%w %d", errUnknown, r.op)
	}
	switch {
	case (r.off|r.n)&int64(g.BlockSize-1) != 0:
		return r, fmt.Errorf("%d bytes at %d are not in blocks of %d", r.n, r.off, g.BlockSize)
	case r.n == 0 || r.n > most:
		return r, fmt.Errorf("%d bytes at %d, with at most %d in one request", r.n, r.off, most)
	case d.startSector512 > uint64(g.Size)>>sectorShift || r.n > g.Size-r.off:
		return r, fmt.Errorf("%d bytes at %d are beyond %d", r.n, r.off, g.Size)
	case g.ReadOnly && r.op != opRead:
		return r, fmt.Errorf("%d bytes at %d of a read-only volume", r.n, r.off)
	}
	return r, nil
}

// data returns the buffer of a request, which for a write holds the data. copied
// is the buffer into which the kernel has copied a write, if it does that.
func (q *queue) data(r request, copied *buffer) (*buffer, error) {
	if r.op != opRead && r.op != opWrite {
		return copied, nil
	}
	if r.op == opWrite && !q.userCopy {
		if copied == nil || int64(len(copied.mem)) < r.n {
			return copied, fmt.Errorf("write of %d bytes without its data", r.n)
		}
		copied.p = copied.mem[:r.n] // less, if the kernel could not copy all
		return copied, nil
	}
	buf, err := q.buffers.get(int(r.n))
	if err == nil && r.op == opWrite {
		err = q.dev.ReadAt(buf.p, dataOffset(q.id, r.tag))
	}
	return buf, err
}

// try does a request if that needs no wait, and reports whether it did.
func (q *queue) try(r request, buf *buffer) bool {
	if q.fast == nil {
		return false
	}
	switch r.op {
	case opRead:
		return q.fast.TryReadAt(buf.p, r.off)
	case opWrite:
		return q.fast.TryWriteAt(buf.p, r.off)
	default:
		return false
	}
}

// execute does a request. If tried, the request is a write that only lacks its
// flush.
func (q *queue) execute(ctx context.Context, r request, buf *buffer, tried bool) (err error) {
	switch {
	case tried:
	case r.op == opRead:
		err = q.vol.ReadAt(ctx, buf.p, r.off)
	case r.op == opWrite:
		err = q.vol.WriteAt(ctx, buf.p, r.off)
	case r.op == opDiscard:
		err = q.vol.Discard(ctx, r.off, r.n)
	case r.op == opWriteZeroes:
		err = q.vol.WriteZeroes(ctx, r.off, r.n)
	}
	if err == nil && (r.fua || r.op == opFlush) {
		err = q.vol.Flush(ctx)
	}
	return err
}

// answer returns the completion of a request that ended with err. It disposes of
// the buffer.
func (q *queue) answer(r request, buf *buffer, err error) completion {
	if err == nil && r.op == opRead && q.userCopy {
		err = q.dev.WriteAt(buf.p, dataOffset(q.id, r.tag))
	}
	c := completion{tag: r.tag}
	if err != nil {
		q.errLog.Error().Err(err).Uint32("operation", r.op).Int64("offset", r.off).Int64("length", r.n).
			Msg("ublk request failed")
		c.result = -int32(errnoOf(err))
	} else if r.op == opRead || r.op == opWrite {
		c.result = int32(r.n)
	}
	if r.op == opRead && !q.userCopy {
		if err == nil {
			c.buf = buf
			return c
		}
		c.failed = true
	}
	q.buffers.put(buf)
	return c
}

// errnoOf returns the errno for err, of those that the block layer distinguishes.
func errnoOf(err error) unix.Errno {
	switch {
	case errors.Is(err, errUnknown):
		return unix.EOPNOTSUPP
	case errors.Is(err, unix.ENOMEM):
		return unix.ENOMEM
	default:
		return unix.EIO
	}
}
