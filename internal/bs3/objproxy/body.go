package objproxy

import (
	"fmt"
	"io"
	"sync"
)

// bodyReader reads Data and then Tail. One attempt, one goroutine; only Close
// may be called from another (net/http does).
type bodyReader struct {
	body Body
	off  int64
	once sync.Once
}

func (r *bodyReader) Read(p []byte) (int, error) {
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
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.body.Size()
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek body to %d", offset)
	}
	r.off = offset
	return offset, nil
}

func (r *bodyReader) Close() error {
	r.once.Do(func() {
		if r.body.Closed != nil {
			r.body.Closed()
		}
	})
	return nil
}
