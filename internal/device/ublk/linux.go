package ublk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bs3/internal/device/blockdev"
)

// What follows is the edge to the kernel, which the tests replace.

// driver is ublk_drv, the driver in the kernel.
type driver interface {
	// control opens the control device.
	control() (control, error)
	// devices lists the numbers of the existing devices.
	devices() ([]int, error)
	// open opens the character device of device id, as its server.
	open(id int) (charDevice, error)
	// writeBack writes back what file systems and the page cache hold for the
	// block device.
	writeBack(id int) error
}

// control sends control commands.
type control interface {
	// command sends a command and waits for its end, at most for limit if that is
	// above 0. data, if any, is what the command's address will point to. Errors:
	// those of the kernel (unix.Errno); errLimit.
	command(op uint32, cmd ctrlCmd, data []byte, limit time.Duration) error
	close() error
}

// errLimit: a command is still running in the kernel.
var errLimit = errors.New("not done in time")

// charDevice is an open /dev/ublkcN.
type charDevice interface {
	// descriptors maps the descriptors of a queue, read-only, shared with the kernel.
	descriptors(queue uint16, depth int) ([]ioDesc, error)
	// ring makes the ring of a queue. The calling thread is that of the queue from
	// then on.
	ring(depth int) (ring, error)
	// ReadAt reads the data of a write request, WriteAt writes that of a read
	// request, at offsets from dataOffset on.
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	// close is called after the rings are closed and their threads gone.
	close() error
}

// ring is the io_uring of one queue. Threads other than the one that made it may
// call only wake.
type ring interface {
	// command prepares a command, at most one for each tag at a time.
	command(op uint32, cmd ioCmd)
	// submit submits the prepared commands.
	submit() error
	// wait submits them and waits for a completion or for wake; it may return
	// early.
	wait() error
	// next returns a completion if there is one.
	next() (tag uint16, res int32, ok bool)
	// wake makes the current or the next wait return.
	wake()
	close() error
}

// linux is the real driver.
type linux struct{}

const (
	controlPath = "/dev/ublk-control"
	charName    = "ublkc"
)

// blockPath returns the path of the block device of device id.
func blockPath(id int) string { return "/dev/ublkb" + strconv.Itoa(id) }

func (linux) control() (control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	u, err := newUring(4, 0)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &controlRing{f: f, u: u}, nil
}

func (linux) devices() ([]int, error) {
	paths, err := filepath.Glob("/dev/" + charName + "*")
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, path := range paths {
		if id, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), charName)); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (linux) open(id int) (charDevice, error) {
	// Not an os.File: the runtime's poller has no use for it.
	path := "/dev/" + charName + strconv.Itoa(id)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &charFile{fd: fd}, nil
}

func (linux) writeBack(id int) error { return blockdev.WriteBack(blockPath(id)) }

// controlRing sends control commands, one after the other.
type controlRing struct {
	f    *os.File
	u    *uring
	sent uint64 // commands so far; the number of each is its userData
}

func (c *controlRing) command(op uint32, cmd ctrlCmd, data []byte, limit time.Duration) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	if len(data) > 0 {
		pinner.Pin(&data[0])
		cmd.addr, cmd.len = uint64(uintptr(unsafe.Pointer(&data[0]))), uint16(len(data))
	}
	c.sent++
	s := c.u.prepare()
	s.opcode, s.fd, s.cmdOp, s.userData = uringOpUringCmd, int32(c.f.Fd()), op, c.sent
	*(*ctrlCmd)(unsafe.Pointer(&s.cmd)) = cmd
	deadline := time.Now().Add(limit)
	for {
		left := time.Duration(0)
		if limit > 0 {
			if left = time.Until(deadline); left <= 0 {
				return errLimit
			}
		}
		if err := c.u.enter(1, left); err != nil {
			return err
		}
		for {
			done, ok := c.u.next()
			switch {
			case !ok:
			case done.userData != c.sent: // one that exceeded its limit and has now ended
				continue
			case done.res < 0:
				return unix.Errno(-done.res)
			default:
				return nil
			}
			break
		}
	}
}

