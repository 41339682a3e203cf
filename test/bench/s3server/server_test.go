package s3server_test

import (
	"fmt"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/objproxy/s3"
	"bs3/test/bench/s3server"
)

// The server is a store like any other in what bs3 needs.
func TestSuite(t *testing.T) {
	handler, err := s3server.New(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	defer srv.Close()
	var buckets atomic.Int32
	objtest.Suite(t, func(t *testing.T) objproxy.Store {
		s, err := s3.New(t.Context(), s3.Options{
			Endpoint: srv.URL, Region: "us-east-1", AccessKey: "key", SecretKey: "secret", Workers: 32,
			Bucket: fmt.Sprintf("bucket-%d", buckets.Add(1)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.EnsureBucket(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s
	})
}
