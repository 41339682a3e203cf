package buse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	lib "github.com/asch/buse/lib/go/buse"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
)

// errIO is what the users of a stopped device get.
var errIO = errors.New("input/output error")

// module stands for the kernel module and for the loops of the library above it. It
// does what their sources do: what waits for what, when a chunk is closed, what a
// flush waits for, which reads wait for which chunks, where the numbers come from,
// and that a callback's return is an acknowledgement.
type module struct {
	o  lib.Options
	rw lib.BuseReadWriter

	// lag, if set, is called at the places where time may pass between two
	// parties: a chunk on its way to its callback, a flush to its queue.
	lag func()

	mu        sync.Mutex
	changed   *sync.Cond
	counters  []uint32 // one for each collision area
	queues    []*queue
	held      []heldWrite // what the page cache holds for the device
	scheduler string      // that orders the requests
	flushes   int         // that were not answered yet
	stopped   bool        // refuses requests
	dead      bool        // the daemon was killed: nothing moves any more
	drained   bool        // answers no flush that comes now
	removed   bool
	leaked    int64 // bytes of memory that are lost until the machine is restarted
	killed    bool  // the kernel has killed the daemon for lack of memory
	sys       system
}

// heldWrite is a write of a user that did not sync it.
type heldWrite struct {
	off  int64
	data []byte
}

// queue is a queue for writes and one for reads.
type queue struct {
	shm     []byte
	chunks  []*chunk
	free    []*chunk
	active  *chunk
	busy    []*chunk // to be handed over; among them flushes and the end
	fetched []*chunk
	pending int // callbacks that the loop for writes has started

	rshm     []byte
	slots    []bool // of one chunk size each: in use
	reads    []*read
	readers  int // callbacks that the loop for reads has started
	finished bool
}

// chunk is a chunk, or what is sent instead of one.
type chunk struct {
	offset  int64
	records int
	data    int64 // in the chunk, of the next write
	spans   [][2]int64
	flush   *flush
	end     bool
	waiting []*read
}

type flush struct{ queues int }

type read struct {
	first, blocks int64
	chunks        int // that it waits for
	slot          int
	done          bool
	end           bool
}

