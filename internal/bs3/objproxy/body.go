package objproxy

import (
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// bodyReader reads Data and then Tail, for one attempt. net/http may close a
// body in one goroutine while another still reads it. So Close waits for a Read
// in progress, and no Read touches the memory after it: once Closed is called,
// nobody uses the memory.
type bodyReader struct {
	mu     sync.Mutex
	body   Body
	off    int64
	closed bool
}

func (r *bodyReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, fmt.Errorf("read body: %w", fs.ErrClosed)
	}
	if r.off >= r.body.Size() {
		return 0, io.EOF
	}
	var n int
	if d := int64(len(r.body.Data)); r.off < d {
		n = copy(p, r.body.Data[r.off:])
	} else {
		n = copy(p, r.body.Tail[r.off-d:])
	}
	r.off += int64(n)
	return n, nil
}

func (r *bodyReader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.body.Size()
	default:
		return 0, fmt.Errorf("seek body: bad whence %d", whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek body: negative position %d", offset)
	}
	r.off = offset
	return offset, nil
}

func (r *bodyReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.body.Closed != nil {
		r.body.Closed()
	}
	return nil
}
