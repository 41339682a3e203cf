package s3_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
)

// slowLine pauses before each of pieces of a payload, in either direction.
type slowLine struct {
	pieces int
	pause  time.Duration
}

// RoundTrip implements http.RoundTripper.
func (l slowLine) RoundTrip(req *http.Request) (*http.Response, error) {
	answer := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Etag": {`"e"`}}, Body: http.NoBody}
	if req.Method == http.MethodGet {
		answer.ContentLength = int64(l.pieces)
		answer.Body = io.NopCloser(&slowReader{l.pause, strings.NewReader(strings.Repeat("x", l.pieces)), req.Context()})
		return answer, nil
	}
	defer req.Body.Close()
	_, err := io.Copy(io.Discard, &slowReader{l.pause, req.Body, req.Context()})
	return answer, err
}

// slowReader reads a byte at a time, after a pause.
type slowReader struct {
	pause time.Duration
	r     io.Reader
	ctx   context.Context
}

func (r *slowReader) Read(p []byte) (int, error) {
	select {
	case <-time.After(r.pause):
		return r.r.Read(p[:1])
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

// TestSlowLine checks that a request may take as long as it makes progress, and
// no longer.
func TestSlowLine(t *testing.T) {
	const pieces = 100
	for _, c := range []struct {
		pause time.Duration
		want  string
	}{{20 * time.Second, "ok"}, {40 * time.Second, "transient"}} {
		synctest.Test(t, func(t *testing.T) {
			s := storeAt(t, "http://store.example", s3.Options{})
			s.SetTransport(slowLine{pieces, c.pause})
			_, put := s.Put(t.Context(), "volume", objproxy.Body{Data: make([]byte, pieces)}, objproxy.Condition{})
			_, _, get := s.Get(t.Context(), "volume", make([]byte, pieces), 0)
			for _, err := range []error{put, get} {
				if meaning(err) != c.want || err != nil && !strings.Contains(err.Error(), "too long") {
					t.Errorf("a byte every %v: want %s, got %v", c.pause, c.want, err)
				}
			}
		})
	}
}
