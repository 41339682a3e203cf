package rcache

import "bs3/internal/bs3/layout"

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

func (q *fifo) first() uint32 { return q.at(0) }

// at returns the frame that n others are before.
func (q *fifo) at(n uint32) uint32 { return q.frames[(q.head+n)&uint32(len(q.frames)-1)] }

// remove takes out the frame that n others are before. The first takes its place.
func (q *fifo) remove(n uint32) {
	q.frames[(q.head+n)&uint32(len(q.frames)-1)] = q.first()
	q.pop()
}

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
