// Package rcache holds the read caches, in memory (Cache) and on a disk (Disk).
// They keep blocks of objects of the log that the durable key covers, by
// location. Such objects are immutable, so nothing in a cache is ever wrong and
// nothing needs to be invalidated.
//
// The memory is one anonymous mapping of frames of one block each, outside the
// Go heap: the kernel allocates it as it fills, and it costs the garbage
// collector nothing. It is divided into shards by location. Each has its own
// lock, index and queues, so readers on different cores seldom meet. Neighbouring
// blocks of an object share a shard and neighbour each other in its index: one
// lock covers them all, and what the lookup of one reads is in the processor's
// cache for the next.
//
// Replacement is S3-FIFO (Yang et al., "FIFO queues are all you need for cache
// eviction", SOSP 2023): new blocks pass through a small queue and reach the
// main one only if they are read again, so that a scan displaces little. Blocks
// that were read ahead have a queue of their own, which they leave once they are
// read: they were fetched to be read once, so that read does not suggest another
// one. A hit takes no exclusive lock.
package rcache

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/layout"
)

// Cache holds blocks of one size. It is safe for concurrent use.
type Cache struct {
	mem       []byte
	blockSize int
	shards    []shard
	used      atomic.Int64 // frames
}

const (
	mostShards    = 256
	leastPerShard = 1024 // frames; with fewer, some shards are full too early
	leastFrames   = 64
	groupBits     = 4  // 2^groupBits neighbouring blocks share a shard
	smallShare    = 10 // the small queue is a tenth of a shard
	aheadShare    = 2  // what was read ahead may displace half of a shard
	mostFrequency = 3
)

// New returns a cache of the given size in bytes, which must be leastFrames
// blocks at least.
func New(bytes int64, blockSize int) (*Cache, error) {
	frames := bytes / int64(blockSize)
	shards := int64(1)
	for shards < mostShards && frames/(2*shards) >= leastPerShard {
		shards *= 2
	}
	per := frames / shards
	if per < leastFrames {
		return nil, fmt.Errorf("a read cache of %d bytes is less than %d blocks", bytes, leastFrames)
	}
	mem, err := unix.Mmap(-1, 0, int(per*shards)*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for a read cache of %d bytes: %w", bytes, err)
	}
	c := &Cache{mem: mem, blockSize: blockSize, shards: make([]shard, shards)}
	for i := range c.shards {
		c.shards[i].all = &c.used
		c.shards[i].init(int(per), mem[int64(i)*per*int64(blockSize):][:per*int64(blockSize)], blockSize)
	}
	return c, nil
}

// Close frees the memory. The cache must not be used afterwards. Closing again
// has no effect.
func (c *Cache) Close() error {
	mem := c.mem
	c.mem = nil
	if mem == nil {
		return nil
	}
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("unmap the read cache: %w", err)
	}
	return nil
}

// hash spreads groups of blocks. Only the high bits of the product depend on all
// of the location: eight of them choose the shard, others the place in it.
func hash(loc layout.Location) (shard, place uint32) {
	h := uint64(loc) >> groupBits * 0x9E3779B97F4A7C15
	return uint32(h >> 32 & (mostShards - 1)), uint32(h >> 40)
}

// place returns the preferred index of loc in a table whose length is a power of
// two. The blocks of a group follow one another.
func place(loc layout.Location, entries int) uint32 {
	_, first := hash(loc)
	return (first + uint32(loc)&(1<<groupBits-1)) & uint32(entries-1)
}

func (c *Cache) shard(loc layout.Location) *shard {
	i, _ := hash(loc)
	return &c.shards[i&uint32(len(c.shards)-1)]
}

// Get copies the block at loc to dst and reports whether the cache had it.
func (c *Cache) Get(loc layout.Location, dst []byte) bool { return c.shard(loc).get(loc, dst) }

// Has reports whether the block at loc is in the cache. It does not count as a
// read.
func (c *Cache) Has(loc layout.Location) bool {
	s := c.shard(loc)
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.find(loc)
	return ok
}

// Put stores copies of the blocks in data, of which one begins every stride
// bytes. They lie at loc and after it in an object that the durable key covers.
func (c *Cache) Put(loc layout.Location, data []byte, stride int) { c.put(loc, data, stride, false) }

// PutAhead is Put for blocks that were read ahead.
func (c *Cache) PutAhead(loc layout.Location, data []byte, stride int) {
	c.put(loc, data, stride, true)
}

func (c *Cache) put(loc layout.Location, data []byte, stride int, ahead bool) {
	for len(data) > 0 {
		together := 1<<groupBits - int(uint64(loc)&(1<<groupBits-1))
		some := data[:min(len(data), together*stride)]
		c.shard(loc).put(loc, some, stride, ahead)
		data = data[len(some):]
		loc = loc.Add(uint32(len(some) / stride))
	}
}

// Bytes returns how much data the cache holds.
func (c *Cache) Bytes() int64 { return c.used.Load() * int64(c.blockSize) }

// Blocks returns how many blocks the cache has room for, and for how many more than
// it holds. When one shard is full, others may have room.
func (c *Cache) Blocks() (all, free int64) {
	all = int64(len(c.shards) * len(c.shards[0].locs))
	return all, all - c.used.Load()
}

// shard is one part of the cache.
type shard struct {
	mu sync.RWMutex
	// index is a hash table with linear probing, of frames plus one; 0 is empty. At
	// most half of it is used.
	index []uint32
	locs  []layout.Location // of the frames
	reads []atomic.Uint32   // of the frames since they were queued, up to mostFrequency
	data  []byte
	size  int

	used               uint32        // frames in use; it never falls
	all                *atomic.Int64 // frames in use in all shards
	small, main, ahead fifo          // of frames
	ghosts             ghosts
	_                  [64]byte
}

