package rcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/layout"
)

// Disk is a read cache in a file: blocks of objects that the durable key
// covers, by location and epoch of the object. It outlives the process, and
// nothing in it is trusted: each block is checked against its check value, which
// stands in the table of its set, and each table against its own checksum. A
// block that does not match is dropped. Nothing is ever synced.
//
// A block belongs to a set, together with its neighbours in the object. The
// blocks of a set replace each other in turn, but one that was read meanwhile is
// passed over once. A set, which is 1 MiB of blocks of 4 KiB, takes 40 bytes of
// memory.
//
// Get and Put are safe for concurrent use. One goroutine writes. A reader learns
// from a set's generation that the set changed while it read.
//
// A disk may hang: a read of it does not return, and nothing can end it. So goroutines
// of the cache read, into memory of their own, and Get does not wait longer than
// hangTime. Then the cache is not used until all reads have returned. There are at most
// mostReads of these goroutines, which stay until Close, and the writer.
type Disk struct {
	file   diskFile
	head   layout.CacheHeader
	sets   []diskSet
	where  Where
	report func(error)

	pool    sync.Pool      // of *diskRead
	reads   chan *diskRead // to a reader that has nothing to do
	readers sync.WaitGroup
	mu      sync.Mutex
	// started counts the readers, running those that read; hungSince is when one was
	// found that hangs, zero if none does.
	started   int
	running   int
	hungSince time.Time
	hung      atomic.Bool // hungSince is not zero

	jobs  chan diskJob
	free  chan []byte // a buffer, or nil, for each job that may still be queued
	stop  chan struct{}
	done  chan struct{}
	close func() error // Close, once

	err                   atomic.Pointer[error] // the first error of the disk, which ends its use
	hits, misses, dropped atomic.Uint64         // blocks
	damaged               atomic.Uint64
	written               atomic.Uint64 // jobs
}

// diskFile is the file of a Disk.
type diskFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

type diskSet struct {
	generation atomic.Uint32    // odd while the set is being written
	read       [4]atomic.Uint64 // a bit for each place that was read since the hand passed it
}

// diskJob is a run of blocks of one group to be written, or one block to be
// dropped.
type diskJob struct {
	loc    layout.Location
	epoch  uint32
	data   []byte // part of a buffer from free
	checks [groupBlocks]uint32
	drop   bool // without data
}

const (
	// groupBlocks is how many neighbouring blocks of an object share a set.
	groupBlocks = 64
	// hangTime is how long a read of the disk may take. By then the store has
	// answered many times.
	hangTime = 2 * time.Second
	// mostReads bounds the reads of the disk at a time.
	mostReads = 128
	// mostJobs bounds the queue of jobs. What exceeds it is dropped: nobody waits
	// for this cache.
	mostJobs = 128
	// setMultiplier spreads groups over sets (docs/FORMAT.md): 2^64 divided by the
	// golden ratio.
	setMultiplier = 0x9E3779B97F4A7C15
)

// OpenDisk opens the cache in the file path. If that is not a cache of this
// volume, block size and size in bytes, it is created anew. where finds what is dead.
//
// When the disk fails later, report is called with the error, and the cache is not
// used any more. When the disk hangs, it is called with ErrHangs, and with nil when
// the disk answers again and the cache is used again. Calls do not overlap.
func OpenDisk(path string, uuid layout.UUID, blockSize int, bytes int64, where Where, report func(error)) (*Disk, error) {
	head := layout.CacheHeader{UUID: uuid, BlockSize: uint32(blockSize)}
	head.Sets = uint64(max(0, bytes-layout.CacheHeaderSize) / head.SetSize())
	if head.Sets == 0 || head.Sets > layout.MaxCacheSets {
		return nil, fmt.Errorf("a disk cache of %d bytes has no room for a set of %d bytes", bytes, head.SetSize())
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the disk cache: %w", err)
	}
	if !isCache(f, head) {
		if err := makeCache(f, head); err != nil {
			return nil, errors.Join(fmt.Errorf("create the disk cache %s of %d MiB: %w", path, head.FileSize()>>20, err), f.Close(), os.Remove(path))
		}
	}
	return newDisk(f, head, where, report), nil
}

