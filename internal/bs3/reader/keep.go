package reader

import (
	"sync"
	"time"

	"bs3/internal/bs3/layout"
)

// Keep puts blocks that were written, and whose object the store has for good,
// into the caches: blocks are their numbers (or layout.NoBlock), stored is as in
// layout.Stride, epoch that of the object. The cache on the disk waits for Lend if lend
// says so.
func (r *Reader) Keep(loc layout.Location, blocks []uint64, stored []byte, epoch uint64, lend bool) {
	if r.c.Cache != nil && (!lend || !r.passing(len(stored))) {
		r.c.Cache.Put(loc, blocks, stored, r.buffers.stride)
	}
	if !lend {
		r.diskPut(loc, epoch, blocks, stored)
	}
}

// Lend is Keep for the cache on the disk alone, which writes from stored: see
// rcache.Disk.Lend. A nil revoke means that nothing was lent.
func (r *Reader) Lend(loc layout.Location, blocks []uint64, stored []byte, epoch uint64, back func()) (revoke func() bool) {
	if r.c.Disk == nil {
		return nil
	}
	if l := r.c.Disk.Lend(loc, epoch, blocks, stored, back); l != nil {
		return l.Revoke
	}
	return nil
}

// passingShare is the share of the cache in memory that what was written, and not read,
// passes through before it is evicted.
const passingShare = 10

// passing notes n bytes that were written, and reports whether so much is being written
// that they would pass through the cache in memory within a second, while a disk cache
// keeps them: copying them would cost a writer as much as the disk cache itself.
func (r *Reader) passing(n int) bool {
	most := r.c.CacheSize / passingShare
	return r.inflow.add(int64(n), most) > most && r.c.Disk != nil && r.c.Disk.Usable()
}

// inflow is how much came lately.
type inflow struct {
	mu    sync.Mutex
	bytes int64 // less what has passed since it came
	last  time.Time
}

// add adds n bytes to what came, of which perSecond bytes pass in a second, and returns
// what is left, at most what passes in two.
func (f *inflow) add(n, perSecond int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	passed := float64(perSecond) * min(now.Sub(f.last).Seconds(), 2)
	f.bytes = min(max(0, f.bytes-int64(passed))+n, 2*perSecond)
	f.last = now
	return f.bytes
}
