package s3_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/objproxy/s3"
)

// TestSignPayload checks whether the signature covers the payload.
func TestSignPayload(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got = r.Header.Get("X-Amz-Content-Sha256")
		w.Header().Set("ETag", `"e"`)
	}))
	defer srv.Close()
	sum := sha256.Sum256([]byte("datatail"))
	hashed := hex.EncodeToString(sum[:])
	for mode, want := range map[s3.SignPayload]string{
		"": hashed, s3.SignPayloadAuto: hashed, s3.SignPayloadAlways: hashed, s3.SignPayloadNever: "UNSIGNED-PAYLOAD",
	} {
		s := storeAt(t, srv.URL, s3.Options{SignPayload: mode})
		if _, err := s.Put(t.Context(), "volume", objproxy.Body{Data: []byte("data"), Tail: []byte("tail")}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("mode %q: payload is %s, want %s", mode, got, want)
		}
		if overTLS := s3.SignsPayload(storeAt(t, "https://127.0.0.1:1", s3.Options{SignPayload: mode})); overTLS != (mode == s3.SignPayloadAlways) {
			t.Errorf("mode %q over TLS: the payload is signed: %v", mode, overTLS)
		}
	}
	if _, err := s3.New(t.Context(), s3.Options{SignPayload: "sometimes"}); err == nil {
		t.Error("a bad mode is accepted")
	}
}

// TestSkew checks that a wrong clock makes only one try fail.
func TestSkew(t *testing.T) {
	ahead := 3 * time.Hour
	var tries int
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tries++
		now := time.Now().Add(ahead)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || now.Sub(signed).Abs() > 15*time.Minute {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, errorBody("RequestTimeTooSkewed"))
			return
		}
		w.Header().Set("ETag", `"e"`)
		io.WriteString(w, "0123456789")
	}))
	defer srv.Close()
	s := storeAt(t, srv.URL, s3.Options{})
	p := make([]byte, 10)
	for _, want := range []string{"transient", "ok", "ok"} {
		if _, _, err := s.Get(t.Context(), "volume", p, -1); meaning(err) != want {
			t.Errorf("want %s, got %v", want, err)
		}
	}
	ahead = 0 // somebody sets the clock
	for _, want := range []string{"transient", "ok"} {
		if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); meaning(err) != want {
			t.Errorf("after the clock was set: want %s, got %v", want, err)
		}
	}
	if tries != 5 {
		t.Errorf("%d requests", tries)
	}
}

// TestRefusalTold checks that an error contains what the store answered.
func TestRefusalTold(t *testing.T) {
	s := at(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Request-Id", "4711")
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, errorBody("AccessDenied"))
	})
	_, _, get := s.Get(t.Context(), "volume", make([]byte, 8), 0)
	_, put := s.Put(t.Context(), "volume", objproxy.Body{Data: []byte("data")}, objproxy.IfAbsent())
	for _, err := range []error{get, put} {
		for _, want := range []string{"volume", "bucket", "403", "AccessDenied", "said so", "4711"} {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%v: without %q", err, want)
			}
		}
	}
}

// TestNames checks that a prefix may have characters that URLs and signatures
// escape. The server checks the signatures.
func TestNames(t *testing.T) {
	endpoint, access, secret := objtest.StartVersitygw(t)
	for i, prefix := range []string{"a b", "ü/ö", "1+1=2", "%41", "a&b;c,d", "~!*'()"} {
		s := open(t, s3.Options{Endpoint: endpoint, AccessKey: access, SecretKey: secret, Bucket: fmt.Sprintf("bucket-%d", i), Prefix: prefix})
		if _, err := s.Put(t.Context(), "map/1-2", objproxy.Body{Data: []byte("data")}, objproxy.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4)
		if _, _, err := s.Get(t.Context(), "map/1-2", p, 0); err != nil || string(p) != "data" {
			t.Errorf("prefix %q: read %q, %v", prefix, p, err)
		}
		infos, err := s.List(t.Context(), "", "", 10)
		if err != nil || !slices.ContainsFunc(infos, func(i objproxy.Info) bool { return i.Name == "map/1-2" }) {
			t.Errorf("prefix %q: list %v, %v", prefix, infos, err)
		}
		if err := s.Delete(t.Context(), []string{"map/1-2"}); err != nil {
			t.Errorf("prefix %q: %v", prefix, err)
		}
		if _, _, err := s.Get(t.Context(), "map/1-2", p, 0); meaning(err) != "notfound" {
			t.Errorf("prefix %q: it is still there: %v", prefix, err)
		}
	}
}

// TestEmptyBody checks that an empty object is sent with a length.
func TestEmptyBody(t *testing.T) {
	var lengths atomic.Int64
	s := at(t, func(w http.ResponseWriter, r *http.Request) {
		lengths.Store(r.ContentLength)
		w.Header().Set("ETag", `"e"`)
	})
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); err != nil || lengths.Load() != 0 {
		t.Errorf("length %d, %v", lengths.Load(), err)
	}
}
