package s3_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
)

// everything makes a request of each kind and returns how each has ended.
func everything(ctx context.Context, s *s3.Store) map[string]error {
	errs := make(map[string]error)
	errs["bucket"] = s.EnsureBucket(ctx)
	_, errs["put"] = s.Put(ctx, "volume", objproxy.Body{Data: []byte("data")}, objproxy.IfAbsent())
	_, info, err := s.Get(ctx, "volume", make([]byte, 4), 0)
	errs["get"] = err
	_, errs["replace"] = s.Put(ctx, "volume", objproxy.Body{Data: []byte("other")}, objproxy.IfVersion(info.Version))
	_, errs["list"] = s.List(ctx, "", "", 10)
	errs["delete"] = s.Delete(ctx, []string{"volume", "another"})
	return errs
}

// working is a server in which everything succeeds, behind what refuses some of
// it: that returns false after it has answered.
func working(t *testing.T, refuse func(w http.ResponseWriter, r *http.Request) bool) *httptest.Server {
	t.Helper()
	inner := gofakes3.New(s3mem.New()).Server()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !refuse(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func refused(w http.ResponseWriter, r *http.Request, status int, code, message string) bool {
	io.Copy(io.Discard, r.Body)
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
	return true
}

func mustAll(t *testing.T, s *s3.Store) {
	t.Helper()
	for what, err := range everything(t.Context(), s) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSignedHeaders checks that no signature covers a header that a proxy may
// change or add. Google's front end changes Accept-Encoding.
func TestSignedHeaders(t *testing.T) {
	var requests atomic.Int32
	srv := working(t, func(_ http.ResponseWriter, r *http.Request) bool {
		requests.Add(1)
		_, signed, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
		signed, _, _ = strings.Cut(signed, ",")
		for _, name := range []string{"accept-encoding", "user-agent", "connection", "te", "transfer-encoding", "via", "x-forwarded-for"} {
			if slices.Contains(strings.Split(signed, ";"), name) {
				t.Errorf("%s %s: the signature covers %s", r.Method, r.URL, signed)
			}
		}
		return false
	})
	mustAll(t, storeAt(t, srv.URL, s3.Options{}))
	if requests.Load() < 6 {
		t.Errorf("%d requests", requests.Load())
	}
}

// TestAnswerInPieces checks that a connection is used again after each request,
// even if the body of its answer arrives later than the headers.
func TestAnswerInPieces(t *testing.T) {
	var opened atomic.Int32
	goOn := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-goOn
		io.WriteString(w, "<DeleteResult>")
		for _, key := range strings.Split(string(b), "<Key>")[1:] {
			key, _, _ = strings.Cut(key, "</Key>")
			io.WriteString(w, "<Deleted><Key>"+key+"</Key></Deleted>")
		}
		io.WriteString(w, "</DeleteResult>")
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	s := storeAt(t, srv.URL, s3.Options{})
	for range 10 {
		time.AfterFunc(20*time.Millisecond, func() { goOn <- struct{}{} })
		if err := s.Delete(t.Context(), []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for 10 requests one after the other", n)
	}
}

// TestNoDeleteObjects checks that objects are deleted one by one where the store
// has no request for many, and that other refusals remain what they are.
func TestNoDeleteObjects(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		single int // what a single delete answers; of the object denied always 403
		want   string
	}{
		{501, "NotImplemented", 204, "denied"},
		{400, "InvalidArgument", 204, "denied"},
		{405, "MethodNotAllowed", 200, "denied"},
		{501, "NotImplemented", 404, "denied"},
		{400, "ExpiredToken", 400, "all"},
		{403, "AccessDenied", 204, "all"},
		{503, "SlowDown", 204, "all"},
	} {
		var mu sync.Mutex
		var deleted []string
		var posts atomic.Int32
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				posts.Add(1)
				refused(w, r, c.status, c.code, "")
			case strings.HasSuffix(r.URL.Path, "denied"):
				refused(w, r, http.StatusForbidden, "AccessDenied", "object lock")
			case c.single == 404:
				refused(w, r, c.single, "NoSuchKey", "")
			case c.single == 400:
				refused(w, r, c.single, c.code, "")
			default:
				mu.Lock()
				defer mu.Unlock()
				deleted = append(deleted, r.URL.Path)
				w.WriteHeader(c.single)
			}
		})
		names := make([]string, 30)
		for i := range names {
			names[i] = fmt.Sprintf("map/%d", i)
		}
		names[17] = "map/denied"
		failed := objproxy.FailedDeletes(s.Delete(t.Context(), names))
		switch {
		case c.want == "all" && len(failed) != len(names):
			t.Errorf("%d %s: %d of %d failed", c.status, c.code, len(failed), len(names))
		case c.want == "denied" && (len(failed) != 1 || failed[0].Name != "map/denied" || !strings.Contains(failed[0].Error(), "object lock")):
			t.Errorf("%d %s: %v", c.status, c.code, failed)
		case c.want == "denied" && c.single != 404 && len(deleted) != len(names)-1:
			t.Errorf("%d %s: %d were deleted", c.status, c.code, len(deleted))
		}
		// A store that has no such request is not asked again.
		_ = s.Delete(t.Context(), []string{"map/1"})
		if want := map[bool]int32{true: 1, false: 2}[c.status == 501 || c.status == 405]; posts.Load() != want {
			t.Errorf("%d %s: asked %d times, want %d", c.status, c.code, posts.Load(), want)
		}
	}
}