func newDisk(f diskFile, head layout.CacheHeader, where Where, report func(error)) *Disk {
	d := &Disk{
		file: f, head: head, sets: make([]diskSet, head.Sets), where: where, report: report, reads: make(chan *diskRead),
		jobs: make(chan diskJob, mostJobs), free: make(chan []byte, mostJobs), stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range mostJobs {
		d.free <- nil
	}
	d.close = sync.OnceValue(d.shut)
	go d.writer()
	return d
}

// isCache reports whether f is the cache that head describes.
func isCache(f *os.File, head layout.CacheHeader) bool {
	b := make([]byte, layout.CacheHeaderSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return false
	}
	h, err := layout.DecodeCacheHeader(b)
	if err != nil || *h != head {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Size() == head.FileSize()
}

// makeCache makes f an empty cache. It allocates the space now if the file
// system can do that.
func makeCache(f *os.File, head layout.CacheHeader) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, head.FileSize())
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(head.FileSize())
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(layout.AppendCacheHeader(nil, &head), 0)
	return err
}

// Close writes what is still queued and closes the file. If the disk hangs, it
// leaves the file to what hangs. The cache must not be used afterwards. Closing again
// has no effect.
func (d *Disk) Close() error {
	if err := d.close(); err != nil {
		return fmt.Errorf("close the disk cache: %w", err)
	}
	return nil
}

// shut is Close, once.
func (d *Disk) shut() error {
	close(d.stop)
	closed := make(chan error, 1)
	go func() { // ends when the disk answers, or with the process
		<-d.done
		d.readers.Wait()
		closed <- d.file.Close()
	}()
	timeout := time.NewTimer(hangTime)
	defer timeout.Stop()
	for {
		progress := d.written.Load()
		select {
		case err := <-closed:
			return err
		case <-timeout.C:
		}
		if d.written.Load() == progress {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.reportHang()
			return nil // nothing is lost
		}
		timeout.Reset(hangTime)
	}
}

// DiskStats are figures of a Disk since it was opened.
type DiskStats struct {
	Size                  int64  // bytes
	Hits, Misses, Dropped uint64 // blocks: found, not found, not stored because the disk was too slow
	Damaged               uint64 // blocks that did not match their check values
	Err                   error  // why the cache is not used
}

