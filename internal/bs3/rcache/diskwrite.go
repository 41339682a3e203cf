package rcache

import (
	"encoding/binary"
	"fmt"
	"slices"

	"bs3/internal/bs3/layout"
)

// mostJobs bounds the queue of copies, and that of loans. What exceeds it is dropped:
// nobody waits for this cache.
const mostJobs = 128

// diskJob is a run of blocks of one group to be written, or one block to be
// dropped.
type diskJob struct {
	loc    layout.Location
	epoch  uint32
	n      int                 // blocks
	blocks [groupBlocks]uint64 // their numbers in the volume
	checks [groupBlocks]uint32
	stored []byte // what is stored of them
	drop   bool   // the block at loc, from set
	set    uint64
}

// fill makes j a job to write blocks.
func (j *diskJob) fill(loc layout.Location, epoch uint32, blocks []uint64, stored []byte, stride int) {
	j.loc, j.epoch, j.n, j.stored = loc, epoch, len(blocks), stored
	copy(j.blocks[:], blocks)
	for i := range blocks {
		j.checks[i] = binary.LittleEndian.Uint32(stored[(i+1)*stride-4:])
	}
}

// Put stores copies of the given blocks of the volume, as stored (layout.Stride), which
// lie at loc and after it in an object of the given epoch that the durable key covers.
// layout.NoBlock stands for one that is not to be stored. They are queued to be written, or
// dropped if the queue is full.
func (d *Disk) Put(loc layout.Location, epoch uint64, blocks []uint64, stored []byte) {
	stride := layout.Stride(int(d.head.BlockSize))
	groups(loc, len(blocks), func(at, n int) {
		if !d.Usable() {
			return
		}
		select {
		case buf := <-d.free:
			if buf == nil {
				buf = make([]byte, groupBlocks*stride)
			}
			buf = buf[:copy(buf, stored[at*stride:][:n*stride])]
			j := new(diskJob)
			j.fill(loc.Add(uint32(at)), uint32(epoch), blocks[at:][:n], buf, stride)
			d.jobs <- j
		default:
			d.drops(loc.Add(uint32(at)), blocks[at:][:n])
		}
	})
}

// Lend is Put without a copy: the blocks are written from stored when the disk comes to
// them. If that ends the loan, rather than Loan.Revoke, back is called, once, by a
// goroutine that holds no lock. stored must not change until the loan ends, blocks never. A
// nil Loan means that nothing was lent. Lend does not wait.
func (d *Disk) Lend(loc layout.Location, epoch uint64, blocks []uint64, stored []byte, back func()) *Loan {
	if !d.Usable() {
		return nil
	}
	l := &Loan{loc: loc, epoch: uint32(epoch), blocks: blocks, stored: stored, back: back}
	select {
	case d.loans <- l:
		return l
	default:
		d.drops(loc, blocks)
		return nil
	}
}

// drops counts blocks that are dropped although they live.
func (d *Disk) drops(loc layout.Location, blocks []uint64) {
	for i, b := range blocks {
		if b != layout.NoBlock && !d.where.dead(b, loc.Add(uint32(i))) {
			d.dropped.Add(1)
		}
	}
}

// drop queues a block to be taken out of a set, unless the queue is full.
func (d *Disk) drop(set uint64, loc layout.Location, epoch uint32) {
	select {
	case buf := <-d.free:
		d.jobs <- &diskJob{loc: loc, epoch: epoch, n: 1, stored: buf[:0], drop: true, set: set}
	default:
	}
}

// writer writes what is queued, until Close.
func (d *Disk) writer() {
	defer close(d.done)
	w := &diskWriter{Disk: d}
	for {
		select {
		case j := <-d.jobs:
			w.job(j)
		case l := <-d.loans:
			w.borrow(l)
		case <-d.stop:
			for len(d.jobs) > 0 {
				w.job(<-d.jobs)
			}
			for len(d.loans) > 0 {
				w.borrow(<-d.loans)
			}
			return
		}
	}
}

// diskWriter is the goroutine that writes.
type diskWriter struct {
	*Disk
	tables [2]diskTable
	wanted []int    // blocks of a job that are to be written
	places []int    // where to
	pieces [][]byte // of one write
}

// job does a job from the queue.
func (w *diskWriter) job(j *diskJob) {
	w.do(j)
	w.free <- j.stored[:cap(j.stored)]
}

