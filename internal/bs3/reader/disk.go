package reader

import "bs3/internal/bs3/layout"

// Keep puts blocks that were written, and whose object the store has for good,
// into the caches. epoch is that of the object.
func (r *Reader) Keep(loc layout.Location, data []byte, epoch uint64) {
	r.cachePut(miss{loc: loc, dst: data, epoch: epoch})
}

// fromDisk fills what the disk cache has of the misses, and returns the rest.
func (r *Reader) fromDisk(misses []miss) (rest []miss) {
	var last miss // neighbours often lie in one object
	for _, m := range misses {
		if m.epoch = last.epoch; last.epoch == 0 || m.loc.Key() != last.loc.Key() {
			m.epoch = r.c.Memory.Epoch(m.loc.Key())
		}
		last = m
		if m.epoch == 0 { // collected meanwhile
			rest = append(rest, m)
			continue
		}
		r.c.Disk.Get(m.loc, m.epoch, m.dst, func(at, n int, found bool) {
			some := miss{m.loc.Add(uint32(at)), m.dst[at*r.c.BlockSize:][:n*r.c.BlockSize], m.epoch, m.ahead}
			if found {
				r.memoryPut(some)
			} else {
				rest = append(rest, some)
			}
		})
	}
	return rest
}

// cachePut puts blocks that were fetched, or could have been, into the caches:
// the durable key covers their object.
func (r *Reader) cachePut(m miss) {
	r.memoryPut(m)
	if r.c.Disk != nil && m.epoch > 0 {
		r.c.Disk.Put(m.loc, m.epoch, m.dst)
	}
}

func (r *Reader) memoryPut(m miss) {
	switch {
	case r.c.Cache == nil:
	case m.ahead:
		r.c.Cache.PutAhead(m.loc, m.dst)
	default:
		r.c.Cache.Put(m.loc, m.dst)
	}
}

// DiskStatus is the state of the read cache on the disk. Its JSON form is
// a contract.
type DiskStatus struct {
	Size    int64  `json:"size"` // bytes
	Hits    uint64 `json:"hits"` // blocks, since it was opened
	Misses  uint64 `json:"misses"`
	Dropped uint64 `json:"dropped"` // not kept, because the disk was too slow
	Failed  string `json:"failed,omitempty"`
}

// DiskStatus returns the state of the disk cache; nil without one.
func (r *Reader) DiskStatus() *DiskStatus {
	if r.c.Disk == nil {
		return nil
	}
	f := r.c.Disk.Stats()
	s := &DiskStatus{Size: f.Size, Hits: f.Hits, Misses: f.Misses, Dropped: f.Dropped}
	if f.Err != nil {
		s.Failed = f.Err.Error()
	}
	return s
}
