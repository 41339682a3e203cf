package reader

import (
	"math/bits"
	"sync"

	"bs3/internal/bs3/layout"
)

// largeBuffer is the size in bytes from which on a buffer is too dear to be made
// anew after each garbage collection, as what lies in a pool is.
const largeBuffer = 1 << 20

// buffers lends memory for stored blocks on their way from the store.
type buffers struct {
	stride int
	pools  [bits.UintSize]sync.Pool // of *[]byte, by the power of two of their blocks
	large  chan *[]byte             // of any size from largeBuffer on
}

// newBuffers returns buffers that keep so many large ones until drop.
func newBuffers(stride, large int) *buffers {
	return &buffers{stride: stride, large: make(chan *[]byte, large)}
}

// get returns a buffer for n stored blocks, at least one.
func (b *buffers) get(n uint32) *[]byte {
	class := bits.Len32(n - 1)
	size := int(n) * b.stride
	var p *[]byte
	if size >= largeBuffer {
		select {
		case p = <-b.large:
		default:
		}
	} else {
		p, _ = b.pools[class].Get().(*[]byte)
	}
	if p == nil || cap(*p) < size {
		most := b.stride << class
		if size >= largeBuffer { // half of it might be for nothing
			step := b.stride << max(0, class-4)
			most = (size + step - 1) / step * step
		}
		buf := make([]byte, size, most)
		return &buf
	}
	*p = (*p)[:size]
	return p
}

// put takes a buffer back that nobody uses any more.
func (b *buffers) put(p *[]byte) {
	if len(*p) < largeBuffer {
		b.pools[bits.Len(uint(cap(*p)/b.stride)-1)].Put(p)
		return
	}
	select {
	case b.large <- p:
	default:
	}
}

// drop gives the large buffers that are not lent to the garbage collector.
func (b *buffers) drop() {
	for {
		select {
		case <-b.large:
		default:
			return
		}
	}
}

// part returns the stored blocks of m in stored, which begins at loc.
func (b *buffers) part(stored []byte, loc layout.Location, m miss) []byte {
	return stored[int(m.loc.Index()-loc.Index())*b.stride:][:int(m.n)*b.stride]
}
