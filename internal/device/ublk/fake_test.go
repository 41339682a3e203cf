package ublk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bs3/internal/device"
)

// fakeDriver is ublk_drv as this package sees it. It fails the test if it is not used
// by the rules of the real driver.
type fakeDriver struct {
	t testing.TB
	// What kind of driver it is.
	features uint64
	encoded  bool // it takes encoded commands, and no others
	asyncDel bool
	cpus     int
	missing  error // of opening the control device

	mu                             sync.Mutex
	changed                        *sync.Cond
	devs                           map[int]*fakeDevice
	writeBacks                     int
	writingBack                    chan struct{}    // if set, what takes and ends the next wait of writeBack
	fail                           map[uint32]error // of control commands, by number
	failOpen, failRing, failSubmit error
	partitions                     bool // a start reads the device
}

func newFakeDriver(t testing.TB) *fakeDriver {
	f := &fakeDriver{
		t: t, features: flagUserCopy | flagNeedGetData | flagUserRecovery | flagUserRecoveryReissue,
		encoded: true, asyncDel: true, cpus: 4,
		devs: make(map[int]*fakeDevice), fail: make(map[uint32]error),
	}
	f.changed = sync.NewCond(&f.mu)
	return f
}

// fakeDevice is one device of it. Its fields are under the driver's lock.
type fakeDevice struct {
	*fakeDriver
	info    devInfo
	params  params
	started bool // there is a block device
	users   int  // of the block device, who keep its number after a removal
	removed bool
	opened  bool // the character device
	begun   bool // recovery has begun
	queues  []*fakeQueue
	waiting []*fakeRequest // for a server, or for a free tag
	next    int            // queue
}

// fakeRequest is one that the block layer sends.
type fakeRequest struct {
	desc   ioDesc
	data   []byte // of a write; where that of a read goes
	ended  bool
	result int32
}

// fakeQueue is one hardware queue and, for its server, its ring.
type fakeQueue struct {
	*fakeDevice
	id          uint16
	descriptors []ioDesc
	tags        []fakeTag
	prepared    []func()
	done        []cqe
	woken       bool
	closed      bool
}

type fakeTag struct {
	active bool // the kernel has its command
	asked  bool // for the address of its data
	req    *fakeRequest
}

func (f *fakeDriver) writeBack(int) error {
	f.mu.Lock()
	f.writeBacks++
	wait := f.writingBack
	f.writingBack = nil
	f.mu.Unlock()
	if wait != nil {
		wait <- struct{}{}
		<-wait
	}
	return nil
}

