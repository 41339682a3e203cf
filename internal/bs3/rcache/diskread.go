package rcache

import (
	"bs3/internal/bs3/layout"
	"fmt"
	"slices"
	"time"
)

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
