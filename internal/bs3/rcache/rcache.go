// Package rcache is the read cache in memory: blocks of objects of the log
// that the durable key covers, by location. Such objects are immutable, so
// nothing in the cache is ever wrong and nothing needs to be invalidated.
//
// The memory is one anonymous mapping of frames of one block each, outside of
// the Go heap: it is touched as it fills, and costs the garbage collector
// nothing. It is cut into shards by location; each has its own lock, index and
// queues, so readers on different cores seldom meet.
//
// Replacement is S3-FIFO (Yang et al., "FIFO queues are all you need for cache
// eviction", SOSP 2023): new blocks pass through a small queue and reach the
// main one only if they were read again, so that a scan displaces little. A
// read that hits takes no exclusive lock.
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
}

const (
	// mostShards bounds the shards; small caches have fewer, so that a queue
	// has some length.
	mostShards     = 256
	leastPerShard  = 64
	smallShare     = 10 // the small queue is a tenth of a shard
	mostFrequency  = 3
	hashMultiplier = 0x9E3779B97F4A7C15
)

// New makes a cache of that many bytes, a multiple of blockSize at least
// leastPerShard blocks long.
func New(bytes int64, blockSize int) (*Cache, error) {
	frames := bytes / int64(blockSize)
	shards := int64(1)
	for shards < mostShards && frames/(2*shards) >= leastPerShard {
		shards *= 2
	}
	per := frames / shards
	if per < leastPerShard {
		return nil, fmt.Errorf("a read cache of %d bytes is less than %d blocks", bytes, leastPerShard)
	}
	mem, err := unix.Mmap(-1, 0, int(per*shards)*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for a read cache of %d bytes: %w", bytes, err)
	}
	c := &Cache{mem: mem, blockSize: blockSize, shards: make([]shard, shards)}
	for i := range c.shards {
		c.shards[i].init(int(per), mem[int64(i)*per*int64(blockSize):][:per*int64(blockSize)], blockSize)
	}
	return c, nil
}

// Close gives the memory back. Nobody may use the cache any more.
func (c *Cache) Close() error {
	if err := unix.Munmap(c.mem); err != nil {
		return fmt.Errorf("unmap the read cache: %w", err)
	}
	return nil
}

func (c *Cache) shard(loc layout.Location) *shard {
	return &c.shards[uint64(loc)*hashMultiplier>>32%uint64(len(c.shards))]
}

// Get copies the block at loc to dst and says whether it had it.
func (c *Cache) Get(loc layout.Location, dst []byte) bool { return c.shard(loc).get(loc, dst) }

// Has says whether the block at loc is in the cache, without counting as a read.
func (c *Cache) Has(loc layout.Location) bool {
	s := c.shard(loc)
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.index[loc]
	return ok
}

// Put takes a copy of the blocks in data, which lie at loc and after it in an
// object that the durable key covers.
func (c *Cache) Put(loc layout.Location, data []byte) {
	for i := uint32(0); len(data) > 0; i++ {
		l := loc.Add(i)
		c.shard(l).put(l, data[:c.blockSize])
		data = data[c.blockSize:]
	}
}

// Bytes is how much the cache holds.
func (c *Cache) Bytes() int64 {
	var n int64
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		n += int64(len(s.index)) * int64(c.blockSize)
		s.mu.RUnlock()
	}
	return n
}

// shard is one part of the cache.
type shard struct {
	mu    sync.RWMutex
	index map[layout.Location]uint32 // to frames
	locs  []layout.Location          // of the frames; 0 = free
	reads []atomic.Uint32            // of the frames, since they were queued, up to mostFrequency
	data  []byte
	size  int

	used        uint32 // frames that were ever used
	small, main fifo   // of frames
	ghosts      ghosts
	_           [64]byte
}

func (s *shard) init(frames int, data []byte, blockSize int) {
	s.index = make(map[layout.Location]uint32)
	s.locs = make([]layout.Location, frames)
	s.reads = make([]atomic.Uint32, frames)
	s.data, s.size = data, blockSize
	s.ghosts = ghosts{set: make(map[layout.Location]struct{}), most: frames}
}

func (s *shard) frame(f uint32) []byte { return s.data[int(f)*s.size:][:s.size] }

func (s *shard) get(loc layout.Location, dst []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f, ok := s.index[loc]
	if !ok {
		return false
	}
	copy(dst, s.frame(f))
	if n := s.reads[f].Load(); n < mostFrequency { // a lost count does not matter
		s.reads[f].Store(n + 1)
	}
	return true
}

func (s *shard) put(loc layout.Location, block []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.index[loc]; ok {
		return
	}
	f := s.free()
	copy(s.frame(f), block)
	s.locs[f] = loc
	s.reads[f].Store(0)
	s.index[loc] = f
	if s.ghosts.take(loc) {
		s.main.push(f)
	} else {
		s.small.push(f)
	}
}

// free finds a frame for a new block, evicting one if there is none.
func (s *shard) free() uint32 {
	if int(s.used) < len(s.locs) {
		s.used++
		return s.used - 1
	}
	for {
		if s.small.len() > len(s.locs)/smallShare || s.main.len() == 0 {
			f := s.small.pop()
			if s.reads[f].Load() > 0 {
				s.reads[f].Store(0)
				s.main.push(f)
				continue
			}
			s.ghosts.add(s.locs[f])
			delete(s.index, s.locs[f])
			return f
		}
		f := s.main.pop()
		if n := s.reads[f].Load(); n > 0 {
			s.reads[f].Store(n - 1)
			s.main.push(f)
			continue
		}
		delete(s.index, s.locs[f])
		return f
	}
}

// fifo is a queue of frames.
type fifo struct {
	frames []uint32 // a ring, its length a power of two
	head   uint32   // of the next to be popped
	n      uint32
}

func (q *fifo) len() int { return int(q.n) }

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

func (q *fifo) pop() uint32 {
	f := q.frames[q.head]
	q.head = (q.head + 1) & uint32(len(q.frames)-1)
	q.n--
	return f
}

// ghosts remembers locations that left the small queue without being read, as
// many as the shard has frames.
type ghosts struct {
	set  map[layout.Location]struct{}
	ring []layout.Location // in the order they came; some are not in set any more
	next int
	most int
}

func (g *ghosts) add(loc layout.Location) {
	if len(g.ring) < g.most {
		g.ring = append(g.ring, loc)
	} else {
		delete(g.set, g.ring[g.next])
		g.ring[g.next] = loc
		g.next = (g.next + 1) % g.most
	}
	g.set[loc] = struct{}{}
}

// take says whether loc is remembered, and forgets it.
func (g *ghosts) take(loc layout.Location) bool {
	_, ok := g.set[loc]
	delete(g.set, loc)
	return ok
}