func (f *fakeDriver) devices() ([]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []int
	for id, d := range f.devs {
		if !d.removed {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (f *fakeDriver) control() (control, error) { return f, f.missing }

func (f *fakeDriver) close() error { return nil }

// command is control's.
func (f *fakeDriver) command(op uint32, cmd ctrlCmd, data []byte, limit time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	nr := op & 0xff
	switch {
	case f.encoded && op != encode(nr):
		return unix.EOPNOTSUPP
	case !f.encoded && op != nr:
		return unix.EINVAL
	case cmd.queueID != noQueue:
		f.t.Errorf("control command %#x is for queue %d", nr, cmd.queueID)
	}
	if err := f.fail[nr]; err != nil {
		return err
	}
	switch nr {
	case cmdGetFeatures:
		*fill[uint64](f.t, data) = f.features
		return nil
	case cmdAddDev:
		return f.add(cmd.devID, fill[devInfo](f.t, data))
	}
	d := f.devs[int(cmd.devID)]
	if d == nil {
		return unix.ENODEV
	}
	switch nr {
	case cmdGetDevInfo:
		*fill[devInfo](f.t, data) = d.info
	case cmdSetParams:
		d.params = *fill[params](f.t, data)
	case cmdGetParams:
		*fill[params](f.t, data) = d.params
	case cmdStartDev:
		return d.start(int32(cmd.data[0]))
	case cmdStopDev:
		d.stop()
	case cmdDelDevAsync:
		if !f.asyncDel {
			return unix.EOPNOTSUPP
		}
		d.remove()
	case cmdDelDev:
		return d.delete(limit)
	case cmdStartUserRecovery:
		return d.startRecovery()
	case cmdEndUserRecovery:
		return d.endRecovery(int32(cmd.data[0]))
	default:
		f.t.Errorf("unknown control command %#x", nr)
	}
	return nil
}

// fill is the struct at the address that a command was given.
func fill[T any](t testing.TB, data []byte) *T {
	if len(data) != int(unsafe.Sizeof(*new(T))) {
		t.Errorf("a command has %d bytes of data", len(data))
		return new(T)
	}
	return (*T)(unsafe.Pointer(&data[0]))
}

func (f *fakeDriver) add(id uint32, info *devInfo) error {
	if id != info.id {
		f.t.Errorf("add of %d asks for %d", info.id, id)
	}
	if id == anyID {
		for id = 0; f.devs[int(id)] != nil; id++ {
		}
	}
	if f.devs[int(id)] != nil {
		return unix.EEXIST
	}
	info.id = id
	info.flags &= f.features
	info.queues = min(info.queues, uint16(f.cpus))
	d := &fakeDevice{fakeDriver: f, info: *info}
	for q := range info.queues {
		d.queues = append(d.queues, &fakeQueue{fakeDevice: d, id: q, descriptors: make([]ioDesc, info.depth), closed: true})
	}
	f.devs[int(id)] = d
	return nil
}

// fetching reports whether all commands are with the kernel or in flight.
func (d *fakeDevice) fetching() bool {
	return !slices.ContainsFunc(d.queues, func(q *fakeQueue) bool { return q.closed || len(q.tags) != int(d.info.depth) })
}

func (d *fakeDevice) start(pid int32) error {
	if !d.fetching() {
		d.t.Error("a device is started whose queues do not fetch: the driver waits for ever")
		return unix.EINVAL
	}
	d.info.state, d.info.pid, d.started = stateLive, pid, true
	d.changed.Broadcast()
	if d.partitions {
		d.mu.Unlock()
		_ = d.do(opRead, 0, 4096, make([]byte, 4096)) // that there is nothing is fine
		d.mu.Lock()
	}
	return nil
}

// stop waits for the requests in flight.
func (d *fakeDevice) stop() {
	if d.info.state == stateQuiesced || d.info.state == stateLive && d.info.flags&flagUserRecovery != 0 {
		for _, r := range d.waiting {
			r.end(-int32(unix.EIO))
		}
		d.waiting = nil
	}
	d.changed.Broadcast()
	for slices.ContainsFunc(d.queues, (*fakeQueue).busy) {
		d.changed.Wait()
	}
	d.info.state, d.started = stateDead, false
	for _, q := range d.queues {
		for tag := range q.tags {
			if q.tags[tag].active {
				q.tags[tag].active = false
				q.complete(tag, -int32(unix.ENODEV))
			}
		}
	}
	d.changed.Broadcast()
}

func (q *fakeQueue) busy() bool {
	return slices.ContainsFunc(q.tags, func(t fakeTag) bool { return t.req != nil })
}

func (d *fakeDevice) remove() {
	d.stop()
	d.removed = true
	if d.users == 0 && !d.opened {
		delete(d.devs, int(d.info.id))
	}
}

func (d *fakeDevice) delete(limit time.Duration) error {
	d.remove()
	if d.users > 0 {
		if limit == 0 {
			d.t.Error("the driver waits for ever to remove a device that is in use")
		}
		return errLimit
	}
	return nil
}

func (d *fakeDevice) startRecovery() error {
	switch {
	case d.info.flags&flagUserRecovery == 0:
		return unix.EINVAL
	case d.info.state != stateQuiesced || d.opened:
		return unix.EBUSY
	}
	ready := 0
	for _, q := range d.queues {
		if len(q.tags) > 0 {
			ready++
		}
		q.tags = nil
	}
	if d.begun && ready == 0 {
		return unix.EINVAL
	}
	if ready != len(d.queues) {
		d.t.Error("the kernel crashes: some queues had a server, others not")
	}
	d.begun = true
	return nil
}

func (d *fakeDevice) endRecovery(pid int32) error {
	if !d.fetching() {
		d.t.Error("a recovery ends before its queues fetch: the driver waits for ever")
		return unix.EINVAL
	}
	if d.info.state != stateQuiesced {
		return unix.EBUSY
	}
	d.info.state, d.info.pid, d.begun = stateLive, pid, false
	d.dispatch()
	return nil
}

// kill is the death of the server: its rings are closed by the kernel. Requests
// that it had taken come again with the next one.
func (d *fakeDevice) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened = false
	for _, q := range d.queues {
		q.cancel()
	}
}

// open is driver's.
func (f *fakeDriver) open(id int) (charDevice, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.devs[id]
	switch {
	case f.failOpen != nil:
		return nil, f.failOpen
	case d == nil:
		return nil, unix.ENOENT
	case d.opened:
		return nil, unix.EBUSY
	}
	d.opened = true
	return fakeChar{d}, nil
}

// fakeChar is the open character device.
type fakeChar struct{ *fakeDevice }

func (c fakeChar) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = false
	if c.removed && c.users == 0 {
		delete(c.devs, int(c.info.id))
	}
	for _, q := range c.queues {
		if !q.closed {
			c.t.Error("the character device is closed before its queues")
		}
	}
	return nil
}

func (c fakeChar) descriptors(queue uint16, depth int) ([]ioDesc, error) {
	if depth != int(c.info.depth) {
		return nil, unix.EINVAL
	}
	return c.queues[queue].descriptors, nil
}

// ring returns the rings in any order, as threads happen to ask; the queue shows
// with the first command.
func (c fakeChar) ring(depth int) (ring, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if depth != int(c.info.depth) {
		return nil, unix.EINVAL
	}
	if c.failRing != nil {
		return nil, c.failRing
	}
	return &fakeRing{char: c, thread: unix.Gettid()}, nil
}

func (c fakeChar) ReadAt(p []byte, off int64) error  { return c.copy(p, off, opWrite) }
func (c fakeChar) WriteAt(p []byte, off int64) error { return c.copy(p, off, opRead) }

func (c fakeChar) copy(p []byte, off int64, op uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	off -= ioBufOffset
	queue, tag, off := int(off>>41), int(off>>25&0xffff), off&(1<<25-1)
	if c.info.flags&flagUserCopy == 0 || queue >= len(c.queues) || tag >= len(c.queues[queue].tags) {
		return unix.EINVAL
	}
	req := c.queues[queue].tags[tag].req
	switch {
	case req == nil || off != 0:
		return unix.EINVAL
	case req.desc.opFlags&0xff != op:
		return unix.EACCES
	case op == opWrite:
		copy(p, req.data)
	default:
		copy(req.data, p)
	}
	return nil
}

// fakeRing is a ring; it belongs to one thread.
type fakeRing struct {
	char   fakeChar
	queue  *fakeQueue // known with the first command
	thread int
}

func (r *fakeRing) check() {
	if tid := unix.Gettid(); tid != r.thread {
		r.char.t.Errorf("thread %d uses the ring of thread %d", tid, r.thread)
	}
}

func (r *fakeRing) command(op uint32, cmd ioCmd) {
	r.check()
	f := r.char
	f.mu.Lock()
	defer f.mu.Unlock()
	nr := op & 0xff
	if f.encoded && op != encode(nr) || !f.encoded && op != nr {
		f.t.Errorf("command %#x in the wrong encoding", op)
	}
	if r.queue == nil {
		r.queue = f.queues[cmd.queue]
		if !r.queue.closed {
			f.t.Errorf("queue %d has two rings", cmd.queue)
		}
		r.queue.closed, r.queue.prepared = false, nil
	}
	q := r.queue
	if cmd.queue != q.id {
		f.t.Errorf("a command for queue %d on the ring of %d", cmd.queue, q.id)
	}
	if len(q.prepared) > int(f.info.depth) {
		f.t.Error("more commands than the ring has room for")
	}
	q.prepared = append(q.prepared, func() { q.take(nr, cmd) })
}

// take is what the driver does with a command.
func (q *fakeQueue) take(nr uint32, cmd ioCmd) {
	tag := int(cmd.tag)
	bad := func(format string, args ...any) {
		q.t.Errorf("queue %d tag %d command %#x: "+format, append([]any{q.id, tag, nr}, args...)...)
		q.complete(tag, -int32(unix.EINVAL))
	}
	if q.failSubmit != nil && int(q.id) == len(q.queues)-1 {
		q.complete(tag, -int32(unix.EBUSY))
		return
	}
	userCopy := q.info.flags&flagUserCopy != 0
	if nr == ioFetchReq {
		if tag != len(q.tags) || tag >= int(q.info.depth) {
			bad("is fetched twice or out of range")
			return
		}
		q.tags = append(q.tags, fakeTag{active: true})
		return
	}
	if tag >= len(q.tags) || q.tags[tag].active || q.tags[tag].req == nil {
		bad("the server does not have it")
		return
	}
	req := q.tags[tag].req
	op, n := req.desc.opFlags&0xff, int32(len(req.data))
	if userCopy && cmd.addr != 0 {
		bad("has an address")
		return
	}
	switch {
	case nr == ioNeedGetData && q.tags[tag].asked:
		q.tags[tag].asked = false
		if cmd.addr == 0 { // nothing is copied, it is asked again
			q.tags[tag].asked = true
			q.complete(tag, resNeedGetData)
			return
		}
		copy(memoryAt(cmd.addr, n), req.data)
		q.complete(tag, resOK)
	case nr == ioCommitAndFetchReq && !q.tags[tag].asked:
		if cmd.result >= 0 && (op == opRead || op == opWrite) && cmd.result != n {
			bad("result %d of %d bytes", cmd.result, n)
		}
		if op == opRead && !userCopy {
			if cmd.addr == 0 { // even of one that failed
				bad("read without an address")
				return
			}
			if cmd.result >= 0 {
				copy(req.data, memoryAt(cmd.addr, n))
			}
		}
		q.tags[tag] = fakeTag{active: true}
		req.end(cmd.result)
		q.dispatch()
		q.changed.Broadcast()
	default:
		bad("not now")
	}
}

// memoryAt is memory by an address, as the kernel has it.
func memoryAt(addr uint64, n int32) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n)
}