// borrow writes from memory that was lent, for as long as it is.
func (w *diskWriter) borrow(l *Loan) {
	w.loan.Store(l)
	defer l.end()
	defer w.loan.Store(nil)
	if w.abandoned.Load() {
		l.Revoke()
	}
	j := new(diskJob)
	groups(l.loc, len(l.blocks), func(at, n int) {
		if l.use(j, at, n, layout.Stride(int(w.head.BlockSize))) {
			w.do(j)
			l.used()
		} else {
			w.drops(l.loc.Add(uint32(at)), l.blocks[at:][:n])
		}
	})
}

// do does a job, if the disk is used.
func (w *diskWriter) do(j *diskJob) {
	if w.Usable() && !w.abandoned.Load() {
		if err := w.write(j); err != nil && !w.abandoned.Load() { // or its memory may be gone
			w.failed(err)
		}
	}
	w.written.Add(1)
}

// write puts those blocks of j that live into one of their sets, unless they are there. The
// second set is looked at only if the first has no room: a block may come to lie in both.
func (w *diskWriter) write(j *diskJob) error {
	if j.drop {
		return w.takeOut(j)
	}
	w.wanted = w.wanted[:0]
	for i := range j.n {
		if loc := j.loc.Add(uint32(i)); j.blocks[i] != layout.NoBlock && !w.where.dead(j.blocks[i], loc) {
			w.wanted = append(w.wanted, i)
		}
	}
	if len(w.wanted) == 0 {
		return nil
	}
	sets := w.setsOf(j.loc)
	t, set := &w.tables[0], sets[0]
	if err := w.look(t, set, j); err != nil || len(w.wanted) == 0 {
		return err
	}
	w.places = t.vacant(w.where, len(w.wanted), w.places[:0])
	if vacant := len(w.places); vacant < len(w.wanted) && sets[1] != set {
		other := &w.tables[1]
		if err := w.look(other, sets[1], j); err != nil || len(w.wanted) == 0 {
			return err
		}
		if places := other.vacant(w.where, len(w.wanted), nil); len(places) > vacant {
			t, set, w.places = other, sets[1], places
		}
	}
	w.places = w.places[:min(len(w.places), len(w.wanted))]
	return w.fill(t, set, j)
}

// look loads the table of a set, and takes what is there from what is wanted.
func (w *diskWriter) look(t *diskTable, set uint64, j *diskJob) error {
	if err := w.load(t, set); err != nil {
		return err
	}
	t.find(j.loc, j.epoch, j.n)
	w.wanted = slices.DeleteFunc(w.wanted, func(i int) bool { return t.places[i] >= 0 })
	return nil
}

// fill writes the wanted blocks of j to the vacant places of a set, and to more.
func (w *diskWriter) fill(t *diskTable, set uint64, j *diskJob) error {
	s := &w.sets[set]
	if n := len(w.wanted); len(w.places) < n {
		w.places = t.displace(&s.read, n, w.places)
		slices.Sort(w.places)
	} else {
		t.table.Hand = uint32(w.places[n-1]+1) % layout.CacheSetBlocks
	}
	bs := int(w.head.BlockSize)
	s.generation.Add(1)
	defer s.generation.Add(1)
	for i := 0; i < len(w.wanted); {
		// Neighbours get places side by side as far as possible, to be read and written
		// together.
		from := i
		w.pieces = w.pieces[:0]
		for ; i < len(w.wanted) && w.places[i] == w.places[from]+i-from; i++ {
			block, place := w.wanted[i], w.places[i]
			w.pieces = append(w.pieces, j.stored[block*layout.Stride(bs):][:bs])
			t.table.Entries[place] = layout.CacheEntry{Loc: j.loc.Add(uint32(block)), Block: j.blocks[block], Epoch: j.epoch, Check: j.checks[block]}
			s.read.clear(place)
		}
		if err := w.file.WritePieces(w.pieces, w.blockOffset(set, w.places[from])); err != nil {
			return fmt.Errorf("write the disk cache: %w", err)
		}
	}
	return w.store(t, set)
}

// takeOut takes the block of j out of its set.
func (w *diskWriter) takeOut(j *diskJob) error {
	t, s := &w.tables[0], &w.sets[j.set]
	if err := w.load(t, j.set); err != nil {
		return err
	}
	if t.find(j.loc, j.epoch, 1); t.places[0] < 0 {
		return nil
	}
	s.generation.Add(1)
	defer s.generation.Add(1)
	t.table.Entries[t.places[0]] = layout.CacheEntry{}
	return w.store(t, j.set)
}

// store writes the table of a set.
func (w *diskWriter) store(t *diskTable, set uint64) error {
	t.table.Encode(t.page[:])
	if err := w.file.WritePieces([][]byte{t.page[:]}, w.offset(set)); err != nil {
		return fmt.Errorf("write the disk cache: %w", err)
	}
	return nil
}