// Stats returns the current figures.
func (d *Disk) Stats() DiskStats {
	s := DiskStats{Size: d.head.FileSize(), Hits: d.hits.Load(), Misses: d.misses.Load(), Dropped: d.dropped.Load(), Damaged: d.damaged.Load()}
	if err := d.err.Load(); err != nil {
		s.Err = *err
		return s
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.hungSince.IsZero() {
		s.Err = fmt.Errorf("%w since %s", ErrHangs, d.hungSince.Format(time.RFC3339))
	}
	return s
}

// ErrHangs says that the disk has not answered a request for a while.
var ErrHangs = errors.New("the disk does not answer")

// failed ends the use of the disk.
func (d *Disk) failed(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err.CompareAndSwap(nil, &err) {
		d.report(err)
	}
}

// usable reports whether the disk may be asked.
func (d *Disk) usable() bool { return d.err.Load() == nil && !d.hung.Load() }

// setOf returns the set of a block.
func (d *Disk) setOf(loc layout.Location) uint64 {
	hash, _ := bits.Mul64(uint64(loc)/groupBlocks*setMultiplier, d.head.Sets)
	return hash
}

func (d *Disk) offset(set uint64) int64 {
	return layout.CacheHeaderSize + int64(set)*d.head.SetSize()
}

// blockOffset returns the offset in the file of the block in a place of a set.
func (d *Disk) blockOffset(set uint64, place int) int64 {
	return d.offset(set) + layout.CacheSetSize + int64(place)*int64(d.head.BlockSize)
}

// groups calls f for each part of the n blocks from loc that shares a set.
func groups(loc layout.Location, n int, f func(at, n int)) {
	for at := 0; at < n; {
		some := min(n-at, groupBlocks-int(uint64(loc.Add(uint32(at)))%groupBlocks))
		f(at, some)
		at += some
	}
}

// diskTable is the memory for one access to a set.
type diskTable struct {
	page   [layout.CacheSetSize]byte
	set    layout.CacheSet
	places [groupBlocks]int // of the requested blocks; -1: not there
}

// diskRead is a read of a group.
type diskRead struct {
	diskTable
	loc      layout.Location
	epoch    uint32
	data     []byte // of the requested blocks
	found    int
	returned bool          // under Disk.mu
	done     chan struct{} // holds something when it has returned
	timeout  *time.Timer
}

// newRead returns a read of n blocks.
func (d *Disk) newRead(loc layout.Location, epoch uint32, n int) *diskRead {
	r, again := d.pool.Get().(*diskRead)
	if !again {
		r = &diskRead{done: make(chan struct{}, 1), timeout: time.NewTimer(hangTime)}
	}
	size := n * int(d.head.BlockSize)
	r.loc, r.epoch, r.data, r.returned = loc, epoch, slices.Grow(r.data[:0], size)[:size], false
	return r
}

// release takes back a read that has returned, or was never started.
func (d *Disk) release(r *diskRead) {
	r.timeout.Stop()
	d.pool.Put(r)
}

// load reads the table of a set. A table that does not verify counts as empty.
func (d *Disk) load(t *diskTable, set uint64) error {
	if _, err := d.file.ReadAt(t.page[:], d.offset(set)); err != nil {
		return fmt.Errorf("read the disk cache: %w", err)
	}
	if t.set.Decode(t.page[:]) != nil {
		t.set = layout.CacheSet{}
	}
	return nil
}

// find sets t.places for the n blocks from loc.
func (t *diskTable) find(loc layout.Location, epoch uint32, n int) {
	for i := range n {
		t.places[i] = -1
	}
	for place, e := range t.set.Entries {
		if at := uint64(e.Loc - loc); e.Loc >= loc && at < uint64(n) && e.Epoch == epoch {
			t.places[at] = place
		}
	}
}

// Get fills dst with the blocks at loc and after it, in an object of the given
// epoch, as far as the cache has them. It calls run, in order, for each run of n
// blocks, from block at of dst, that were all found or all not found. The bytes
// of those not found are undefined.
func (d *Disk) Get(loc layout.Location, epoch uint64, dst []byte, run func(at, n int, found bool)) {
	bs := int(d.head.BlockSize)
	groups(loc, len(dst)/bs, func(first, n int) {
		r := d.read(loc.Add(uint32(first)), uint32(epoch), n)
		if r == nil {
			d.misses.Add(uint64(n))
			run(first, n, false)
			return
		}
		defer d.release(r)
		d.hits.Add(uint64(r.found))
		d.misses.Add(uint64(n - r.found))
		for i := 0; i < n; {
			from, has := i, r.places[i] >= 0
			for i < n && r.places[i] >= 0 == has {
				i++
			}
			if has {
				copy(dst[(first+from)*bs:], r.data[from*bs:i*bs])
			}
			run(first+from, i-from, has)
		}
	})
}

// read reads n blocks of one group. It returns nil if the disk is not used, or does
// not answer in time.
func (d *Disk) read(loc layout.Location, epoch uint32, n int) *diskRead {
	if !d.usable() {
		return nil
	}
	r := d.newRead(loc, epoch, n)
	if !d.start(r) {
		d.release(r)
		return nil
	}
	r.timeout.Reset(hangTime)
	select {
	case <-r.done:
		return r
	case <-r.timeout.C:
	}
	if !d.hangs(r) {
		<-r.done
		return r
	}
	return nil // r is lost to the goroutine that reads into it
}

// start gives r to a reader. It reports false if none becomes free for so long that the
// disk is as good as hanging. Whether it hangs, those that the readers read for find out.
func (d *Disk) start(r *diskRead) bool {
	select {
	case d.reads <- r:
		return true
	default:
	}
	d.mu.Lock()
	more := d.started < mostReads
	if more {
		d.started++
	}
	d.mu.Unlock()
	if more {
		d.readers.Go(func() { d.reader(r) })
		return true
	}
	r.timeout.Reset(hangTime)
	select {
	case d.reads <- r:
		return true
	case <-r.timeout.C:
		return false
	}
}

// reader reads r, and then what else there is, until Close.
func (d *Disk) reader(r *diskRead) {
	for {
		d.mu.Lock()
		d.running++
		d.mu.Unlock()
		r.found = d.readGroup(&r.diskTable, r.loc, r.epoch, r.data)
		d.returned(r)
		r.done <- struct{}{} // r may be another's from here on
		select {
		case r = <-d.reads:
		case <-d.stop:
			return
		}
	}
}

// hangs ends the use of the disk for as long as r, among others, does not return.
// It reports false if r has returned.
func (d *Disk) hangs(r *diskRead) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.returned {
		return false
	}
	d.reportHang()
	return true
}

