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
//
// What lives is kept: a block knows its number in the volume, so a cache that needs
// room asks the map for blocks that were overwritten since, and takes theirs first.
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

// Where returns where a block of the volume lies now; 0 if it is unmapped. It is
// called often, also while locks of a cache are held, so it must be fast and not call
// back. A nil Where stands for a volume of which nothing is known: all blocks live.
type Where func(block uint64) layout.Location

// dead reports whether the volume has other bytes in block than those at loc.
func (w Where) dead(block uint64, loc layout.Location) bool { return w != nil && w(block) != loc }

const (
	mostShards    = 256
	leastPerShard = 1024 // frames; with fewer, some shards are full too early
	leastFrames   = 64
	groupBits     = 4  // 2^groupBits neighbouring blocks share a shard
	smallShare    = 10 // the small queue is a tenth of a shard
	aheadShare    = 2  // what was read ahead may displace half of a shard
	mostFrequency = 3
	readOnce      = 2 // a read that finds only some of its blocks looks for all of them again
	mostProbes    = 8 // frames that are looked at for a dead one, to make room for a block
)

// New returns a cache of the given size in bytes, which must be leastFrames
// blocks at least. where finds what is dead.
func New(bytes int64, blockSize int, where Where) (*Cache, error) {
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
		c.shards[i].init(int(per), mem[int64(i)*per*int64(blockSize):][:per*int64(blockSize)], blockSize, where)
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

// Peek copies the block at loc to dst and reports whether the cache had it. It does
// not count as a read.
func (c *Cache) Peek(loc layout.Location, dst []byte) bool {
	s := c.shard(loc)
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.find(loc)
	if ok {
		copy(dst, s.frame(s.index[at]-1))
	}
	return ok
}

// Put stores copies of the given blocks of the volume, of which one begins every
// stride bytes of data. They lie at loc and after it in an object that the durable key
// covers. layout.NoBlock stands for one that is not to be stored.
func (c *Cache) Put(loc layout.Location, blocks []uint64, data []byte, stride int) {
	c.put(loc, blocks, data, stride, false)
}

// PutAhead is Put for blocks that were read ahead.
func (c *Cache) PutAhead(loc layout.Location, blocks []uint64, data []byte, stride int) {
	c.put(loc, blocks, data, stride, true)
}

func (c *Cache) put(loc layout.Location, blocks []uint64, data []byte, stride int, ahead bool) {
	for len(blocks) > 0 {
		n := min(len(blocks), 1<<groupBits-int(uint64(loc)&(1<<groupBits-1)))
		c.shard(loc).put(loc, blocks[:n], data, stride, ahead)
		blocks, data, loc = blocks[n:], data[min(len(data), n*stride):], loc.Add(uint32(n))
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
	index  []uint32
	locs   []layout.Location // of the frames
	blocks []uint64          // of the frames: their numbers in the volume
	reads  []atomic.Uint32   // of the frames since they were queued, up to mostFrequency
	data   []byte
	size   int
	where  Where

	used               uint32        // frames in use; it never falls
	all                *atomic.Int64 // frames in use in all shards
	small, main, ahead fifo          // of frames
	hand               uint32        // goes through the queues, looking for dead blocks
	probes             int           // how many frames the hand looks at next time
	ghosts             ghosts
	_                  [64]byte
}

func (s *shard) init(frames int, data []byte, blockSize int, where Where) {
	entries := 2
	for entries < 2*frames {
		entries *= 2
	}
	s.index = make([]uint32, entries)
	s.locs = make([]layout.Location, frames)
	s.blocks = make([]uint64, frames)
	s.reads = make([]atomic.Uint32, frames)
	s.data, s.size, s.where, s.probes = data, blockSize, where, 1
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
func (s *shard) put(loc layout.Location, blocks []uint64, data []byte, stride int, ahead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, block := range blocks {
		loc := loc.Add(uint32(i))
		if _, ok := s.find(loc); ok || block == layout.NoBlock {
			continue
		}
		f := s.free()
		fillFrame(s.frame(f), data[i*stride:][:s.size])
		s.locs[f], s.blocks[f] = loc, block
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
	if f, ok := s.freeDead(); ok {
		return f
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

// freeDead evicts a dead block, if the hand comes to one within a few frames: the more
// of them there are, the more it looks at. Where all live, it looks at one.
func (s *shard) freeDead() (f uint32, ok bool) {
	for range s.probes {
		q, at := s.queued(s.hand)
		if f := q.at(at); s.where.dead(s.blocks[f], s.locs[f]) {
			q.remove(at)
			s.forget(s.locs[f])
			s.probes = min(2*s.probes, mostProbes)
			return f, true
		}
		s.hand = (s.hand + 1) % s.used
	}
	s.probes = max(s.probes/2, 1)
	return 0, false
}

// queued returns the queue and the place in it of the n-th frame that is in use,
// counted through all queues.
func (s *shard) queued(n uint32) (q *fifo, at uint32) {
	for _, q = range []*fifo{&s.main, &s.small} {
		if n < q.n {
			return q, n
		}
		n -= q.n
	}
	return &s.ahead, n
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
		if reads > readOnce {
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
