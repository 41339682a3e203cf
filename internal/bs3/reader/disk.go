package reader

import (
	"context"
	"slices"
	"sync"

	"bs3/internal/bs3/layout"
)

// fromDisk fills what the disk cache has of the misses, and returns the rest.
func (r *Reader) fromDisk(misses []miss) (rest []miss) {
	if r.c.Disk == nil {
		return misses
	}
	var last miss // neighbours often lie in one object
	for _, m := range misses {
		if m.epoch = last.epoch; last.epoch == 0 || m.loc.Key() != last.loc.Key() {
			m.epoch = r.c.Memory.Object(m.loc.Key()).Epoch
		}
		last = m
		if m.epoch == 0 { // collected meanwhile
			rest = append(rest, m)
			continue
		}
		rest = r.fromDiskRun(m, rest)
	}
	return rest
}

// diskAtOnce is how many reads of the disk cache are made at a time for a window.
const diskAtOnce = 16

// manyFromDisk is fromDisk for many misses, until ctx ends.
func (r *Reader) manyFromDisk(ctx context.Context, misses []miss) (rest []miss) {
	if r.c.Disk == nil || len(misses) == 0 {
		return misses
	}
	var rests [diskAtOnce][]miss
	var reads sync.WaitGroup
	i := 0
	for some := range slices.Chunk(misses, (len(misses)+diskAtOnce-1)/diskAtOnce) {
		part := &rests[i]
		reads.Go(func() {
			for few := range slices.Chunk(some, diskAtOnce) {
				if ctx.Err() == nil {
					few = r.fromDisk(few)
				}
				*part = append(*part, few...)
			}
		})
		i++
	}
	reads.Wait()
	return slices.Concat(rests[:]...)
}

// fromDiskRun is fromDisk for one miss; it appends to rest.
func (r *Reader) fromDiskRun(m miss, rest []miss) []miss {
	dst := m.dst
	if dst == nil {
		buf := r.buffers.get(m.n)
		defer r.buffers.put(buf)
		dst = (*buf)[:int(m.n)*r.c.BlockSize]
	}
	r.c.Disk.Get(m.loc, m.epoch, dst, func(at, n int, found bool) {
		some := m.part(uint32(at), uint32(n), r.c.BlockSize)
		if found {
			r.memoryPut(some, dst[at*r.c.BlockSize:][:n*r.c.BlockSize], r.c.BlockSize)
		} else {
			rest = append(rest, some)
		}
	})
	return rest
}

// diskPut puts blocks that were fetched, or could have been, into the cache on the
// disk: the durable key covers their object.
func (r *Reader) diskPut(loc layout.Location, epoch uint64, blocks []uint64, stored []byte) {
	if r.c.Disk != nil && epoch > 0 {
		r.c.Disk.Put(loc, epoch, blocks, stored)
	}
}

// memoryPut puts blocks, of which one begins every stride bytes of data, into the
// cache in memory.
func (r *Reader) memoryPut(m miss, data []byte, stride int) {
	var few [takeBlocks]uint64
	switch {
	case r.c.Cache == nil:
	case m.ahead:
		r.c.Cache.PutAhead(m.loc, m.blocks(few[:0]), data, stride)
	default:
		r.c.Cache.Put(m.loc, m.blocks(few[:0]), data, stride)
	}
}

// DiskStatus is the state of the read cache on the disk. Its JSON form is
// a contract.
type DiskStatus struct {
	Size    int64  `json:"size"` // bytes
	Hits    uint64 `json:"hits"` // blocks, since it was opened
	Misses  uint64 `json:"misses"`
	Dropped uint64 `json:"dropped"` // not kept, because the disk was too slow
	Damaged uint64 `json:"damaged"` // did not match their check values, and were dropped
	Failed  string `json:"failed,omitempty"`
}

// DiskStatus returns the state of the disk cache; nil without one.
func (r *Reader) DiskStatus() *DiskStatus {
	if r.c.Disk == nil {
		return nil
	}
	f := r.c.Disk.Stats()
	s := &DiskStatus{Size: f.Size, Hits: f.Hits, Misses: f.Misses, Dropped: f.Dropped, Damaged: f.Damaged}
	if f.Err != nil {
		s.Failed = f.Err.Error()
	}
	return s
}