// TestQuietDelete checks that of a store that only ever says what it could not
// delete, what it does not name counts as deleted.
func TestQuietDelete(t *testing.T) {
	for body, want := range map[string]int{
		`<DeleteResult></DeleteResult>`:                                                                          0,
		`<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>`:                                        0,
		`<DeleteResult><Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>`: 1,
		`<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>`:                                           1, // not quiet
		`<DeleteResult><Error><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>`:             2, // of no name
		`<DeleteResult>`: 2, // cut off
		`<html></html>`:  2,
	} {
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, body)
		})
		err := s.Delete(t.Context(), []string{"a", "b"})
		if failed := objproxy.FailedDeletes(err); len(failed) != want {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// TestListRepeats checks that a list whose next page is always the same one ends.
func TestListRepeats(t *testing.T) {
	for _, contents := range []string{"", "<Contents><Key>a</Key></Contents>"} {
		pages := 0
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			pages++
			if r.URL.Query().Get("continuation-token") != "" {
				contents = ""
			}
			io.WriteString(w, `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>`+contents+`</ListBucketResult>`)
		})
		if _, err := s.List(t.Context(), "", "", 10); meaning(err) != "transient" || !strings.Contains(err.Error(), "repeats") {
			t.Errorf("%v", err)
		}
		if pages != 2 {
			t.Errorf("%d pages", pages)
		}
	}
}

// TestEmptyObject checks that an object without bytes is one, whatever a store
// says of a range of it.
func TestEmptyObject(t *testing.T) {
	for _, contentRange := range []string{"bytes 0--1/0", "bytes */0"} {
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"e"`)
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", contentRange)
				w.Header().Set("Content-Length", "0")
				w.WriteHeader(http.StatusPartialContent)
			}
		})
		n, info, err := s.Get(t.Context(), "volume", make([]byte, 10), -1)
		if n != 0 || info.Size != 0 || err != nil {
			t.Errorf("%s: %d bytes of %d, %v", contentRange, n, info.Size, err)
		}
		if _, _, err := s.Get(t.Context(), "volume", make([]byte, 10), 0); meaning(err) != "range" {
			t.Errorf("%s: %v", contentRange, err)
		}
	}
}

// TestBareETag checks that a store that takes the quotes of If-Match for a part
// of the ETag, as Ceph's RGW 16 does, has conditions all the same.
func TestBareETag(t *testing.T) {
	var mu sync.Mutex
	etags := make(map[string]string) // by path, with quotes
	quoted, gets := 0, 0
	s := at(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		there := etags[r.URL.Path]
		if r.Method == http.MethodGet {
			gets++
			if there == "" {
				refused(w, r, http.StatusNotFound, "NoSuchKey", "")
				return
			}
			w.Header().Set("ETag", there)
			io.WriteString(w, "x")
			return
		}
		want := r.Header.Get("If-Match")
		if strings.HasPrefix(want, `"`) {
			quoted++
		}
		if want != "" && want != strings.Trim(there, `"`) || r.Header.Get("If-None-Match") == "*" && there != "" {
			refused(w, r, http.StatusPreconditionFailed, "PreconditionFailed", "")
			return
		}
		etags[r.URL.Path] = fmt.Sprintf(`"%x"`, md5.Sum(b))
		w.Header().Set("ETag", etags[r.URL.Path])
	})
	put := func(data string, cond objproxy.Condition) (objproxy.Version, error) {
		return s.Put(t.Context(), "volume", objproxy.Body{Data: []byte(data)}, cond)
	}
	a, err := put("a", objproxy.IfAbsent())
	if err != nil {
		t.Fatal(err)
	}
	b, err := put("b", objproxy.IfVersion(a))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("c", objproxy.IfVersion(a)); meaning(err) != "exists" {
		t.Errorf("an old version: %v", err)
	}
	if _, err := put("c", objproxy.IfVersion(b)); err != nil {
		t.Error(err)
	}
	if quoted != 1 || gets != 1 {
		t.Errorf("%d conditions had quotes, %d times the object was looked at", quoted, gets)
	}
}

