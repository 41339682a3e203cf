package s3_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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

// TestUnsentBytes checks that what a connection has not sent yet is known, but not
// over HTTP/2, where it may be of other requests: one whose answer was lost would be
// waited for as long as they go on.
func TestUnsentBytes(t *testing.T) {
	srv := httptest.NewTLSServer(nil) // for its certificate
	defer srv.Close()
	for protocol, known := range map[string]bool{"http/1.1": true, "h2": false} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: srv.TLS.Certificates, NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		var server sync.WaitGroup
		ready := make(chan struct{})
		server.Go(func() { // reads nothing after the handshake
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := conn.(*tls.Conn).HandshakeContext(t.Context()); err != nil {
				t.Error(err)
			}
			close(ready)
			<-t.Context().Done()
			conn.Close()
		})
		t.Cleanup(server.Wait)
		t.Cleanup(func() { _ = l.Close() })
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com", NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		<-ready
		var sender sync.WaitGroup
		sender.Go(func() { _, _ = conn.Write(make([]byte, 64<<20)) })          // more than anybody buffers
		for last := -1; last <= 0 || last != s3.UnsentBytes(conn.NetConn()); { // until nothing moves any more
			last = s3.UnsentBytes(conn.NetConn())
			time.Sleep(20 * time.Millisecond)
		}
		if n := s3.UnsentBytes(conn); n > 0 != known {
			t.Errorf("%s: %d bytes", protocol, n)
		}
		conn.NetConn().Close()
		sender.Wait()
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
