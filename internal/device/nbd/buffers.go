package nbd

import (
	"math/bits"
	"sync"
)

// Buffers are pooled by powers of two from minBuffer upwards.
const (
	minBufferBits = 12
	maxBufferBits = 26 // holds maxRequest and the partial blocks beside it
)

// buffers is a pool of payload buffers.
type buffers struct {
	pools [maxBufferBits - minBufferBits + 1]sync.Pool // of *buffer
}

// buffer is a payload. Its bytes are not cleared between uses.
type buffer struct {
	p     []byte // what was asked for
	class int
}

// get returns a buffer of n bytes, at most 1<<maxBufferBits.
func (b *buffers) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minBufferBits) - minBufferBits
	if got, ok := b.pools[class].Get().(*buffer); ok {
		got.p = got.p[:n]
		return got
	}
	return &buffer{p: make([]byte, n, 1<<(class+minBufferBits)), class: class}
}

// put takes back a buffer, which may be nil.
func (b *buffers) put(got *buffer) {
	if got != nil {
		b.pools[got.class].Put(got)
	}
}