func (s *shard) init(frames int, data []byte, blockSize int) {
	entries := 2
	for entries < 2*frames {
		entries *= 2
	}
	s.index = make([]uint32, entries)
	s.locs = make([]layout.Location, frames)
	s.reads = make([]atomic.Uint32, frames)
	s.data, s.size = data, blockSize
	s.ghosts = make(ghosts, entries/2)
}

func (s *shard) frame(f uint32) []byte { return s.data[int(f)*s.size:][:s.size] }

// find returns the place of loc in the index, or else that of an empty entry.
func (s *shard) find(loc layout.Location) (at uint32, ok bool) {
	mask := uint32(len(s.index) - 1)
	for at = place(loc, len(s.index)); s.index[at] != 0; at = (at + 1) & mask {
		if s.locs[s.index[at]-1] == loc {
			return at, true
		}
	}
	return at, false
}

// forget removes loc, which must be there, from the index.
func (s *shard) forget(loc layout.Location) {
	hole, _ := s.find(loc)
	mask := uint32(len(s.index) - 1)
	for at := (hole + 1) & mask; s.index[at] != 0; at = (at + 1) & mask {
		// An entry that would not be found any more moves into the hole.
		if home := place(s.locs[s.index[at]-1], len(s.index)); (at-home)&mask >= (at-hole)&mask {
			s.index[hole] = s.index[at]
			hole = at
		}
	}
	s.index[hole] = 0
}

func (s *shard) get(loc layout.Location, dst []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.find(loc)
	if !ok {
		return false
	}
	f := s.index[at] - 1
	copy(dst, s.frame(f))
	if n := s.reads[f].Load(); n < mostFrequency { // a lost count does not matter
		s.reads[f].Store(n + 1)
	}
	return true
}

// put stores blocks of one group.
func (s *shard) put(loc layout.Location, data []byte, stride int, ahead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; len(data) > 0; loc, data = loc.Add(1), data[stride:] {
		if _, ok := s.find(loc); ok {
			continue
		}
		f := s.free()
		fillFrame(s.frame(f), data[:s.size])
		s.locs[f] = loc
		s.reads[f].Store(0)
		at, _ := s.find(loc) // only now: freeing a frame moves entries
		s.index[at] = f + 1
		switch {
		case s.ghosts.take(loc):
			s.main.push(f)
		case ahead:
			s.ahead.push(f)
		default:
			s.small.push(f)
		}
	}
}

// free returns a frame for a new block. It evicts one if all are in use.
func (s *shard) free() uint32 {
	if int(s.used) < len(s.locs) {
		s.used++
		s.all.Add(1)
		return s.used - 1
	}
	for {
		if f, ok := s.freeAhead(); ok {
			return f
		}
		if s.small.length() > len(s.locs)/smallShare || s.main.length() == 0 {
			f := s.small.pop()
			if s.reads[f].Load() > 0 {
				s.reads[f].Store(0)
				s.main.push(f)
				continue
			}
			s.ghosts.add(s.locs[f])
			s.forget(s.locs[f])
			return f
		}
		f := s.main.pop()
		if n := s.reads[f].Load(); n > 0 {
			s.reads[f].Store(n - 1)
			s.main.push(f)
			continue
		}
		s.forget(s.locs[f])
		return f
	}
}

// freeAhead evicts a block that was read ahead, if the oldest has been read or
// if there are too many.
func (s *shard) freeAhead() (f uint32, ok bool) {
	for s.ahead.length() > 0 {
		reads := s.reads[s.ahead.first()].Load()
		if reads == 0 && s.ahead.length() <= len(s.locs)/aheadShare {
			return 0, false
		}
		f = s.ahead.pop()
		if reads > 1 {
			s.reads[f].Store(0)
			s.main.push(f)
			continue
		}
		if reads > 0 { // otherwise the next read of it is the first one
			s.ghosts.add(s.locs[f])
		}
		s.forget(s.locs[f])
		return f, true
	}
	return 0, false
}

// fifo is a queue of frames.
type fifo struct {
	frames []uint32 // a ring; its length is a power of two
	head   uint32   // index of the next to be popped
	n      uint32
}

func (q *fifo) length() int { return int(q.n) }

func (q *fifo) push(f uint32) {
	if int(q.n) == len(q.frames) {
		bigger := make([]uint32, max(16, 2*len(q.frames)))
		for i := range q.n {
			bigger[i] = q.frames[(q.head+i)&uint32(len(q.frames)-1)]
		}
		q.frames, q.head = bigger, 0
	}
	q.frames[(q.head+q.n)&uint32(len(q.frames)-1)] = f
	q.n++
}

func (q *fifo) first() uint32 { return q.frames[q.head] }

func (q *fifo) pop() uint32 {
	f := q.frames[q.head]
	q.head = (q.head + 1) & uint32(len(q.frames)-1)
	q.n--
	return f
}

// ghosts remembers locations that left the small queue without being read. Each
// has one place, which the next location with the same place takes over: about
// as many are remembered as the shard has frames.
type ghosts []layout.Location

func (g ghosts) add(loc layout.Location) { g[place(loc, len(g))] = loc }

// take reports whether loc is remembered, and forgets it.
func (g ghosts) take(loc layout.Location) bool {
	p := &g[place(loc, len(g))]
	if *p != loc {
		return false
	}
	*p = 0
	return true
}
