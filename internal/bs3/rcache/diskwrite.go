package rcache

import (
	"bs3/internal/bs3/layout"
	"encoding/binary"
	"fmt"
	"slices"
)

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