func (q *fakeQueue) complete(tag int, res int32) {
	q.done = append(q.done, cqe{userData: uint64(tag), res: res})
	q.changed.Broadcast()
}

func (r *fakeRing) submit() error {
	r.check()
	r.char.mu.Lock()
	defer r.char.mu.Unlock()
	q := r.queue
	if q.closed {
		return unix.EBADF
	}
	for _, do := range q.prepared {
		do()
	}
	q.prepared = nil
	return nil
}

func (r *fakeRing) wait() error {
	if err := r.submit(); err != nil {
		return err
	}
	r.char.mu.Lock()
	defer r.char.mu.Unlock()
	q := r.queue
	for len(q.done) == 0 && !q.woken && !q.closed {
		q.changed.Wait()
	}
	q.woken = false
	if q.closed {
		return unix.EBADF // as good as any: the server is dead
	}
	return nil
}

func (r *fakeRing) next() (uint16, int32, bool) {
	r.check()
	r.char.mu.Lock()
	defer r.char.mu.Unlock()
	q := r.queue
	if q.closed || len(q.done) == 0 {
		return 0, 0, false
	}
	c := q.done[0]
	q.done = q.done[1:]
	return uint16(c.userData), c.res, true
}

func (r *fakeRing) wake() {
	r.char.mu.Lock()
	defer r.char.mu.Unlock()
	if r.queue != nil {
		r.queue.woken = true
	}
	r.char.changed.Broadcast()
}

