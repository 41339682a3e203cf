package s3_test

import (
	"io"
	"net/http"
	"net/http/httptest"
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
// it, in the store's own words.
func TestBucketRefused(t *testing.T) {
	for _, c := range []struct {
		list, create int
		code         string // of the refusal: of the list, or of the creation if the list says NoSuchBucket
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
		{403, 0, "AccessDenied", "permanent", "403 Forbidden: AccessDenied: said so"},
		{403, 0, "InvalidAccessKeyId", "permanent", "403 Forbidden: InvalidAccessKeyId: said so"},
		{403, 0, "QuotaExceeded", "permanent", "403 Forbidden: QuotaExceeded: said so"},
		{301, 0, "PermanentRedirect", "permanent", "region eu-north-1 (s3.region)"},
		{400, 0, "AuthorizationHeaderMalformed", "permanent", "region"},
		{503, 0, "", "transient", "bucket"},
	} {
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			switch {
			case r.Method == http.MethodGet && c.list == 200:
				io.WriteString(w, `<ListBucketResult></ListBucketResult>`)
			case r.Method == http.MethodGet && c.create != 0:
				w.WriteHeader(c.list)
				io.WriteString(w, errorBody("NoSuchBucket"))
			case r.Method == http.MethodGet:
				if c.list == http.StatusMovedPermanently {
					w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
				}
				w.WriteHeader(c.list)
				if c.code != "" {
					io.WriteString(w, errorBody(c.code))
				}
			case r.Method == http.MethodPut:
				w.WriteHeader(c.create)
				if c.code != "" {
					io.WriteString(w, errorBody(c.code))
				}
			default:
				t.Errorf("a %s, which a key may not be allowed that is limited to the prefix", r.Method)
			}
		})
		err := s.EnsureBucket(t.Context())
		if meaning(err) != c.meaning || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("list %d, create %d %s: want %s error about %q, got %v", c.list, c.create, c.code, c.meaning, c.says, err)
		}
		if err != nil && strings.Contains(err.Error(), "credentials") {
			t.Errorf("list %d, create %d %s: a guess: %v", c.list, c.create, c.code, err)
		}
	}
}

// TestPrefixOnly checks that a key is enough that may use nothing but the prefix.
func TestPrefixOnly(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		list := r.Method == http.MethodGet && r.URL.Path == "/bucket"
		switch {
		case list && strings.HasPrefix(r.URL.Query().Get("prefix"), "vol1/"):
			io.WriteString(w, `<ListBucketResult></ListBucketResult>`)
		case strings.HasPrefix(r.URL.Path, "/bucket/vol1/"):
			w.Header().Set("ETag", `"e"`)
		default:
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, errorBody("AccessDenied"))
		}
	}))
	defer srv.Close()
	s := storeAt(t, srv.URL, s3.Options{Prefix: "vol1"})
	if err := s.EnsureBucket(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.List(t.Context(), "", "", 10); err != nil {
		t.Error(err)
	}
	if _, err := s.List(t.Context(), "checkpoint/", "", 10); err != nil {
		t.Error(err)
	}
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfAbsent()); err != nil {
		t.Error(err)
	}
}