func (c *controlRing) close() error { return errors.Join(c.u.close(), c.f.Close()) }

// charFile is the real /dev/ublkcN.
type charFile struct {
	fd int

	mu   sync.Mutex // queues start together
	maps [][]byte
}

func (f *charFile) descriptors(queue uint16, depth int) ([]ioDesc, error) {
	page := os.Getpagesize()
	area := (int(descriptorArea) + page - 1) / page * page
	size := (depth*int(unsafe.Sizeof(ioDesc{})) + page - 1) / page * page
	mem, err := unix.Mmap(f.fd, int64(queue)*int64(area), size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map the requests of queue %d: %w", queue, err)
	}
	f.mu.Lock()
	f.maps = append(f.maps, mem)
	f.mu.Unlock()
	return unsafe.Slice((*ioDesc)(unsafe.Pointer(&mem[0])), depth), nil
}

func (f *charFile) ReadAt(p []byte, off int64) error {
	return all(p, off, func(p []byte, off int64) (int, error) { return unix.Pread(f.fd, p, off) })
}

func (f *charFile) WriteAt(p []byte, off int64) error {
	return all(p, off, func(p []byte, off int64) (int, error) { return unix.Pwrite(f.fd, p, off) })
}

// all repeats do, which may copy less than p, until all of p is copied.
func all(p []byte, off int64, do func([]byte, int64) (int, error)) error {
	for len(p) > 0 {
		n, err := do(p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("copy the data of a request: %w", err)
		case n <= 0:
			return fmt.Errorf("copy the data of a request: nothing copied, %d bytes left", len(p))
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

func (f *charFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, mem := range f.maps { // a mapping keeps the device open
		errs = append(errs, unix.Munmap(mem))
	}
	return errors.Join(append(errs, unix.Close(f.fd))...)
}

func (f *charFile) ring(depth int) (ring, error) {
	wakeFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	// A command for each tag, and the poll of the eventfd. Completions are left
	// to when the thread asks for them, if the kernel can do that.
	var u *uring
	for _, flags := range []uint32{setupDeferTaskrun | setupSingleIssuer | setupCoopTaskrun, setupSingleIssuer | setupCoopTaskrun} {
		if u, err = newUring(depth+1, flags); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(wakeFD))
	}
	r := &queueRing{u: u, fd: f.fd, wakeFD: wakeFD}
	r.watch()
	return r, nil
}

// wakeData is the userData of the poll of the eventfd; no tag is so large.
const wakeData = 1 << 32

// queueRing is a real ring.
type queueRing struct {
	u      *uring
	fd     int // the character device
	wakeFD int // an eventfd
}

func (r *queueRing) command(op uint32, cmd ioCmd) {
	s := r.u.prepare()
	s.opcode, s.fd, s.cmdOp, s.userData = uringOpUringCmd, int32(r.fd), op, uint64(cmd.tag)
	*(*ioCmd)(unsafe.Pointer(&s.cmd)) = cmd
}

// watch prepares the poll that wake completes.
func (r *queueRing) watch() {
	s := r.u.prepare()
	s.opcode, s.fd, s.pollEvents, s.userData = uringOpPollAdd, int32(r.wakeFD), unix.POLLIN, wakeData
}

func (r *queueRing) submit() error { return r.u.enter(0, 0) }

func (r *queueRing) wait() error { return r.u.enter(1, 0) }

func (r *queueRing) next() (tag uint16, res int32, ok bool) {
	for {
		c, ok := r.u.next()
		if !ok {
			return 0, 0, false
		}
		if c.userData != wakeData {
			return uint16(c.userData), c.res, true
		}
		var count [8]byte
		_, _ = unix.Read(r.wakeFD, count[:]) // empties it; if it was empty, wait returned early
		r.watch()
	}
}

func (r *queueRing) wake() {
	one := [8]byte{1}                   // the kernel adds it up; any value above 0 wakes
	_, _ = unix.Write(r.wakeFD, one[:]) // fails only when 2^64 wakes were not read
}

func (r *queueRing) close() error { return errors.Join(r.u.close(), unix.Close(r.wakeFD)) }
