package bs3

import (
	"path/filepath"

	"bs3/internal/bs3/rcache"
)

const diskCacheFile = "cache"

// openDisk opens the read cache on the disk. Without one that works reads are
// slower, and nothing else.
func (e *Engine) openDisk() {
	if e.cacheDir == nil || e.opts.DiskCache <= 0 {
		return
	}
	var err error
	e.disk, err = rcache.OpenDisk(filepath.Join(e.cacheDir.Path(), diskCacheFile), e.uuid, e.blockSize, e.opts.DiskCache, func(err error) {
		e.log.Error().Err(err).Msg("the disk cache has failed: going on without it")
	})
	if err != nil {
		e.log.Error().Err(err).Msg("going on without the disk cache")
	}
}

// fromDisk fills what the disk cache has of the misses, and gives the rest.
func (e *Engine) fromDisk(misses []miss) (rest []miss) {
	e.mu.Lock()
	for i, m := range misses {
		if o, here := e.maps.Object(m.loc.Key()); here {
			misses[i].epoch = o.Epoch
		}
	}
	e.mu.Unlock()
	for _, m := range misses {
		if m.epoch == 0 { // collected meanwhile
			rest = append(rest, m)
			continue
		}
		e.disk.Get(m.loc, m.epoch, m.dst, func(at, n int, found bool) {
			some := miss{m.loc.Add(uint32(at)), m.dst[at*e.blockSize:][:n*e.blockSize], m.epoch, m.ahead}
			switch {
			case !found:
				rest = append(rest, some)
			default:
				e.memoryPut(some)
			}
		})
	}
	return rest
}

// cachePut puts blocks that were fetched, or could have been, into the caches:
// the durable key covers their object.
func (e *Engine) cachePut(m miss) {
	e.memoryPut(m)
	if e.disk != nil && m.epoch > 0 {
		e.disk.Put(m.loc, m.epoch, m.dst)
	}
}

func (e *Engine) memoryPut(m miss) {
	switch {
	case e.cache == nil:
	case m.ahead:
		e.cache.PutAhead(m.loc, m.dst)
	default:
		e.cache.Put(m.loc, m.dst)
	}
}

// DiskCacheStatus is the state of the read cache on the disk. Its JSON form is
// a contract.
type DiskCacheStatus struct {
	Size    int64  `json:"size"` // bytes
	Hits    uint64 `json:"hits"` // blocks, since it was opened
	Misses  uint64 `json:"misses"`
	Dropped uint64 `json:"dropped"` // not kept, because the disk was too slow
	Failed  string `json:"failed,omitempty"`
}

// diskCacheStatus is nil without a disk cache.
func (e *Engine) diskCacheStatus() *DiskCacheStatus {
	if e.disk == nil {
		return nil
	}
	f := e.disk.Stats()
	s := &DiskCacheStatus{Size: f.Size, Hits: f.Hits, Misses: f.Misses, Dropped: f.Dropped}
	if f.Err != nil {
		s.Failed = f.Err.Error()
	}
	return s
}
