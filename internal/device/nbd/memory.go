package nbd

import "sync/atomic"

// memory is what all connections of a server may take together: one budget, most
// of it for payloads.
//
// Each connection has a part of its own, ownBytes, which nobody else can take. What
// remains is shared: a connection may take of it as long as it then has no more than
// is left. So one alone gets half of it, n that want all get an n+1th each, and
// whoever comes later finds something. Nothing is ever taken back: a reply that a
// client does not read holds its memory.
//
// No connection waits for another's memory, so none can be held up by another's
// client. It waits for its own requests, in the order in which they came. When none
// of those holds memory any more and there is still too little for the next one, that
// is served in parts (see split, and conn.runParts), which ownBytes is always enough
// for.
type memory struct {
	shared atomic.Int64 // bytes left of what is shared
}

const (
	// ownBytes is how many bytes of payload each connection can always have. It is
	// enough for maxWaiting blocks.
	ownBytes = 512 << 10
	// taskBytes is about what a waiting request takes beside its payload: a
	// goroutine with its stack, and what describes it.
	taskBytes = 4 << 10
	// statusBytes is what a request for the block status takes: the extents that the
	// volume returns, and the reply.
	statusBytes = 2 * maxStatus * descriptorLen
	// parkedBytes is taskBytes for a request without a goroutine.
	parkedBytes = 512
	// connBytes is what a connection takes at most beside what is shared.
	connBytes = readerSize + batchSize + maxWaiting*taskBytes + ownBytes
	// bytesPerConn is how much memory there has to be for each connection. The
	// difference to connBytes is the share of each in what is shared.
	bytesPerConn = 2 << 20
)

// divide divides total bytes for conns connections.
func (m *memory) divide(total int64, conns int) {
	// One more, since the kernel's own connection is not refused. A connection that
	// has not chosen the export has a reader's buffer.
	m.shared.Store(max(0, total-int64(conns+1)*connBytes-maxHandshakes*readerSize))
}

// beyond returns how much of held bytes is shared memory.
func beyond(held int64) int64 { return max(0, held-ownBytes) }

// grow adds n bytes to what a connection holds, and reports whether it may have them.
func (m *memory) grow(held *int64, n int64) bool {
	want := beyond(*held + n)
	more := want - beyond(*held)
	for more > 0 {
		left := m.shared.Load()
		if want > left-more {
			return false
		}
		if m.shared.CompareAndSwap(left, left-more) {
			break
		}
	}
	*held += n
	return true
}

// shrink takes n bytes off what a connection holds.
func (m *memory) shrink(held *int64, n int64) {
	if less := beyond(*held) - beyond(*held-n); less > 0 {
		m.shared.Add(less)
	}
	*held -= n
}

// payload is memory for the payload of a request.
type payload struct {
	*buffer       // nil: none
	cost    int64 // bytes that the connection holds for it
}

// claim returns memory for n bytes, or for less if there is not enough, and counts
// extra bytes with it. It waits until there is some. Only for the reader.
func (c *conn) claim(n, extra int) (payload, error) {
	n = min(n, 1<<maxBufferBits)
	for {
		size, ok := c.take(n, extra)
		if ok {
			p := payload{cost: int64(size + extra)}
			if size == 0 {
				return p, nil
			}
			b, err := c.srv.buffers.get(min(n, size))
			if err != nil {
				c.free(p)
				return payload{}, err
			}
			p.buffer = b
			return p, nil
		}
		if c.hungUp {
			return payload{}, errUnread // what it waits for may be parked
		}
		if err := c.awaitRoom(); err != nil {
			return payload{}, err
		}
	}
}

// take counts the bytes of a buffer for n bytes and extra ones. If there is too
// little, and this connection holds nothing that it will give back, it takes what
// there is. It returns the size of the buffer, 0 for n = 0.
func (c *conn) take(n, extra int) (size int, ok bool) {
	if n > 0 {
		size = bufferSize(n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.srv.memory.grow(&c.held, int64(size+extra)) {
		if c.held > 0 {
			c.limited = true
			return 0, false
		}
		size /= 2
	}
	c.limited = false
	return size, true
}

// free gives back what claim returned, unless a task does it. Only for the reader,
// which therefore does not wait for it.
func (c *conn) free(p payload) {
	c.srv.buffers.put(p.buffer)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.srv.memory.shrink(&c.held, p.cost)
}