// newModule returns a module and the system through which to use it.
func newModule(t *testing.T) *module {
	t.Helper()
	dir := t.TempDir()
	m := &module{sys: system{
		configfs: filepath.Join(dir, "config"),
		dev:      filepath.Join(dir, "dev"),
		block:    filepath.Join(dir, "block"),
		meminfo:  filepath.Join(dir, "meminfo"),
		hang:     runtime.Goexit, // a callback that never returns
	}}
	m.changed = sync.NewCond(&m.mu)
	m.sys.create, m.sys.writeBack, m.sys.setScheduler = m.create, m.writeBack, m.setScheduler
	m.hasMemory(t, 4<<30)
	for _, dir := range []string{filepath.Join(m.sys.configfs, "buse"), m.sys.dev, m.sys.block} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// hasMemory sets how many bytes of memory the machine can still give.
func (m *module) hasMemory(t *testing.T, bytes int64) {
	t.Helper()
	text := fmt.Sprintf("MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:   %d kB\n", bytes>>10)
	if err := os.WriteFile(m.sys.meminfo, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// allocate is what the module allocates for a device, in this order. What it has
// of the first queue is lost when it does not get all. The kernel gives no more
// than 4 MiB in one piece, and for more buffers than there is memory it kills.
func (m *module) allocate(o lib.Options) error {
	available, err := m.sys.availableMemory()
	if err != nil {
		return err
	}
	const piece = 4 << 20
	if o.ReadShmSize/o.BlockSize*8 > piece {
		m.leaked += o.ReadShmSize
		return unix.ENOMEM
	}
	if int64(o.Threads)*(o.WriteShmSize+o.ReadShmSize) > available {
		m.killed = true
		return unix.ENOMEM
	}
	if o.Size/o.CollisionArea*4 > piece {
		m.leaked += o.WriteShmSize
		return unix.ENOMEM
	}
	return nil
}

// create is the library's New: it fills in the options and makes the device.
func (m *module) create(rw lib.BuseReadWriter, o lib.Options) (kernelDevice, error) {
	if o.Threads == 0 {
		o.Threads = 3
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.o, m.rw = o, rw
	m.stopped, m.dead, m.drained, m.removed = false, false, false, false
	m.scheduler, m.flushes = "none", 0
	dir := m.sys.directory(int(o.Major))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := m.allocate(o); err != nil {
		return nil, &fs.PathError{Op: "write", Path: filepath.Join(dir, "power"), Err: err}
	}
	m.counters = make([]uint32, o.Size/o.CollisionArea)
	m.queues = nil
	if err := os.WriteFile(filepath.Join(dir, "power"), []byte("1\n"), 0o600); err != nil {
		return nil, err
	}
	for i := range o.Threads {
		q := &queue{
			shm:   make([]byte, o.WriteShmSize),
			rshm:  bytes.Repeat([]byte{0xA5}, int(o.ReadShmSize)), // whatever was there before
			slots: make([]bool, o.ReadShmSize/o.WriteChunkSize),
		}
		for off := int64(0); off < o.WriteShmSize; off += o.WriteChunkSize {
			c := &chunk{offset: off}
			q.chunks = append(q.chunks, c)
			q.free = append(q.free, c)
		}
		m.queues = append(m.queues, q)
		for _, kind := range []string{"r", "w"} {
			path := filepath.Join(m.sys.dev, fmt.Sprintf("%s-%s%d", name(int(o.Major)), kind, i))
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

func (m *module) pause() {
	if m.lag != nil {
		m.lag()
	}
}

// wait waits for cond, under mu. It fails if the daemon was killed.
func (m *module) wait(cond func() bool) bool {
	for !m.dead && !cond() {
		m.changed.Wait()
	}
	return !m.dead
}

// write is a request of a user: the data of a write, or another operation. It
// is acknowledged when this returns. issued is called, under the lock, when its
// numbers are given.
func (m *module) write(qi int, op operation, off, n int64, data []byte, issued func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queues[qi]
	slots := m.o.WriteChunkSize / m.o.BlockSize
	ready := m.wait(func() bool {
		if m.stopped || q.finished {
			return true
		}
		if c := q.active; c != nil && (m.o.WriteChunkSize-c.data < n || slots-int64(c.records) < n/m.o.CollisionArea+2) {
			m.closeChunk(q)
		}
		if q.active == nil && len(q.free) > 0 {
			c := q.free[0]
			q.free = q.free[1:]
			*c = chunk{offset: c.offset, data: slots * recordSize}
			q.active = c
		}
		return q.active != nil
	})
	if !ready || m.stopped || q.finished {
		return errIO
	}
	c := q.active
	if op == opWrite {
		c.data += int64(copy(q.shm[c.offset+c.data:c.offset+m.o.WriteChunkSize], data))
	}
	for n > 0 {
		area := off / m.o.CollisionArea
		m.counters[area]++
		piece := min(n, (area+1)*m.o.CollisionArea-off)
		putRecord(q.shm[c.offset+int64(c.records)*recordSize:], op, off, piece, m.counters[area])
		c.records++
		c.spans = append(c.spans, [2]int64{off / m.o.BlockSize, (off + piece) / m.o.BlockSize})
		off, n = off+piece, n-piece
	}
	if issued != nil {
		issued()
	}
	return nil
}

func putRecord(p []byte, op operation, off, n int64, number uint32) {
	binary.LittleEndian.PutUint64(p, uint64(off/sectorSize))
	binary.LittleEndian.PutUint64(p[8:], uint64(n/sectorSize))
	binary.LittleEndian.PutUint64(p[16:], uint64(int64(int32(number)))) // the counter is an int
	binary.LittleEndian.PutUint64(p[24:], uint64(op))
}

// closeChunk queues the active chunk, under mu.
func (m *module) closeChunk(q *queue) {
	if q.active != nil && q.active.records > 0 {
		q.busy = append(q.busy, q.active)
		q.active = nil
		m.changed.Broadcast()
	}
}

// hold is a write of a user that the page cache keeps.
func (m *module) hold(off int64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = append(m.held, heldWrite{off, bytes.Clone(data)})
}

// writeBack is blockdev's: what the page cache holds goes to the device, which a
// mounted file system then flushes.
func (m *module) writeBack(string) error {
	m.mu.Lock()
	held := m.held
	m.held = nil
	m.mu.Unlock()
	for _, w := range held {
		if err := m.write(0, opWrite, w.off, int64(len(w.data)), w.data, nil); err != nil {
			return err
		}
	}
	return m.flush(nil)
}

// setScheduler is blockdev's. Without the library's option there is none to set.
func (m *module) setScheduler(_ string, on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if on && m.o.Scheduler {
		m.scheduler = "mq-deadline"
	}
	return nil
}

// flush is a request of a user. It is done when every queue has answered.
// begun is called, under the lock, before it is sent to any.
func (m *module) flush(begun func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped || m.dead {
		return errIO
	}
	if begun != nil {
		begun()
	}
	f := &flush{queues: len(m.queues)}
	m.flushes++
	for _, q := range m.queues {
		go func() {
			m.pause()
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.drained {
				return // it comes into a queue that nobody looks at any more
			}
			m.closeChunk(q)
			q.busy = append(q.busy, &chunk{flush: f})
			m.changed.Broadcast()
		}()
	}
	if !m.wait(func() bool { return f.queues == 0 }) {
		return errIO
	}
	m.flushes--
	m.changed.Broadcast()
	return nil
}

// read is a request of a user.
func (m *module) read(qi int, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped || m.dead {
		return errIO
	}
	r := &read{first: off / m.o.BlockSize, blocks: int64(len(p)) / m.o.BlockSize}
	for _, q := range m.queues {
		for _, c := range append(append([]*chunk(nil), q.busy...), q.fetched...) {
			r.dependsOn(c)
		}
		if q.active != nil && r.dependsOn(q.active) {
			m.closeChunk(q)
		}
	}
	q := m.queues[qi]
	ready := m.wait(func() bool {
		if r.chunks > 0 {
			return false
		}
		for i, used := range q.slots {
			if !used {
				r.slot = i
				return true
			}
		}
		return false
	})
	if !ready || q.finished {
		return errIO
	}
	q.slots[r.slot] = true
	q.reads = append(q.reads, r)
	m.changed.Broadcast()
	if !m.wait(func() bool { return r.done }) {
		return errIO
	}
	copy(p, q.rshm[int64(r.slot)*m.o.WriteChunkSize:])
	q.slots[r.slot] = false
	m.changed.Broadcast()
	return nil
}

// dependsOn has r wait for c if c writes what r reads.
func (r *read) dependsOn(c *chunk) bool {
	for _, span := range c.spans {
		if r.first < span[1] && span[0] < r.first+r.blocks {
			r.chunks++
			c.waiting = append(c.waiting, r)
			return true
		}
	}
	return false
}

// Run is the library's.
func (m *module) Run() {
	m.rw.BusePreRun()
	shown := filepath.Join(m.sys.block, name(int(m.o.Major)))
	_ = os.MkdirAll(shown, 0o700)                                        // a device that is not shown fails the
	_ = os.WriteFile(filepath.Join(shown, "size"), []byte("8\n"), 0o600) // test that looks for it
	var loops sync.WaitGroup
	for _, q := range m.queues {
		loops.Go(func() { m.writer(q) })
		loops.Go(func() { m.reader(q) })
	}
	loops.Wait()
	m.mu.Lock()
	dead := m.dead
	m.mu.Unlock()
	if dead {
		runtime.Goexit() // it does not return, since the process is gone
	}
}

// writer is the library's loop of a queue for writes.
func (m *module) writer(q *queue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if !m.wait(func() bool { return len(q.busy) > 0 }) {
			return
		}
		c := q.busy[0]
		q.busy = q.busy[1:]
		m.changed.Broadcast()
		switch {
		case c.end:
			m.wait(func() bool { return q.pending == 0 })
			return
		case c.flush != nil:
			if m.o.Durable && !m.wait(func() bool { return q.pending == 0 }) {
				return
			}
			c.flush.queues--
			m.changed.Broadcast()
		default:
			q.fetched = append(q.fetched, c)
			q.pending++
			go m.handOver(q, c)
		}
	}
}

// handOver is a goroutine of the library for one chunk.
func (m *module) handOver(q *queue, c *chunk) {
	m.pause()
	_ = m.rw.BuseWrite(int64(c.records), q.shm[c.offset:c.offset+m.o.WriteChunkSize]) // printed, and then as here
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return
	}
	for i, other := range q.fetched {
		if other == c {
			q.fetched = append(q.fetched[:i], q.fetched[i+1:]...)
			break
		}
	}
	for _, r := range c.waiting {
		r.chunks--
	}
	q.free = append(q.free, c)
	q.pending--
	m.changed.Broadcast()
}

// reader is the library's loop of a queue for reads.
func (m *module) reader(q *queue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if !m.wait(func() bool { return len(q.reads) > 0 }) {
			return
		}
		r := q.reads[0]
		q.reads = q.reads[1:]
		if r.end {
			m.wait(func() bool { return q.readers == 0 })
			return
		}
		q.readers++
		go func() {
			m.pause()
			at := int64(r.slot) * m.o.WriteChunkSize
			_ = m.rw.BuseRead(r.first, r.blocks, q.rshm[at:at+r.blocks*m.o.BlockSize])
			m.mu.Lock()
			defer m.mu.Unlock()
			r.done = true
			q.readers--
			m.changed.Broadcast()
		}()
	}
}

// StopDevice is the library's: the module hands over what it has and ends the
// queues.
func (m *module) StopDevice() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	m.changed.Broadcast()
	for _, q := range m.queues {
		if !m.wait(func() bool { return len(q.busy) == 0 }) {
			return errIO
		}
		m.closeChunk(q)
		q.busy = append(q.busy, &chunk{end: true})
		q.finished = true
		m.changed.Broadcast()
	}
	for _, q := range m.queues {
		idle := func() bool {
			for _, used := range q.slots {
				if used {
					return false
				}
			}
			return true
		}
		if !m.wait(idle) {
			return errIO
		}
		q.reads = append(q.reads, &read{end: true})
		m.changed.Broadcast()
	}
	return nil
}

// drain answers the flushes that came behind the end of a queue, as the module does
// when a device is removed. That is right if the device was stopped cleanly: by then
// all that it had was taken and flushed.
func (m *module) drain(q *queue) {
	for _, c := range q.busy {
		if c.flush != nil {
			c.flush.queues--
		}
	}
	q.busy = nil
	m.changed.Broadcast()
}

// RemoveDevice is the library's. It waits for all requests, and so for good for a
// flush that comes when the queues are drained.
func (m *module) RemoveDevice() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range m.queues {
		m.drain(q)
	}
	m.drained = true
	m.changed.Broadcast()
	if !m.wait(func() bool { return m.flushes == 0 }) {
		return errIO
	}
	m.removed = true
	err := errors.Join(os.RemoveAll(m.sys.directory(int(m.o.Major))), os.RemoveAll(filepath.Join(m.sys.block, name(int(m.o.Major)))))
	m.rw.BusePostRemove()
	return err
}

func (m *module) queueCount() int { return len(m.queues) }

// kill is the death of the daemon and of the machine.
func (m *module) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	m.changed.Broadcast()
}

// disk is the block device that a module shows, as a volume.
type disk struct {
	m    *module
	g    device.Geometry
	next func() int // the queue of the next request
}

func (d *disk) Geometry() device.Geometry { return d.g }

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.each(ctx, off, int64(len(p)), func(at, n int64) error {
		return d.m.read(d.next(), p[at:at+n], off+at)
	})
}

func (d *disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.each(ctx, off, int64(len(p)), func(at, n int64) error {
		return d.m.write(d.next(), opWrite, off+at, n, p[at:at+n], nil)
	})
}

func (d *disk) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.m.flush(nil)
}

func (d *disk) Discard(ctx context.Context, off, n int64) error {
	return d.each(ctx, off, n, func(at, n int64) error {
		return d.m.write(d.next(), opDiscard, off+at, n, nil, nil)
	})
}

func (d *disk) WriteZeroes(ctx context.Context, off, n int64) error {
	return d.each(ctx, off, n, func(at, n int64) error {
		return d.m.write(d.next(), opWriteZeroes, off+at, n, nil, nil)
	})
}

// each splits a request as the block layer does for this module.
func (d *disk) each(ctx context.Context, _, n int64, do func(at, n int64) error) error {
	most := d.m.o.WriteChunkSize - d.m.o.WriteChunkSize/d.m.o.BlockSize*recordSize
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
