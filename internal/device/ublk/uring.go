package ublk

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What ublk needs of io_uring, from linux/io_uring.h.
const (
	uringOpPollAdd  = 6
	uringOpUringCmd = 46

	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12 // Linux 6.0
	setupDeferTaskrun = 1 << 13 // Linux 6.1

	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	offRings = 0
	offSQEs  = 0x10000000
)

// sqe is struct io_uring_sqe of a ring with IORING_SETUP_SQE128, with the members
// of its unions that we use.
type sqe struct {
	opcode     uint8
	flags      uint8
	ioprio     uint16
	fd         int32
	cmdOp      uint32
	_          uint32
	addr       uint64
	len        uint32
	pollEvents uint32
	userData   uint64
	_          uint64
	cmd        [80]byte
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// sqOffsets and cqOffsets are struct io_sqring_offsets and io_cqring_offsets.
type sqOffsets struct {
	head, tail, mask, entries, flags, dropped, array, _ uint32
	_                                                   uint64
}

type cqOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, _ uint32
	_                                                   uint64
}

// uringParams is struct io_uring_params.
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     sqOffsets
	cq                                                                     cqOffsets
}

// geteventsArg is struct io_uring_getevents_arg, timespec __kernel_timespec.
type geteventsArg struct {
	sigmask     uint64
	sigmaskSize uint32
	_           uint32
	timeout     uint64
}

type timespec struct{ seconds, nanoseconds int64 }

// uring is an io_uring. It is for one goroutine at a time, and with
// setupSingleIssuer only for the thread that made it.
type uring struct {
	fd    int
	rings []byte // indices of both queues, and the completions
	mem   []byte // the submissions

	sqHead, sqTail *uint32
	sqMask         uint32
	sqes           []sqe
	tail           uint32 // of sqes, ahead of *sqTail by the prepared ones

	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []cqe

	// Arguments of enter that the kernel reads by address; the heap does not move.
	arg   geteventsArg
	limit timespec
}

// newUring makes a ring for entries submissions, rounded up to a power of two.
func newUring(entries int, flags uint32) (u *uring, err error) {
	p := uringParams{flags: flags | setupSQE128 | setupSubmitAll}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	u = &uring{fd: int(fd)}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.close())
		}
	}()
	// Since Linux 5.4 one mapping has both queues.
	size := max(int(p.sq.array)+int(p.sqEntries)*4, int(p.cq.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(cqe{})))
	const prot, how = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if u.rings, err = unix.Mmap(u.fd, offRings, size, prot, how); err != nil {
		return nil, fmt.Errorf("map the queues of an io_uring: %w", err)
	}
	if u.mem, err = unix.Mmap(u.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, how); err != nil {
		return nil, fmt.Errorf("map the submissions of an io_uring: %w", err)
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[off])) }
	u.sqHead, u.sqTail, u.sqMask = word(p.sq.head), word(p.sq.tail), *word(p.sq.mask)
	u.cqHead, u.cqTail, u.cqMask = word(p.cq.head), word(p.cq.tail), *word(p.cq.mask)
	u.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&u.mem[0])), p.sqEntries)
	u.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&u.rings[p.cq.cqes])), p.cqEntries)
	// The queue holds indices of submissions: each entry its own, for good.
	array := unsafe.Slice(word(p.sq.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	return u, nil
}

// prepare returns a cleared submission to fill in. Between two calls of enter the
// caller must not prepare more than newUring was told.
func (u *uring) prepare() *sqe {
	s := &u.sqes[u.tail&u.sqMask]
	*s = sqe{}
	u.tail++
	return s
}

// enter submits what is prepared and waits until there are at least wait
// completions, at most for limit if that is above 0. It may return early: a caller
// that needs a completion looks for it and enters again.
func (u *uring) enter(wait uint32, limit time.Duration) error {
	flags, argp, size := uintptr(enterGetEvents), unsafe.Pointer(nil), uintptr(0)
	if limit > 0 {
		u.limit = timespec{int64(limit / time.Second), int64(limit % time.Second)}
		u.arg = geteventsArg{timeout: uint64(uintptr(unsafe.Pointer(&u.limit)))}
		flags, argp, size = flags|enterExtArg, unsafe.Pointer(&u.arg), unsafe.Sizeof(u.arg)
	}
	atomic.StoreUint32(u.sqTail, u.tail)
	for {
		submit := u.tail - atomic.LoadUint32(u.sqHead)
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(submit), uintptr(wait), flags, uintptr(argp), size)
		switch errno {
		// Signals come from the Go runtime; EAGAIN is lack of memory.
		case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY:
			if u.tail == atomic.LoadUint32(u.sqHead) {
				return nil
			}
		case unix.ETIME:
			return nil
		default:
			return os.NewSyscallError("io_uring_enter", errno)
		}
	}
}

// ready reports whether next has a completion to return.
func (u *uring) ready() bool { return *u.cqHead != atomic.LoadUint32(u.cqTail) }

// next returns a completion if there is one.
func (u *uring) next() (cqe, bool) {
	if !u.ready() {
		return cqe{}, false
	}
	c := u.cqes[*u.cqHead&u.cqMask]
	atomic.StoreUint32(u.cqHead, *u.cqHead+1)
	return c, true
}

// close releases everything. The kernel cancels what has not completed.
func (u *uring) close() error {
	var errs []error
	for _, mapping := range [][]byte{u.mem, u.rings} {
		if mapping != nil {
			errs = append(errs, unix.Munmap(mapping))
		}
	}
	return errors.Join(append(errs, unix.Close(u.fd))...)
}