// reportHang is for d.mu.
func (d *Disk) reportHang() {
	if d.hungSince.IsZero() {
		d.hungSince = time.Now()
		d.hung.Store(true)
		d.report(ErrHangs)
	}
}

// returned counts the end of r. If it was the last one, a disk that hung is used
// again.
func (d *Disk) returned(r *diskRead) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.returned = true
	d.running--
	if d.running == 0 && !d.hungSince.IsZero() {
		d.hungSince = time.Time{}
		d.hung.Store(false)
		if d.err.Load() == nil {
			d.report(nil)
		}
	}
}

// readGroup fills dst with blocks of one group and returns how many it found;
// t.places tells which.
func (d *Disk) readGroup(t *diskTable, loc layout.Location, epoch uint32, dst []byte) (found int) {
	bs := int(d.head.BlockSize)
	n := len(dst) / bs
	checks := layout.NewChecks(d.head.UUID, loc.Key())
	var bad []layout.Location
	none := func() int {
		for i := range n {
			t.places[i] = -1
		}
		return 0
	}
	set := d.setOf(loc)
	s := &d.sets[set]
	generation := s.generation.Load()
	if d.err.Load() != nil || generation%2 == 1 {
		return none()
	}
	if err := d.load(t, set); err != nil {
		d.failed(err)
		return none()
	}
	t.find(loc, epoch, n)
	for i := 0; i < n; {
		if t.places[i] < 0 {
			i++
			continue
		}
		run := 1
		for i+run < n && t.places[i+run] == t.places[i]+run {
			run++
		}
		if _, err := d.file.ReadAt(dst[i*bs:][:run*bs], d.blockOffset(set, t.places[i])); err != nil {
			d.failed(fmt.Errorf("read the disk cache: %w", err))
			return none()
		}
		for end := i + run; i < end; i++ {
			place := t.places[i]
			if checks.Value(loc.Index()+uint32(i), layout.CRC(dst[i*bs:][:bs])) != t.set.Entries[place].Check {
				t.places[i] = -1
				bad = append(bad, loc.Add(uint32(i)))
				continue
			}
			s.read[place/64].Or(1 << (place % 64))
			found++
		}
	}
	if s.generation.Load() != generation {
		return none()
	}
	for _, l := range bad {
		d.damaged.Add(1)
		d.enqueue(diskJob{loc: l, epoch: epoch, drop: true})
	}
	return found
}

// enqueue gives j, without data, to the writer, unless the queue is full.
func (d *Disk) enqueue(j diskJob) {
	select {
	case j.data = <-d.free:
		j.data = j.data[:0]
		d.jobs <- j
	default:
	}
}