func (r *fakeRing) close() error {
	r.check()
	r.char.mu.Lock()
	defer r.char.mu.Unlock()
	if r.queue != nil {
		r.queue.cancel()
	}
	return nil
}

// cancel is what the kernel does when a ring is closed: requests wait for the
// next server.
func (q *fakeQueue) cancel() {
	if q.closed {
		return
	}
	q.closed = true
	for tag := range q.tags {
		if req := q.tags[tag].req; req != nil {
			q.waiting = append(q.waiting, req)
		}
		q.tags[tag] = fakeTag{} // its tags show that it had a server
	}
	q.prepared, q.done, q.woken = nil, nil, false
	if q.info.state == stateLive {
		q.info.state = stateQuiesced
	}
	q.changed.Broadcast()
}

// dispatch hands waiting requests to tags.
func (d *fakeDevice) dispatch() {
	for len(d.waiting) > 0 && d.info.state == stateLive {
		placed := false
		for range d.queues {
			q := d.queues[d.next%len(d.queues)]
			d.next++
			tag := slices.IndexFunc(q.tags, func(t fakeTag) bool { return t.active })
			if tag < 0 {
				continue
			}
			req := d.waiting[0]
			d.waiting = d.waiting[1:]
			asked := d.info.flags&flagUserCopy == 0 && req.desc.opFlags&0xff == opWrite
			q.tags[tag] = fakeTag{req: req, asked: asked}
			q.descriptors[tag] = req.desc
			if asked {
				q.complete(tag, resNeedGetData)
			} else {
				q.complete(tag, resOK)
			}
			placed = true
			break
		}
		if !placed {
			return
		}
	}
}

