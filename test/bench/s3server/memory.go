package s3server

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// pageSize is the unit in which objects are kept. Smaller ones have their own
// memory.
const pageSize = 256 << 10

// pages is memory for objects, all of it touched beforehand: otherwise the kernel's
// making of pages would be measured too, the first time.
type pages struct {
	mu   sync.Mutex
	free [][]byte
}

func newPages(bytes int64) (*pages, error) {
	p := &pages{}
	if bytes < pageSize {
		return p, nil
	}
	mem, err := unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes for objects: %w", bytes, err)
	}
	for ; len(mem) >= pageSize; mem = mem[pageSize:] {
		p.free = append(p.free, mem[:pageSize:pageSize])
	}
	return p, nil
}

// get returns a page with arbitrary content, a new one if none is left.
func (p *pages) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.free) - 1; last >= 0 {
		page := p.free[last]
		p.free = p.free[:last]
		return page
	}
	return make([]byte, pageSize)
}

// put takes back the pages of an unused object.
func (p *pages) put(o *object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, page := range o.pages {
		if cap(page) == pageSize {
			p.free = append(p.free, page[:pageSize])
		}
	}
}
