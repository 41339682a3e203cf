package ublk

import (
	"fmt"
	"math/bits"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	minBuffer = 12 // log2 of the smallest buffer, a page
	maxBuffer = ioBufBits
	// keepBytes bounds the memory of unused buffers.
	keepBytes = 64 << 20
)

// buffer holds the data of one request. It is mapped memory outside of the Go heap,
// so that its address can be given to the kernel.
type buffer struct {
	p   []byte // what was asked for
	mem []byte // all of it; its length is a power of two
}

// address returns the address of the buffer for the kernel.
func (b *buffer) address() uint64 { return uint64(uintptr(unsafe.Pointer(&b.mem[0]))) }

// buffers keeps the buffers of all queues for reuse. It is safe for concurrent use.
type buffers struct {
	mu   sync.Mutex
	free [maxBuffer - minBuffer + 1][]*buffer
	kept int // bytes in free
}

// get returns a buffer of n bytes, at most 1<<maxBuffer, with arbitrary content.
func (b *buffers) get(n int) (*buffer, error) {
	class := max(0, bits.Len(uint(n-1))-minBuffer)
	b.mu.Lock()
	if last := len(b.free[class]) - 1; last >= 0 {
		buf := b.free[class][last]
		b.free[class] = b.free[class][:last]
		b.kept -= len(buf.mem)
		b.mu.Unlock()
		buf.p = buf.mem[:n]
		return buf, nil
	}
	b.mu.Unlock()
	mem, err := unix.Mmap(-1, 0, 1<<(class+minBuffer), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a buffer of %d bytes: %w", n, err)
	}
	return &buffer{p: mem[:n], mem: mem}, nil
}

// put takes back a buffer, which may be nil.
func (b *buffers) put(buf *buffer) {
	if buf == nil {
		return
	}
	class := bits.Len(uint(len(buf.mem))) - 1 - minBuffer
	b.mu.Lock()
	keep := b.kept+len(buf.mem) <= keepBytes
	if keep {
		b.free[class] = append(b.free[class], buf)
		b.kept += len(buf.mem)
	}
	b.mu.Unlock()
	if !keep {
		_ = unix.Munmap(buf.mem) // fails only for what is not mapped
	}
}

// release unmaps all unused buffers.
func (b *buffers) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for class, list := range b.free {
		for _, buf := range list {
			_ = unix.Munmap(buf.mem) // likewise
		}
		b.free[class] = nil
	}
	b.kept = 0
}
