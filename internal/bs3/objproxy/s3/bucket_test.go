package s3_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/objproxy/s3"
)

// TestNoBucket checks with real servers that a missing bucket does not count as
// missing objects, and that several processes may create it at once.
func TestNoBucket(t *testing.T) {
	check := func(t *testing.T, endpoint, access, secret string) {
		t.Helper()
		s, err := s3.New(t.Context(), s3.Options{
			Endpoint: endpoint, AccessKey: access, SecretKey: secret, Bucket: "new-bucket", Region: "us-east-1", Workers: 4,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _, get := s.Get(t.Context(), "volume", make([]byte, 1), -1)
		_, put := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfAbsent())
		_, replace := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion(`"0"`))
		_, list := s.List(t.Context(), "", "", 1)
		for what, err := range map[string]error{"get": get, "put": put, "replace": replace, "list": list} {
			if meaning(err) != "permanent" || !strings.Contains(err.Error(), "NoSuchBucket") {
				t.Errorf("%s: %v", what, err)
			}
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				// versitygw answers 500 while another process creates the bucket.
				retry := objproxy.NewRetry(s, objproxy.RetryOptions{First: time.Millisecond})
				err := retry.Do(t.Context(), "bucket", "new-bucket", func() error { return s.EnsureBucket(t.Context()) })
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, _, err := s.Get(t.Context(), "volume", make([]byte, 1), -1); meaning(err) != "notfound" {
			t.Errorf("get from the new bucket: %v", err)
		}
	}
	t.Run("gofakes3", func(t *testing.T) { check(t, startFake(t), "key", "secret") })
	t.Run("versitygw", func(t *testing.T) {
		endpoint, access, secret := objtest.StartVersitygw(t)
		check(t, endpoint, access, secret)
	})
}

// TestWrongSecret checks that a store that rejects the credentials has not said
// that an object is missing.
func TestWrongSecret(t *testing.T) {
	endpoint, access, secret := objtest.StartVersitygw(t)
	open(t, s3.Options{Endpoint: endpoint, AccessKey: access, SecretKey: secret, Bucket: "bucket"})
	s := storeAt(t, endpoint, s3.Options{})
	_, _, err := s.Get(t.Context(), "volume", make([]byte, 1), -1)
	if meaning(err) != "permanent" {
		t.Errorf("get: %v", err)
	}
	if err := s.EnsureBucket(t.Context()); meaning(err) != "permanent" {
		t.Errorf("look for the bucket: %v", err)
	}
}

// TestBucketRefused checks that the error for each refusal tells what to do about
// it.
func TestBucketRefused(t *testing.T) {
	for _, c := range []struct {
		head, create int
		code         string
		meaning      string
		says         string
	}{
		{200, 0, "", "ok", ""},
		{404, 200, "", "ok", ""},
		{404, 409, "BucketAlreadyOwnedByYou", "ok", ""},
		{404, 409, "BucketAlreadyExists", "permanent", "somebody else"},
		{307, 0, "", "permanent", "bucket"},
		{404, 409, "OperationAborted", "transient", "OperationAborted"},
		{404, 403, "AccessDenied", "permanent", "s3:CreateBucket"},
		{404, 503, "SlowDown", "transient", "SlowDown"},
		{403, 0, "", "permanent", "s3:ListBucket"},
		{301, 0, "", "permanent", "region"},
		{503, 0, "", "transient", "bucket"},
	} {
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(c.head)
				return
			}
			w.WriteHeader(c.create)
			if c.code != "" {
				io.WriteString(w, errorBody(c.code))
			}
		})
		err := s.EnsureBucket(t.Context())
		if meaning(err) != c.meaning || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("HEAD %d, create %d %s: want %s error about %q, got %v", c.head, c.create, c.code, c.meaning, c.says, err)
		}
	}
}
