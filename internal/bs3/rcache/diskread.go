package rcache

import (
	"fmt"
	"slices"
	"time"

	"bs3/internal/bs3/layout"
)

// diskRead is a read of a group.
type diskRead struct {
	diskTable
	loc      layout.Location
	epoch    uint32
	n        int    // blocks
	data     []byte // of the blocks
	has      [groupBlocks]bool
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
	r.loc, r.epoch, r.n, r.data, r.returned = loc, epoch, n, slices.Grow(r.data[:0], size)[:size], false
	clear(r.has[:])
	return r
}

// release takes back a read that has returned, or was never started.
func (d *Disk) release(r *diskRead) {
	r.timeout.Stop()
	d.pool.Put(r)
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
		for i := 0; i < n; {
			from, has := i, r.has[i]
			for i < n && r.has[i] == has {
				i++
			}
			if has {
				copy(dst[(first+from)*bs:], r.data[from*bs:i*bs])
				d.hits.Add(uint64(i - from))
			} else {
				d.misses.Add(uint64(i - from))
			}
			run(first+from, i-from, has)
		}
	})
}

// read reads n blocks of one group. It returns nil if the disk is not used, or does
// not answer in time.
func (d *Disk) read(loc layout.Location, epoch uint32, n int) *diskRead {
	if !d.Usable() {
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
		d.readGroup(r)
		d.returned(r)
		r.done <- struct{}{} // r may be another's from here on
		select {
		case r = <-d.reads:
		case <-d.stop:
			return
		}
	}
}

// readGroup reads what there is of the blocks of r; r.has tells which.
func (d *Disk) readGroup(r *diskRead) {
	sets := d.setsOf(r.loc)
	if d.readSet(r, sets[0]) && sets[1] != sets[0] {
		d.readSet(r, sets[1])
	}
}

// readSet is readGroup of one set, for the blocks that r does not have yet. It reports
// whether some are still missing, and the disk can be asked for them.
func (d *Disk) readSet(r *diskRead, set uint64) (more bool) {
	s := &d.sets[set]
	generation := s.generation.Load()
	if d.err.Load() != nil {
		return false
	}
	if generation%2 == 1 {
		return true
	}
	if err := d.load(&r.diskTable, set); err != nil {
		d.failed(err)
		return false
	}
	r.find(r.loc, r.epoch, r.n)
	bs := int(d.head.BlockSize)
	for i := 0; i < r.n; {
		if r.has[i] {
			r.places[i] = -1
		}
		if r.places[i] < 0 {
			i++
			continue
		}
		run := 1
		for i+run < r.n && !r.has[i+run] && r.places[i+run] == r.places[i]+run {
			run++
		}
		if _, err := d.file.ReadAt(r.data[i*bs:][:run*bs], d.blockOffset(set, r.places[i])); err != nil {
			d.failed(fmt.Errorf("read the disk cache: %w", err))
			return false
		}
		i += run
	}
	return d.verify(r, set, generation)
}

// verify takes those of the blocks of r that were read from a set and match their check
// values, and drops the others from the set. It takes none if the set was written since
// it had the given generation. It reports whether some are still missing.
func (d *Disk) verify(r *diskRead, set uint64, generation uint32) (missing bool) {
	bs := int(d.head.BlockSize)
	checks := layout.NewChecks(d.head.UUID, r.loc.Key())
	var good, bad [groupBlocks]bool
	for i := range r.n {
		place := r.places[i]
		if place < 0 {
			continue
		}
		good[i] = checks.Value(r.loc.Index()+uint32(i), layout.CRC(r.data[i*bs:][:bs])) == r.table.Entries[place].Check
		bad[i] = !good[i]
	}
	s := &d.sets[set]
	if s.generation.Load() != generation {
		return true
	}
	for i := range r.n {
		switch {
		case good[i]:
			r.has[i] = true
			s.read.set(r.places[i])
		case bad[i]:
			d.damaged.Add(1)
			d.drop(set, r.loc.Add(uint32(i)), r.epoch)
		}
		missing = missing || !r.has[i]
	}
	return missing
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