// TestNoVersion checks that an empty ETag is no version.
func TestNoVersion(t *testing.T) {
	for _, etag := range []string{`""`, `W/""`} {
		s := at(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("ETag", etag)
			if r.Method == http.MethodGet {
				io.WriteString(w, "x")
			}
		})
		v, err := s.Put(t.Context(), "volume", objproxy.Body{Data: []byte("x")}, objproxy.Condition{})
		_, info, e := s.Get(t.Context(), "volume", make([]byte, 1), 0)
		if v != "" || info.Version != "" || err != nil || e != nil {
			t.Errorf("%s: %q, %q, %v, %v", etag, v, info.Version, err, e)
		}
	}
}

// TestChecksumRequired checks that a bucket that locks its objects gets the
// checksums that it requires, without configuration, and others none.
func TestChecksumRequired(t *testing.T) {
	for message, header := range map[string]string{
		"Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters": "X-Amz-Checksum-Crc32",
		"Content-MD5 HTTP header is required for Put Object requests with Object Lock parameters":                    "Content-Md5",
	} {
		refusals := 0
		srv := working(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || r.URL.Path == "/bucket" || r.Header.Get(header) != "" {
				return false
			}
			refusals++
			return refused(w, r, http.StatusBadRequest, "InvalidRequest", message)
		})
		mustAll(t, storeAt(t, srv.URL, s3.Options{}))
		if refusals != 1 {
			t.Errorf("%s: %d refusals", header, refusals)
		}
	}
}

// TestEncryptionRequired checks that where a policy denies puts that do not ask
// for encryption it is asked for, and that other denials are told.
func TestEncryptionRequired(t *testing.T) {
	const header = "X-Amz-Server-Side-Encryption"
	refusals, denyAll := 0, false
	srv := working(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || r.URL.Path == "/bucket" || r.Header.Get(header) == "AES256" && !denyAll {
			return false
		}
		refusals++
		return refused(w, r, http.StatusForbidden, "AccessDenied", "explicit deny")
	})
	mustAll(t, storeAt(t, srv.URL, s3.Options{}))
	if refusals != 1 {
		t.Errorf("%d refusals", refusals)
	}
	denyAll = true
	s := storeAt(t, srv.URL, s3.Options{})
	for _, want := range []int{2, 1, 1} { // that encryption does not help is known then
		refusals = 0
		_, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
		if meaning(err) != "permanent" || !strings.Contains(err.Error(), "403 Forbidden: AccessDenied: explicit deny") || refusals != want {
			t.Errorf("%v, after %d refusals, want %d", err, refusals, want)
		}
	}
}

// roundTrip is a store.
type roundTrip func(*http.Request) *http.Response

// RoundTrip implements http.RoundTripper.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	if answer := f(r); answer != nil {
		return answer, nil
	}
	return nil, errors.New("no answer")
}

