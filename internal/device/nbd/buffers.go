package nbd

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Sizes of buffers are powers of two, from a page to maxRequest.
	minBufferBits = 12
	maxBufferBits = 25
	// slabSize is the least that is mapped at a time, in bytes.
	slabSize = 1 << 20
	// idleTime is how long a buffer stays in memory without being used, at least; at
	// most it is twice that.
	idleTime = 15 * time.Second
)

// buffers is a pool of buffers, outside of the Go heap: they cost the garbage
// collector nothing, and what is idle goes back to the kernel. Addresses are kept
// until free. get and put are safe for concurrent use, and take no lock if a buffer
// of the size is idle in memory.
type buffers struct {
	limit    int64        // bytes in memory; what is in use is less by what the caller counts
	resident atomic.Int64 // bytes of the buffers that are in use or idle in memory
	classes  [maxBufferBits - minBufferBits + 1]class

	mu    sync.Mutex // for what follows, and for moving buffers between stacks
	slabs [][]byte
}

// class has the idle buffers of one size.
type class struct {
	fresh stack // used since the last turn of age
	stale stack // not used since then
	bare  stack // without memory
}

// buffer is memory of one size. Its bytes are not cleared between uses.
type buffer struct {
	p     []byte // what was asked for; its capacity is the size
	class int
}

// stack is a lock-free stack. A node is pushed once, so that a pop cannot take a
// later one for it.
type stack struct{ top atomic.Pointer[node] }

type node struct {
	b    *buffer
	next *node
}

func (s *stack) push(b *buffer) {
	n := &node{b: b}
	for {
		n.next = s.top.Load()
		if s.top.CompareAndSwap(n.next, n) {
			return
		}
	}
}

// pop returns nil if there is none.
func (s *stack) pop() *buffer {
	for {
		n := s.top.Load()
		if n == nil {
			return nil
		}
		if s.top.CompareAndSwap(n, n.next) {
			return n.b
		}
	}
}

func classOf(n int) int { return max(bits.Len(uint(max(n, 1)-1)), minBufferBits) - minBufferBits }

// bufferSize returns how many bytes a buffer for n bytes takes.
func bufferSize(n int) int { return 1 << (classOf(n) + minBufferBits) }

// get returns a buffer of n bytes, at most 1<<maxBufferBits. It fails if the kernel
// gives no address space.
func (b *buffers) get(n int) (*buffer, error) {
	i := classOf(n)
	c := &b.classes[i]
	got := c.fresh.pop()
	if got == nil {
		got = c.stale.pop()
	}
	if got == nil {
		if b.resident.Add(int64(bufferSize(n))) > b.limit {
			b.shed() // buffers of other sizes are idle
		}
		if got = c.bare.pop(); got == nil {
			var err error
			if got, err = b.carve(i); err != nil {
				b.resident.Add(-int64(bufferSize(n)))
				return nil, err
			}
		}
	}
	got.p = got.p[:n]
	return got, nil
}

// put takes back a buffer, which may be nil.
func (b *buffers) put(got *buffer) {
	if got != nil {
		b.classes[got.class].fresh.push(got)
	}
}

// carve maps buffers of a class, and returns one of them.
func (b *buffers) carve(class int) (*buffer, error) {
	size := 1 << (class + minBufferBits)
	slab, err := unix.Mmap(-1, 0, max(size, slabSize), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map a buffer of %d bytes: %w", size, err)
	}
	// A huge page may be more than the buffers that are used of it. A kernel without
	// huge pages refuses.
	_ = unix.Madvise(slab, unix.MADV_NOHUGEPAGE)
	b.mu.Lock()
	b.slabs = append(b.slabs, slab)
	b.mu.Unlock()
	for at := size; at < len(slab); at += size {
		b.classes[class].bare.push(&buffer{p: slab[at : at+size : at+size], class: class})
	}
	return &buffer{p: slab[:size:size], class: class}, nil
}

// strip gives the memory of all buffers in s to the kernel.
func (b *buffers) strip(s *stack) {
	for n := s.top.Swap(nil); n != nil; n = n.next {
		whole := n.b.p[:cap(n.b.p)]
		_ = unix.Madvise(whole, unix.MADV_DONTNEED) // fails only for what is not mapped
		b.resident.Add(-int64(len(whole)))
		b.classes[n.b.class].bare.push(n.b)
	}
}

// shed gives the memory of all idle buffers to the kernel.
func (b *buffers) shed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.classes {
		b.strip(&b.classes[i].stale)
		b.strip(&b.classes[i].fresh)
	}
}

// turn gives the memory of what was not used since the last turn to the kernel.
func (b *buffers) turn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.classes {
		c := &b.classes[i]
		b.strip(&c.stale)
		c.stale.top.Store(c.fresh.top.Swap(nil)) // only turn and shed, under mu, put anything there
	}
}

// age takes turns until ctx is cancelled.
func (b *buffers) age(ctx context.Context) {
	t := time.NewTicker(idleTime)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			b.turn()
		case <-ctx.Done():
			return
		}
	}
}

// free unmaps everything. No buffer may be in use, and none is to be had any more
// until somebody asks.
func (b *buffers) free() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for i := range b.classes {
		b.classes[i] = class{}
	}
	for _, slab := range b.slabs {
		if err := unix.Munmap(slab); err != nil {
			errs = append(errs, fmt.Errorf("unmap buffers: %w", err))
		}
	}
	b.slabs = nil
	b.resident.Store(0)
	return errors.Join(errs...)
}
