package rcache

import (
	"errors"
	"fmt"
	"os"
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
// A block belongs to one of two sets, together with its neighbours in the object. A
// new one takes the place of a dead one, whose number in the volume, which stands in the
// table too, lies elsewhere now. Where all live they replace each other in turn, but one
// that was read meanwhile is passed over once. A set, which is 1.3 MiB of blocks of
// 4 KiB, takes 56 bytes of memory.
//
// Get, Put and Lend are safe for concurrent use. One goroutine writes, from copies (Put)
// or from memory that it may lose (Lend). A reader learns from a set's generation that
// the set changed while it read.
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

	jobs      chan *diskJob
	free      chan []byte // a buffer, or nil, for each job that may still be queued
	loans     chan *Loan
	loan      atomic.Pointer[Loan] // the one that is being written from
	abandoned atomic.Bool          // no loan may be used any more
	stop      chan struct{}
	done      chan struct{}
	close     func() error // Close, once

	err                   atomic.Pointer[error] // the first error of the disk, which ends its use
	hits, misses, dropped atomic.Uint64         // blocks
	damaged               atomic.Uint64
	written               atomic.Uint64 // jobs, and parts of loans
}

const (
	// hangTime is how long a read of the disk may take. By then the store has
	// answered many times.
	hangTime = 2 * time.Second
	// mostReads bounds the reads of the disk at a time.
	mostReads = 128
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
	return newDisk(osFile{f}, head, where, report), nil
}

func newDisk(f diskFile, head layout.CacheHeader, where Where, report func(error)) *Disk {
	d := &Disk{
		file: f, head: head, sets: make([]diskSet, head.Sets), where: where, report: report, reads: make(chan *diskRead),
		jobs: make(chan *diskJob, mostJobs), free: make(chan []byte, mostJobs), loans: make(chan *Loan, mostJobs),
		stop: make(chan struct{}), done: make(chan struct{}),
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
// leaves the file to what hangs. Either way all loans end. The cache must not be used afterwards. Closing again
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
			d.abandon()
			d.mu.Lock()
			defer d.mu.Unlock()
			d.reportHang()
			return nil // nothing is lost
		}
		timeout.Reset(hangTime)
	}
}

// abandon ends all loans, although the writer hangs: it may still hang in a write from
// the last, whose memory only the kernel looks at then.
func (d *Disk) abandon() {
	d.abandoned.Store(true) // before the loan is looked at, see diskWriter.borrow
	if l := d.loan.Load(); l != nil {
		l.Revoke()
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

// Usable reports whether the disk has neither failed nor hangs.
func (d *Disk) Usable() bool { return d.err.Load() == nil && !d.hung.Load() }