// answered is an answer, with a refusal's code and message if they are not empty.
func answered(status int, code, message string) *http.Response {
	body := "<Error><Code>" + code + "</Code><Message>" + message + "</Message></Error>"
	return &http.Response{StatusCode: status, Header: http.Header{"Etag": {`"e"`}}, Body: io.NopCloser(strings.NewReader(body))}
}

// TestGuessedEncryption checks what is made of the answers when encryption is asked
// for on a guess.
func TestGuessedEncryption(t *testing.T) {
	const header = "X-Amz-Server-Side-Encryption"
	for _, c := range []struct {
		name, denied string // the message of the denial
		guess        func(*http.Request) *http.Response
		cond         objproxy.Condition
		want         string
		plain        int // puts without encryption, of two
	}{
		{"right", "", func(*http.Request) *http.Response { return answered(200, "", "") }, objproxy.Condition{}, "ok", 1},
		{"the condition does not hold", "", func(*http.Request) *http.Response { return answered(412, "PreconditionFailed", "") }, objproxy.IfAbsent(), "exists", 1},
		{"there is no such object", "", func(*http.Request) *http.Response { return answered(404, "NoSuchKey", "") }, objproxy.IfVersion(`"v"`), "exists", 1},
		{"others put at the same time", "", func(*http.Request) *http.Response { return answered(409, "ConditionalRequestConflict", "") }, objproxy.IfAbsent(), "transient", 1},
		{"the store has no encryption", "", func(*http.Request) *http.Response { return answered(501, "NotImplemented", "no KMS") }, objproxy.IfAbsent(), "permanent", 2},
		// Perhaps it was stored.
		{"no answer", "", func(*http.Request) *http.Response { return nil }, objproxy.Condition{}, "transient", 2},
		{"checksums too", "", func(r *http.Request) *http.Response {
			if r.Header.Get("X-Amz-Checksum-Crc32") == "" {
				return answered(400, "InvalidRequest", "x-amz-checksum- is required")
			}
			return answered(200, "", "")
		}, objproxy.Condition{}, "ok", 1},
		// The bucket is encrypted with a key that we may not use: something weaker is no way out.
		{"a key", "not authorized to perform: kms:GenerateDataKey", func(*http.Request) *http.Response { return answered(200, "", "") }, objproxy.Condition{}, "permanent", 2},
	} {
		plain := 0
		s := storeAt(t, "http://store.example", s3.Options{})
		s.SetTransport(roundTrip(func(r *http.Request) *http.Response {
			switch {
			case r.Method == http.MethodGet:
				return answered(503, "SlowDown", "")
			case r.Header.Get(header) != "":
				return c.guess(r)
			}
			plain++
			return answered(403, "AccessDenied", c.denied)
		}))
		_, err := s.Put(t.Context(), "volume", objproxy.Body{}, c.cond)
		if meaning(err) != c.want || c.want == "permanent" && !strings.Contains(err.Error(), "AccessDenied") {
			t.Errorf("%s: want %s, got %v", c.name, c.want, err)
		}
		_, _ = s.Put(t.Context(), "volume", objproxy.Body{}, c.cond)
		if plain != c.plain {
			t.Errorf("%s: %d puts without encryption, want %d", c.name, plain, c.plain)
		}
	}
}

// TestGuessWithKey checks that encryption is not asked for on a guess where the
// bucket's own is stronger.
func TestGuessWithKey(t *testing.T) {
	for _, first := range []string{http.MethodGet, http.MethodPut} {
		denies, guesses := false, 0
		s := storeAt(t, "http://store.example", s3.Options{})
		s.SetTransport(roundTrip(func(r *http.Request) *http.Response {
			if r.Header.Get("X-Amz-Server-Side-Encryption") != "" {
				guesses++
			}
			if denies {
				return answered(403, "AccessDenied", "")
			}
			answer := answered(200, "", "")
			answer.ContentLength = -1
			answer.Header.Set("X-Amz-Server-Side-Encryption", "aws:kms")
			return answer
		}))
		if first == http.MethodGet {
			_, _, _ = s.Get(t.Context(), "volume", make([]byte, 1), 0)
		} else if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
		denies = true
		if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); meaning(err) != "permanent" || guesses != 0 {
			t.Errorf("after a %s: %d guesses, %v", first, guesses, err)
		}
	}
}

