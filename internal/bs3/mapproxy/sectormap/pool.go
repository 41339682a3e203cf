package sectormap

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// array holds the entries of a leaf.
type array [LeafBlocks]uint64

const (
	// slabArrays is how many arrays are mapped at a time: 4 MiB.
	slabArrays = 128
	// idleArrays is how many unused arrays keep their memory at least; beyond it, one
	// for each idleShare in use does.
	idleArrays = 64
	idleShare  = 32
)

// pool is the memory of a map's arrays, outside of the Go heap: a checkpoint may
// need a second array for each leaf for a while, which the garbage collector would
// take as a measure of what the daemon needs from then on. Unused memory goes back
// to the kernel; addresses are kept until free. get and put are safe for
// concurrent use.
type pool struct {
	mu    sync.Mutex
	slabs [][]byte
	idle  []*array // with memory
	bare  []*array // without
	used  int
}

// get returns an array with undefined contents.
func (p *pool) get() *array {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used++
	from := &p.idle
	if len(*from) == 0 {
		if from = &p.bare; len(*from) == 0 {
			p.carve()
		}
	}
	last := len(*from) - 1
	a := (*from)[last]
	*from = (*from)[:last]
	return a
}

// carve maps another slab. Like the Go heap, it panics if there is no memory.
func (p *pool) carve() {
	slab, err := unix.Mmap(-1, 0, slabArrays*leafBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		panic(fmt.Sprintf("sectormap: map %d bytes: %v", slabArrays*leafBytes, err))
	}
	// A huge page keeps the memory of all its arrays if the kernel makes it of few. One
	// without huge pages refuses.
	_ = unix.Madvise(slab, unix.MADV_NOHUGEPAGE)
	p.slabs = append(p.slabs, slab)
	for at := len(slab) - leafBytes; at >= 0; at -= leafBytes {
		p.bare = append(p.bare, (*array)(unsafe.Pointer(&slab[at])))
	}
}

// put takes back an array that nobody writes to any more. Readers may still look
// at it (see Map.Get): it stays mapped.
func (p *pool) put(a *array) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	p.idle = append(p.idle, a)
	for n := len(p.idle); n > idleArrays+p.used/idleShare; n = len(p.idle) {
		a, p.idle = p.idle[n-1], p.idle[:n-1]
		p.strip(a)
		p.bare = append(p.bare, a)
	}
}

// strip gives the memory of an array to the kernel. Meanwhile it releases the mutex:
// after a checkpoint thousands of arrays come back, and writers wait in get.
func (p *pool) strip(a *array) {
	p.mu.Unlock()
	defer p.mu.Lock()
	// It fails only for what is not mapped.
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(a)), leafBytes), unix.MADV_DONTNEED)
}

// free unmaps everything. Nobody may use an array any more.
func (p *pool) free() {
	for _, slab := range p.slabs {
		_ = unix.Munmap(slab) // as above
	}
}
