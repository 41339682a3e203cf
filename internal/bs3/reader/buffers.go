package reader

import (
	"math/bits"
	"sync"

	"bs3/internal/bs3/layout"
)

// buffers lends memory for stored blocks on their way from the store. What is
// not lent the garbage collector may take.
type buffers struct {
	stride int
	pools  [bits.UintSize]sync.Pool // of *[]byte, by the power of two of their blocks
}

// get returns a buffer for n stored blocks, at least one.
func (b *buffers) get(n uint32) *[]byte {
	class := bits.Len32(n - 1)
	size := int(n) * b.stride
	if p, _ := b.pools[class].Get().(*[]byte); p != nil {
		*p = (*p)[:size]
		return p
	}
	buf := make([]byte, size, b.stride<<class)
	return &buf
}

// put takes a buffer back that nobody uses any more.
func (b *buffers) put(p *[]byte) {
	class := bits.Len(uint(cap(*p)/b.stride) - 1)
	b.pools[class].Put(p)
}

// part returns the stored blocks of m in stored, which begins at loc.
func (b *buffers) part(stored []byte, loc layout.Location, m miss) []byte {
	return stored[int(m.loc.Index()-loc.Index())*b.stride:][:int(m.n)*b.stride]
}