// TestDeniedPuts checks that puts that are denied for ever are not all sent twice,
// and that encryption is asked for, if that helps, once it does.
func TestDeniedPuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests, helps := 0, false
		s := storeAt(t, "http://store.example", s3.Options{})
		s.SetTransport(roundTrip(func(r *http.Request) *http.Response {
			requests++
			if helps && r.Header.Get("X-Amz-Server-Side-Encryption") != "" {
				return answered(200, "", "")
			}
			return answered(403, "AccessDenied", "")
		}))
		put := func() error {
			_, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
			return err
		}
		const puts = 240
		for range puts { // for 20 minutes
			if err := put(); meaning(err) != "permanent" {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}
		if requests > puts+21 {
			t.Errorf("%d requests for %d puts", requests, puts)
		}
		helps = true
		time.Sleep(time.Minute)
		if err := put(); err != nil {
			t.Error(err)
		}
	})
}

// TestEncryption checks what is sent for each way to have the store encrypt.
func TestEncryption(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	sum := md5.Sum(key)
	const sse, customer = "X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Customer-"
	for _, c := range []struct {
		o        s3.Options
		put, get map[string]string
	}{
		{s3.Options{}, nil, nil},
		{s3.Options{SSE: "AES256"}, map[string]string{sse: "AES256"}, nil},
		{s3.Options{SSE: "aws:kms", SSEKMSKeyID: "k"}, map[string]string{sse: "aws:kms", sse + "-Aws-Kms-Key-Id": "k"}, nil},
		{
			s3.Options{SSECustomerKey: key},
			map[string]string{customer + "Algorithm": "AES256", customer + "Key": base64.StdEncoding.EncodeToString(key), customer + "Key-Md5": base64.StdEncoding.EncodeToString(sum[:])},
			map[string]string{customer + "Algorithm": "AES256", customer + "Key": base64.StdEncoding.EncodeToString(key), customer + "Key-Md5": base64.StdEncoding.EncodeToString(sum[:])},
		},
	} {
		srv := working(t, func(_ http.ResponseWriter, r *http.Request) bool {
			want := c.get
			switch {
			case r.URL.Path == "/bucket", r.Method == http.MethodPost:
				want = nil
			case r.Method == http.MethodPut:
				want = c.put
			}
			for name, value := range want {
				if got := r.Header.Get(name); got != value {
					t.Errorf("%+v: %s %s: %s is %q, want %q", c.o, r.Method, r.URL, name, got, value)
				}
			}
			for name := range r.Header {
				if strings.HasPrefix(name, sse) && want[name] == "" {
					t.Errorf("%+v: %s %s: %s", c.o, r.Method, r.URL, name)
				}
			}
			return false
		})
		s := storeAt(t, "https://store.example", c.o)
		s.SetTransport(roundTrip(func(r *http.Request) *http.Response {
			r = r.Clone(r.Context())
			r.URL.Scheme, r.URL.Host = "http", srv.Listener.Addr().String()
			answer, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Error(err)
			}
			return answer
		}))
		mustAll(t, s)
	}
	if _, err := s3.New(t.Context(), s3.Options{Endpoint: "http://store.example", Bucket: "bucket", AccessKey: "a", SecretKey: "b", Region: "r", SSECustomerKey: key}); err == nil || !strings.Contains(err.Error(), "https://") {
		t.Errorf("the key goes to everybody on the line: %v", err)
	}
}

// TestNoEncryption checks that a store without the encryption that is configured is
// not taken for one without conditions.
func TestNoEncryption(t *testing.T) {
	s := storeAt(t, "http://store.example", s3.Options{SSE: "AES256"})
	s.SetTransport(roundTrip(func(*http.Request) *http.Response { // MinIO's answer
		return answered(501, "NotImplemented", "Server side encryption specified but KMS is not configured")
	}))
	_, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfAbsent())
	if meaning(err) != "permanent" || !strings.Contains(err.Error(), "KMS is not configured") {
		t.Error(err)
	}
}