// shownDisk is the block device of d as a Volume.
type shownDisk struct {
	d *fakeDevice
	g device.Geometry
}

func (v shownDisk) Geometry() device.Geometry { return v.g }

func (v shownDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return v.split(ctx, int64(len(p)), maxIOBytes, func(at, n int64) error { return v.d.do(opRead, off+at, n, p[at:at+n]) })
}

func (v shownDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return v.split(ctx, int64(len(p)), maxIOBytes, func(at, n int64) error { return v.d.do(opWrite, off+at, n, p[at:at+n]) })
}

func (v shownDisk) Flush(ctx context.Context) error {
	return v.split(ctx, 1, 1, func(_, _ int64) error { return v.d.do(opFlush, 0, 0, nil) })
}

func (v shownDisk) Discard(ctx context.Context, off, n int64) error {
	most := int64(v.d.params.discard.maxSectors512) << sectorShift
	return v.split(ctx, n, most, func(at, n int64) error { return v.d.do(opDiscard, off+at, n, nil) })
}

func (v shownDisk) WriteZeroes(ctx context.Context, off, n int64) error {
	most := int64(v.d.params.discard.maxWriteZeroes512) << sectorShift
	return v.split(ctx, n, most, func(at, n int64) error { return v.d.do(opWriteZeroes, off+at, n, nil) })
}

// split keeps to the limits of the device, as the block layer does.
func (v shownDisk) split(ctx context.Context, n, most int64, do func(at, n int64) error) error {
	for at := int64(0); at < n; at += most {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(at, min(most, n-at)); err != nil {
			return err
		}
	}
	return nil
}

func (r *fakeRequest) end(result int32) { r.ended, r.result = true, result }

// errShown is what users of a block device see of a negative result.
func errShown(result int32) error {
	if result < 0 {
		return fmt.Errorf("I/O error: %w", unix.Errno(-result))
	}
	return nil
}

var errNoDevice = errors.New("no block device")

// do is a request of the block layer.
func (d *fakeDevice) do(opFlags uint32, off, n int64, data []byte) error {
	req := &fakeRequest{desc: ioDesc{opFlags: opFlags, startSector512: uint64(off) >> sectorShift, sectors512: uint32(n >> sectorShift)}, data: data}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return errNoDevice
	}
	d.waiting = append(d.waiting, req)
	d.dispatch()
	for !req.ended {
		d.changed.Wait()
	}
	return errShown(req.result)
}