// Put stores copies of the given blocks of the volume, as stored (layout.Stride), which
// lie at loc and after it in an object of the given epoch that the durable key covers. It queues them
// to be written, or drops them if the queue is full.
func (d *Disk) Put(loc layout.Location, epoch uint64, blocks []uint64, stored []byte) {
	bs := int(d.head.BlockSize)
	stride := layout.Stride(bs)
	groups(loc, len(blocks), func(at, n int) {
		if !d.usable() {
			return
		}
		select {
		case buf := <-d.free:
			if buf == nil {
				buf = make([]byte, groupBlocks*bs)
			}
			j := diskJob{loc: loc.Add(uint32(at)), epoch: uint32(epoch), data: buf[:n*bs]}
			some := stored[at*stride:][:n*stride]
			layout.CopyBlocks(j.data, some, bs)
			for i := range n {
				j.checks[i] = binary.LittleEndian.Uint32(some[i*stride+bs:])
			}
			d.jobs <- j
		default:
			d.dropped.Add(uint64(n))
		}
	})
}

// writer writes the queued jobs, until Close.
func (d *Disk) writer() {
	defer close(d.done)
	t := new(diskTable)
	write := func(j diskJob) {
		if d.usable() {
			if err := d.write(t, j); err != nil {
				d.failed(err)
			}
		}
		d.written.Add(1)
		d.free <- j.data[:cap(j.data)]
	}
	for {
		select {
		case j := <-d.jobs:
			write(j)
		case <-d.stop:
			for len(d.jobs) > 0 {
				write(<-d.jobs)
			}
			return
		}
	}
}

// write puts the blocks of j that are not there yet into their set.
func (d *Disk) write(t *diskTable, j diskJob) error {
	bs := int(d.head.BlockSize)
	n := len(j.data) / bs
	set := d.setOf(j.loc)
	s := &d.sets[set]
	if err := d.load(t, set); err != nil {
		return err
	}
	if j.drop {
		n = 1
	}
	t.find(j.loc, j.epoch, n)
	if slices.Contains(t.places[:n], -1) == j.drop {
		return nil
	}
	s.generation.Add(1)
	defer s.generation.Add(1)
	if j.drop {
		t.set.Entries[t.places[0]] = layout.CacheEntry{}
	}
	for i := 0; i < n; {
		if t.places[i] >= 0 { // it is there, or was dropped
			i++
			continue
		}
		// Neighbours get places side by side, to be read and written together.
		place, run := d.turn(s, &t.set), 1
		for i+run < n && t.places[i+run] < 0 && int(t.set.Hand) == place+run && s.read[t.set.Hand/64].Load()>>(t.set.Hand%64)&1 == 0 {
			d.turn(s, &t.set)
			run++
		}
		if _, err := d.file.WriteAt(j.data[i*bs:][:run*bs], d.blockOffset(set, place)); err != nil {
			return fmt.Errorf("write the disk cache: %w", err)
		}
		for end := i + run; i < end; i++ {
			t.set.Entries[place] = layout.CacheEntry{Loc: j.loc.Add(uint32(i)), Epoch: j.epoch, Check: j.checks[i]}
			place++
		}
	}
	t.set.Encode(t.page[:])
	if _, err := d.file.WriteAt(t.page[:], d.offset(set)); err != nil {
		return fmt.Errorf("write the disk cache: %w", err)
	}
	return nil
}

// turn returns the place to be filled next and moves the hand on. It passes over
// a place that was read since the hand passed it, once.
func (d *Disk) turn(s *diskSet, set *layout.CacheSet) int {
	for {
		place := int(set.Hand)
		set.Hand = (set.Hand + 1) % layout.CacheSetBlocks
		mask := uint64(1) << (place % 64)
		if s.read[place/64].And(^mask)&mask == 0 {
			return place
		}
	}
}