// TestPathStyle checks where addresses name the bucket.
func TestPathStyle(t *testing.T) {
	for _, c := range []struct {
		style   s3.PathStyle
		refuses string // a code, for addresses in path style; empty = the store takes them
		path    int    // requests in path style
		want    string
	}{
		{s3.PathStyleAuto, "", 2, "ok"},
		{"", "", 2, "ok"},
		{s3.PathStyleAuto, "SecondLevelDomainForbidden", 1, "ok"},
		{s3.PathStyleAuto, "VirtualHostDomainRequired", 1, "ok"},
		{s3.PathStyleAuto, "QuotaExceeded", 2, "permanent"},
		{s3.PathStyleAlways, "SecondLevelDomainForbidden", 2, "permanent"},
		{s3.PathStyleNever, "SecondLevelDomainForbidden", 0, "ok"},
	} {
		path := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"e"`)
			switch {
			case r.Host == "store.example" && r.URL.Path == "/bucket/volume":
				path++
				if c.refuses != "" {
					refused(w, r, http.StatusForbidden, c.refuses, "")
				}
			case r.Host != "bucket.store.example" || r.URL.Path != "/volume":
				t.Errorf("%s: a request for %s%s", c.style, r.Host, r.URL)
			}
		}))
		s := storeAt(t, "http://store.example", s3.Options{PathStyle: c.style})
		s.SetTransport(&http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
		}})
		var err error
		for range 2 { // the first teaches where the second goes
			_, err = s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
		}
		if meaning(err) != c.want || path != c.path {
			t.Errorf("%s, refused with %q: %v after %d requests in path style", c.style, c.refuses, err, path)
		}
		srv.Close()
	}
}

// TestRotatedKeys checks that keys in a file of the SDK are read again when the
// store refuses them.
func TestRotatedKeys(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	file := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("[default]\naws_access_key_id="+key+"\naws_secret_access_key=s\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("OLD")
	var valid atomic.Value
	valid.Store("OLD")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "Credential="+valid.Load().(string)+"/") {
			refused(w, r, http.StatusForbidden, "InvalidAccessKeyId", "unknown")
			return
		}
		w.Header().Set("ETag", `"e"`)
	}))
	defer srv.Close()
	s, err := s3.New(t.Context(), s3.Options{Endpoint: srv.URL, Bucket: "bucket", Region: "eu-central-1"})
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		_, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	valid.Store("NEW")
	if err := put(); meaning(err) != "permanent" {
		t.Errorf("while the file has the old key: %v", err)
	}
	write("NEW")
	// The file is not read for each refusal.
	retry := objproxy.NewRetry(s, objproxy.RetryOptions{Max: 100 * time.Millisecond})
	if err := retry.Do(t.Context(), "put", "volume", put); err != nil {
		t.Error(err)
	}
}

// TestKeysAway checks that a file of keys that is away, or empty, when they are
// looked for is looked at again, and that nothing else is taken for them meanwhile.
func TestKeysAway(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"AccessKeyId":"ROLE","SecretAccessKey":"s"}`)
	}))
	defer role.Close()
	for _, c := range []struct {
		name      string
		first     string // the key in the file at first; empty = there is no file
		role      bool   // the machine has one
		meanwhile func(file string) error
	}{
		{"none at first", "", false, nil},
		{"away", "OLD", false, os.Remove},
		{"empty", "OLD", false, func(file string) error { return os.Truncate(file, 0) }},
		{"away, beside a role", "OLD", true, os.Remove},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "credentials")
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
			if c.role {
				t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
			}
			write := func(key string) {
				t.Helper()
				if err := os.WriteFile(file, []byte("[default]\naws_access_key_id="+key+"\naws_secret_access_key=s\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.first != "" {
				write(c.first)
			}
			valid := c.first
			s, err := s3.New(t.Context(), s3.Options{Endpoint: "http://store.example", Bucket: "bucket", Region: "eu-central-1"})
			if err != nil {
				t.Fatal(err)
			}
			s.SetTransport(roundTrip(func(r *http.Request) *http.Response {
				switch key, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="), "/"); key {
				case valid:
					return answered(200, "", "")
				case "ROLE": // which may do nothing here
					return answered(403, "AccessDenied", "")
				}
				return answered(403, "InvalidAccessKeyId", "")
			}))
			put := func() error {
				_, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
				return err
			}
			if c.first != "" {
				if err := put(); err != nil {
					t.Fatal(err)
				}
				if err := c.meanwhile(file); err != nil {
					t.Fatal(err)
				}
			}
			valid = "NEW"
			if err := put(); meaning(err) != "permanent" {
				t.Errorf("there are no keys: %v", err)
			}
			write("NEW")
			tries := 0
			retry := objproxy.NewRetry(s, objproxy.RetryOptions{Max: 200 * time.Millisecond})
			if err := retry.Do(t.Context(), "put", "volume", func() error {
				if tries++; tries > 100 {
					return objproxy.ErrNotFound
				}
				return put()
			}); err != nil {
				t.Errorf("the new keys are not taken: %v", err)
			}
		})
	}
}

// TestTemporaryKeys checks that the session token goes with the keys.
func TestTemporaryKeys(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"e"`)
		if got := r.Header.Get("X-Amz-Security-Token"); got != "token" {
			t.Errorf("the token is %q", got)
		}
	}))
	defer srv.Close()
	s := storeAt(t, srv.URL, s3.Options{SessionToken: "token"})
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); err != nil {
		t.Error(err)
	}
}

// TestRegion checks which region signatures name.
func TestRegion(t *testing.T) {
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_DEFAULT_REGION", "")
	for _, c := range []struct{ configured, environment, want string }{
		{"", "", "us-east-1"}, {"", "eu-central-1", "eu-central-1"}, {"eu-north-1", "eu-central-1", "eu-north-1"},
	} {
		t.Setenv("AWS_REGION", c.environment)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"e"`)
			if !strings.Contains(r.Header.Get("Authorization"), "/"+c.want+"/s3/") {
				t.Errorf("%+v: the request is signed by %q", c, r.Header.Get("Authorization"))
			}
		}))
		s, err := s3.New(t.Context(), s3.Options{Endpoint: srv.URL, Bucket: "bucket", Region: c.configured, AccessKey: "a", SecretKey: "b"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); err != nil {
			t.Error(err)
		}
		srv.Close()
	}
}

// TestTLS checks whose certificates are trusted, and that who speaks HTTP to a
// server that expects TLS learns that.
func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"e"`) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	ca, none := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "none.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for path, text := range map[string][]byte{ca: block, none: []byte("nothing")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put := func(endpoint string, o s3.Options) error {
		_, err := storeAt(t, endpoint, o).Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
		return err
	}
	if err := put(srv.URL, s3.Options{CACert: ca}); err != nil {
		t.Error(err)
	}
	if err := put(srv.URL, s3.Options{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody knows: %v", err)
	}
	for _, path := range []string{none, filepath.Join(dir, "missing.pem")} {
		if _, err := s3.New(t.Context(), s3.Options{Endpoint: srv.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "b", Region: "r", CACert: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}

	const says = "https://"
	plain := "http://" + srv.Listener.Addr().String()
	if err := put(plain, s3.Options{}); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("HTTP to a TLS port: %v", err)
	}
	if err := storeAt(t, plain, s3.Options{}).EnsureBucket(t.Context()); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "region") {
		t.Errorf("HTTP to a TLS port: %v", err)
	}
	nginx := at(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>")
	})
	if err := nginx.EnsureBucket(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("HTTP to a TLS port of nginx: %v", err)
	}
	// Others send a TLS alert.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1000))
			_, _ = conn.Write([]byte{0x15, 3, 1, 0, 2, 2, 70})
			conn.Close()
		}
	}()
	if err := put("http://"+l.Addr().String(), s3.Options{}); meaning(err) != "transient" || !strings.Contains(err.Error(), says) {
		t.Errorf("HTTP to a TLS port that sends an alert: %v", err)
	}
}
