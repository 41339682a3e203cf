package s3_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/objproxy/s3"
)

// at returns a store whose bucket is handler.
func at(t *testing.T, handler http.HandlerFunc) *s3.Store {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return storeAt(t, srv.URL, s3.Options{})
}

func storeAt(t *testing.T, endpoint string, o s3.Options) *s3.Store {
	t.Helper()
	o.Endpoint, o.Bucket, o.Region = endpoint, "bucket", "us-east-1"
	o.AccessKey, o.SecretKey, o.Workers = "key", "secret", 32
	s, err := s3.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func errorBody(code string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><Error><Code>` + code + `</Code><Message>said so</Message></Error>`
}

// meaning returns a word for what callers distinguish in an error.
func meaning(err error) string {
	var is []string
	for _, c := range []struct {
		name string
		err  error
	}{
		{"notfound", objproxy.ErrNotFound}, {"exists", objproxy.ErrExists}, {"range", objproxy.ErrRange}, {"damaged", objproxy.ErrDamaged}, {"transient", objproxy.ErrTransient},
		{"unsupported", errors.ErrUnsupported}, {"canceled", context.Canceled}, {"deadline", context.DeadlineExceeded},
	} {
		if errors.Is(err, c.err) {
			is = append(is, c.name)
		}
	}
	switch {
	case err == nil:
		return "ok"
	case is == nil:
		return "permanent"
	}
	return strings.Join(is, " and ")
}

// TestMeaning checks what each refusal means for each request.
func TestMeaning(t *testing.T) {
	const p, tr = "permanent", "transient"
	for _, c := range []struct {
		status                                          int
		body                                            string
		get, put, ifAbsent, ifVersion, list, deleteMany string
	}{
		{404, errorBody("NoSuchKey"), "notfound", p, "exists", "exists", p, p},
		{404, errorBody("NoSuchBucket"), p, p, p, p, p, p},
		{404, "", tr, tr, tr, tr, tr, tr},
		{404, "<html>nothing here</html>", tr, tr, tr, tr, tr, tr},
		{404, "not even XML <", tr, tr, tr, tr, tr, tr},
		{403, errorBody("AccessDenied"), p, p, p, p, p, p},
		{403, errorBody("NoSuchKey"), p, p, p, p, p, p},
		{403, "", p, p, p, p, p, p},
		{400, errorBody("InvalidArgument"), p, p, p, p, p, p},
		{400, errorBody("RequestTimeout"), tr, tr, tr, tr, tr, tr},
		{400, errorBody("BadDigest"), tr, tr, tr, tr, tr, tr},
		{409, errorBody("ConditionalRequestConflict"), tr, tr, tr, tr, tr, tr},
		{412, errorBody("PreconditionFailed"), p, p, "exists", "exists", p, p},
		{412, "", p, p, "exists", "exists", p, p},
		{429, errorBody("TooManyRequests"), tr, tr, tr, tr, tr, tr},
		{500, errorBody("InternalError"), tr, tr, tr, tr, tr, tr},
		{500, errorBody("NoSuchKey"), tr, tr, tr, tr, tr, tr},
		{501, errorBody("NotImplemented"), p, p, "unsupported", "unsupported", p, p},
		{502, "<html>bad gateway</html>", tr, tr, tr, tr, tr, tr},
		{503, errorBody("SlowDown"), tr, tr, tr, tr, tr, tr},
		{503, "", tr, tr, tr, tr, tr, tr},
		{200, "neither XML nor an object", tr, tr, tr, tr, tr, tr},
		{200, "<html><body>Please log in.</body></html>", tr, tr, tr, tr, tr, tr},
		{200, "<ListBucketResult><Name>bucket</Name><Contents><Key>a", tr, tr, tr, tr, tr, tr},
		{200, "", tr, tr, tr, tr, tr, tr},
	} {
		t.Run(fmt.Sprintf("%d %.40s", c.status, c.body), func(t *testing.T) {
			s := at(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			body := objproxy.Body{Data: []byte("data")}
			_, _, get := s.Get(t.Context(), "volume", make([]byte, 8), 0)
			_, put := s.Put(t.Context(), "volume", body, objproxy.Condition{})
			_, ifAbsent := s.Put(t.Context(), "volume", body, objproxy.IfAbsent())
			_, ifVersion := s.Put(t.Context(), "volume", body, objproxy.IfVersion(`"x"`))
			_, list := s.List(t.Context(), "", "", 10)
			del := s.Delete(t.Context(), []string{"a", "b"})
			for _, r := range []struct {
				what string
				err  error
				want string
			}{
				{"get", get, c.get},
				{"put", put, c.put},
				{"put if absent", ifAbsent, c.ifAbsent},
				{"put if version", ifVersion, c.ifVersion},
				{"list", list, c.list},
				{"delete", del, c.deleteMany},
			} {
				if got := meaning(r.err); got != r.want {
					t.Errorf("%s: %s, want %s: %v", r.what, got, r.want, r.err)
				}
			}
			if failed := objproxy.FailedDeletes(del); len(failed) != 2 {
				t.Errorf("delete names %d failures: %v", len(failed), del)
			}
		})
	}
}

// TestGetAnswers tries odd and broken answers to a GET of an object of ten bytes.
func TestGetAnswers(t *testing.T) {
	const object = "0123456789"
	whole := func(w http.ResponseWriter) { io.WriteString(w, object) }
	part := func(w http.ResponseWriter, contentRange, body string) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, body)
	}
	chunked := func(w http.ResponseWriter, contentRange, body string) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		w.(http.Flusher).Flush()
		io.WriteString(w, body)
	}
	for _, c := range []struct {
		name   string
		n, off int
		answer func(w http.ResponseWriter, httpRange string)
		want   string // the bytes, or the meaning of the error in brackets
	}{
		{"as asked", 3, 2, func(w http.ResponseWriter, r string) {
			if r != "bytes=2-4" {
				t.Errorf("asked for %q", r)
			}
			part(w, "bytes 2-4/10", "234")
		}, "234"},
		{"range ignored", 3, 2, func(w http.ResponseWriter, _ string) { whole(w) }, "234"},
		{"suffix ignored", 3, -1, func(w http.ResponseWriter, _ string) { whole(w) }, "789"},
		{"suffix refused", 12, -1, func(w http.ResponseWriter, r string) {
			if r != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			whole(w)
		}, object},
		{"suffix of a longer object refused", 4, -1, func(w http.ResponseWriter, r string) {
			if r != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				io.WriteString(w, errorBody("InvalidRange"))
				return
			}
			whole(w)
		}, "6789"},
		{"range refused", 3, 20, func(w http.ResponseWriter, _ string) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			io.WriteString(w, errorBody("InvalidRange"))
		}, "(range)"},
		{"cut at the end of the object", 5, 8, func(w http.ResponseWriter, _ string) { part(w, "bytes 8-9/10", "89") }, "(range)"},
		{"too few bytes", 5, 0, func(w http.ResponseWriter, _ string) { part(w, "bytes 0-2/10", "012") }, "(transient)"},
		{"other bytes", 3, 2, func(w http.ResponseWriter, _ string) { part(w, "bytes 3-5/10", "345") }, "(transient)"},
		{"more bytes", 3, 2, func(w http.ResponseWriter, _ string) { part(w, "bytes 1-6/10", "123456") }, "234"},
		{"broke off", 10, 0, func(w http.ResponseWriter, _ string) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "01234")
		}, "(transient)"},
		{"another length", 3, 2, func(w http.ResponseWriter, _ string) { part(w, "bytes 2-5/10", "234") }, "(transient)"},
		{"a suffix that does not end the object", 3, -1, func(w http.ResponseWriter, _ string) { part(w, "bytes 0-2/10", "012") }, "(transient)"},
		{"a suffix that is too short", 3, -1, func(w http.ResponseWriter, _ string) { part(w, "bytes 8-9/10", "89") }, "(transient)"},
		{"a part beyond the object", 3, 2, func(w http.ResponseWriter, _ string) { part(w, "bytes 2-4/4", "234") }, "(transient)"},
		{"neither whole nor part", 3, 2, func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNoContent) }, "(transient)"},
		{"whole, but cut", 3, -1, func(w http.ResponseWriter, _ string) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "0123456")
		}, "(transient)"},
		{"nonsense range", 3, 2, func(w http.ResponseWriter, _ string) { part(w, "pages 2-4", "234") }, "(transient)"},
		{"part of what", 3, -1, func(w http.ResponseWriter, _ string) {
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "789")
		}, "(transient)"},
		{"unknown size", 3, 2, func(w http.ResponseWriter, _ string) { part(w, "bytes 2-4/*", "234") }, "(transient)"},
		{"no length", 3, 0, func(w http.ResponseWriter, _ string) {
			w.(http.Flusher).Flush()
			whole(w)
		}, "(transient)"},
		{"in chunks", 3, 2, func(w http.ResponseWriter, _ string) {
			chunked(w, "bytes 2-4/10", "234")
		}, "234"},
		{"the end, in chunks", 3, -1, func(w http.ResponseWriter, _ string) {
			chunked(w, "bytes 7-9/10", "789")
		}, "789"},
		{"more bytes, in chunks", 3, 2, func(w http.ResponseWriter, _ string) {
			chunked(w, "bytes 1-6/10", "123456")
		}, "234"},
		{"in chunks, cut", 3, 2, func(w http.ResponseWriter, _ string) {
			chunked(w, "bytes 2-4/10", "23")
		}, "(transient)"},
		{"in chunks, cut after what is needed", 3, 2, func(w http.ResponseWriter, _ string) {
			chunked(w, "bytes 1-6/10", "12345")
		}, "(transient)"},
		{"in chunks, and goes on", 3, 2, func(w http.ResponseWriter, _ string) {
			chunked(w, "bytes 2-4/10", "2345")
		}, "(transient)"},
		// As s3rver answers.
		{"a suffix taken for a beginning", 3, -1, func(w http.ResponseWriter, r string) {
			if r != "" {
				part(w, "bytes 0-3/10", "0123")
				return
			}
			whole(w)
		}, "789"},
		{"no ETag", 3, 2, func(w http.ResponseWriter, _ string) {
			w.Header().Del("ETag")
			part(w, "bytes 2-4/10", "234")
		}, "(transient)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := at(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"e"`)
				c.answer(w, r.Header.Get("Range"))
			})
			p := make([]byte, c.n)
			n, info, err := s.Get(t.Context(), "volume", p, int64(c.off))
			got := string(p[:n])
			if err != nil {
				got = "(" + meaning(err) + ")"
			} else if info.Size != 10 || info.Version != `"e"` {
				t.Errorf("info is %+v", info)
			}
			if got != c.want {
				t.Errorf("got %s, want %s (%v)", got, c.want, err)
			}
		})
	}
}

// TestChecksum checks that a checksum that the store sends is verified, if the
// options require that and the answer is a whole object. Bytes may change on
// their way once; twice, they are what the store has, and asking on is in vain.
func TestChecksum(t *testing.T) {
	const right, wrong = "poTHxg==", "AAAAAA=="
	for _, c := range []struct {
		sums     []string // of the answers in turn
		want     string
		range416 bool // the store refuses suffixes
	}{
		{[]string{right}, "ok", false},
		{[]string{wrong, right}, "ok", false},
		{[]string{wrong, wrong}, "damaged", false},
		{[]string{wrong, right}, "ok", true},
		{[]string{wrong, wrong}, "damaged", true},
	} {
		answers := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"e"`)
			if c.range416 && r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			if answers++; answers <= len(c.sums) {
				w.Header().Set("X-Amz-Checksum-Crc32", c.sums[answers-1])
			}
			io.WriteString(w, "0123456789")
		}))
		s := storeAt(t, srv.URL, s3.Options{Checksums: s3.ChecksumsWhenSupported})
		if _, _, err := s.Get(t.Context(), "volume", make([]byte, 10), -1); meaning(err) != c.want {
			t.Errorf("checksums %v: want %s, got %v", c.sums, c.want, err)
		}
		if answers != len(c.sums) {
			t.Errorf("checksums %v: %d requests", c.sums, answers)
		}
		srv.Close()
	}
}

// TestHalfRead checks that after a server read half of the body and failed, the
// next try sends the whole body again.
func TestHalfRead(t *testing.T) {
	data, tail := bytes.Repeat([]byte("d"), 1<<20), bytes.Repeat([]byte("t"), 5000)
	for name, fail := range map[string]func(http.ResponseWriter){
		"answers 503": func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
		"hangs up":    func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int32
			var got []byte
			s := at(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet { // to see whether the put is there
					w.WriteHeader(http.StatusNotFound)
					io.WriteString(w, errorBody("NoSuchKey"))
					return
				}
				if tries.Add(1) < 3 {
					io.CopyN(io.Discard, r.Body, int64(len(data)/2))
					fail(w)
					return
				}
				got, _ = io.ReadAll(r.Body)
				w.Header().Set("ETag", `"e"`)
			})
			var b objtest.BodyWatch
			retry := objproxy.NewRetry(s, objproxy.RetryOptions{First: time.Millisecond, Max: time.Millisecond})
			if _, err := retry.Put(t.Context(), "volume", b.Body(data, tail), objproxy.IfAbsent()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, append(data, tail...)) {
				t.Errorf("the last try sent %d bytes, or other ones", len(got))
			}
			if b.Readers() != 3 {
				t.Errorf("%d readers for 3 tries", b.Readers())
			}
			b.WaitClosed(t)
		})
	}
}

// TestCancelUpload checks that nobody reads the body after Put has returned, even
// if the server still waits for it.
func TestCancelUpload(t *testing.T) {
	started := make(chan struct{})
	release := make(chan struct{})
	s := at(t, func(_ http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, 1000))
		close(started)
		<-release
	})
	defer close(release)
	var b objtest.BodyWatch
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Put(ctx, "volume", b.Body(make([]byte, 64<<20), nil), objproxy.Condition{})
		done <- err
	}()
	<-started
	cancel()
	if err := <-done; meaning(err) != "canceled" {
		t.Errorf("want canceled, got %v", err)
	}
	if b.Readers() == 0 {
		t.Error("the body was never opened")
	}
	if open := b.Open(); open != 0 {
		t.Errorf("%d readers are open after Put returned", open)
	}
}

// TestRefusedUnread: a store that refuses a conditional put before it has read
// the body may reset the connection so soon that its answer is lost. The test
// checks that the refusal is detected all the same, and that a broken connection
// alone is no refusal.
func TestRefusedUnread(t *testing.T) {
	for _, c := range []struct {
		name, there string // the version that is there
		cond        objproxy.Condition
		want        string
	}{
		{"if absent, there", `"a"`, objproxy.IfAbsent(), "exists"},
		{"if absent, not there", "", objproxy.IfAbsent(), "transient"},
		{"if version, another", `"a"`, objproxy.IfVersion(`"b"`), "exists"},
		{"if version, the same", `"a"`, objproxy.IfVersion(`"a"`), "transient"},
		{"if version, not there", "", objproxy.IfVersion(`"a"`), "exists"},
		{"no condition", `"a"`, objproxy.Condition{}, "transient"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := at(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodPut:
					conn, _, err := w.(http.Hijacker).Hijack()
					if err != nil {
						t.Error(err)
						return
					}
					if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
						t.Error(err)
					}
					conn.Close()
				case c.there == "":
					w.WriteHeader(http.StatusNotFound)
					io.WriteString(w, errorBody("NoSuchKey"))
				default:
					w.Header().Set("ETag", c.there)
					io.WriteString(w, "bytes")
				}
			})
			_, err := s.Put(t.Context(), "volume", objproxy.Body{Data: make([]byte, 8<<20)}, c.cond)
			if meaning(err) != c.want {
				t.Errorf("want %s, got %v", c.want, err)
			}
		})
	}
}

// TestNoServer tries an address where nobody listens and one that never answers.
func TestNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deaf := storeAt(t, "http://"+l.Addr().String(), s3.Options{})
	deaf.SetTimes(50*time.Millisecond, 50*time.Millisecond)
	_, _, err = deaf.Get(t.Context(), "volume", make([]byte, 1), 0)
	if meaning(err) != "transient" {
		t.Errorf("get from a deaf server: %v", err)
	}
	_, err = deaf.Put(t.Context(), "volume", objproxy.Body{Data: []byte("x")}, objproxy.IfAbsent())
	if meaning(err) != "transient" {
		t.Errorf("put to a deaf server: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, _, err = deaf.Get(ctx, "volume", make([]byte, 1), 0); meaning(err) != "deadline" {
		t.Errorf("get with a deadline of the caller: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err = deaf.Get(t.Context(), "volume", make([]byte, 1), 0); meaning(err) != "transient" {
		t.Errorf("get where nobody listens: %v", err)
	}
	if err := deaf.EnsureBucket(t.Context()); meaning(err) != "transient" {
		t.Errorf("look for a bucket where nobody listens: %v", err)
	}
}

// TestConnections checks that connections are used again, also after errors, and
// that as many are kept as there are workers.
func TestConnections(t *testing.T) {
	const workers = 32
	var opened atomic.Int32
	var gate sync.WaitGroup // so that all requests of a round arrive before one is answered
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		gate.Done()
		gate.Wait()
		w.Header().Set("ETag", `"e"`)
		switch {
		case strings.HasSuffix(r.URL.Path, "missing"):
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, errorBody("NoSuchKey")+strings.Repeat(" ", 5000))
		case strings.HasSuffix(r.URL.Path, "taken"):
			w.WriteHeader(http.StatusPreconditionFailed)
			io.WriteString(w, errorBody("PreconditionFailed"))
		case r.Method == http.MethodGet:
			io.WriteString(w, "0123456789")
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	s := storeAt(t, srv.URL, s3.Options{})
	for range 5 {
		var wg sync.WaitGroup
		gate.Add(workers)
		for i := range workers {
			wg.Go(func() {
				var err error
				var want string
				switch i % 4 {
				case 0:
					_, _, err = s.Get(t.Context(), "missing", make([]byte, 10), 0)
					want = "notfound"
				case 1:
					_, err = s.Put(t.Context(), "taken", objproxy.Body{Data: []byte("x")}, objproxy.IfAbsent())
					want = "exists"
				case 2:
					_, _, err = s.Get(t.Context(), "there", make([]byte, 10), 0)
					want = "ok"
				case 3:
					_, _, err = s.Get(t.Context(), "short", make([]byte, 20), 0)
					want = "range"
				}
				if meaning(err) != want {
					t.Errorf("want %s, got %v", want, err)
				}
			})
		}
		wg.Wait()
	}
	if n := opened.Load(); n != workers {
		t.Errorf("%d connections for %d workers", n, workers)
	}
}

// TestRequests checks what is sent.
func TestRequests(t *testing.T) {
	var last http.Header
	var path string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		last, path = r.Header.Clone(), r.URL.Path
		w.Header().Set("ETag", `"e"`)
	}))
	defer srv.Close()
	put := func(o s3.Options, cond objproxy.Condition) {
		t.Helper()
		_, err := storeAt(t, srv.URL, o).Put(t.Context(), "map/1-2", objproxy.Body{Data: make([]byte, 4<<20)}, cond)
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(header, want string) {
		t.Helper()
		if got := last.Get(header); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	put(s3.Options{}, objproxy.IfAbsent())
	expect("If-None-Match", "*")
	expect("If-Match", "")
	expect("Expect", "")
	expect("X-Amz-Storage-Class", "")
	for name := range last {
		if strings.Contains(strings.ToLower(name), "crc") {
			t.Errorf("header %s although no checksum is required", name)
		}
	}
	if path != "/bucket/map/1-2" {
		t.Errorf("path is %s", path)
	}
	put(s3.Options{Prefix: "/a/b/", StorageClass: "STANDARD_IA", Checksums: s3.ChecksumsWhenSupported}, objproxy.IfVersion(`"v"`))
	expect("If-None-Match", "")
	expect("If-Match", `"v"`)
	expect("X-Amz-Storage-Class", "STANDARD_IA")
	if last.Get("X-Amz-Checksum-Crc32") == "" {
		t.Error("no checksum although they are supported")
	}
	if path != "/bucket/a/b/map/1-2" {
		t.Errorf("path is %s", path)
	}
	if _, err := s3.New(t.Context(), s3.Options{Checksums: "sometimes"}); err == nil {
		t.Error("bad checksum mode accepted")
	}
}

// TestCredentialChain checks that, without keys in the options, the SDK finds
// some.
func TestCredentialChain(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "key-of-the-environment")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	var authorization string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorization = r.Header.Get("Authorization")
		w.Header().Set("ETag", `"e"`)
	}))
	defer srv.Close()
	s, err := s3.New(t.Context(), s3.Options{Endpoint: srv.URL, Bucket: "bucket", Region: "eu-central-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "volume", nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Credential=key-of-the-environment/", "/eu-central-1/s3/"} {
		if !strings.Contains(authorization, want) {
			t.Errorf("the request is signed by %q", authorization)
		}
	}
}

// TestCredentialChainIsSilent checks that the SDK does not write to standard
// error, which belongs to the daemon's log and may be JSON.
func TestCredentialChainIsSilent(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	defer refuses.Close()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", refuses.URL)
	said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	usual := os.Stderr
	os.Stderr = said                     //nolint:reassign // what writes there finds it by this name
	defer func() { os.Stderr = usual }() //nolint:reassign // see above
	s, err := s3.New(t.Context(), s3.Options{Endpoint: refuses.URL, Bucket: "bucket", Region: "eu-central-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "volume", nil, 0); err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("get without credentials: %v", err)
	}
	if b, err := os.ReadFile(said.Name()); err != nil || len(b) != 0 {
		t.Errorf("standard error has %q, %v", b, err)
	}
}

// TestProtocol checks that requests use HTTP/1.1 unless HTTP2 is set.
func TestProtocol(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	for http2, want := range map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"} {
		transport := s3.Transport(s3.Options{Workers: 1, HTTP2: http2})
		transport.TLSClientConfig = &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
		resp, err := (&http.Client{Transport: transport}).Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		transport.CloseIdleConnections()
		if err != nil || string(got) != want {
			t.Errorf("http2 %v: %s, %v; want %s", http2, got, err, want)
		}
	}
}

// TestDeleteSome checks that the error tells which names of a batch were not
// deleted.
func TestDeleteSome(t *testing.T) {
	s := at(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Header.Get("Content-Md5") == "" {
			t.Error("no Content-MD5")
		}
		io.WriteString(w, `<DeleteResult>
			<Deleted><Key>d</Key></Deleted>
			<Error><Key>a</Key><Code>AccessDenied</Code><Message>no</Message></Error>
			<Error><Key>b</Key><Code>NoSuchKey</Code><Message>none</Message></Error>
			<Error><Key>c</Key><Code>SlowDown</Code><Message>later</Message></Error></DeleteResult>`)
	})
	err := s.Delete(t.Context(), []string{"a", "b", "c", "d", "e"})
	got := make(map[string]string)
	for _, f := range objproxy.FailedDeletes(err) {
		got[f.Name] = meaning(f.Err)
	}
	if len(got) != 3 || got["a"] != "permanent" || got["c"] != "transient" || got["e"] != "transient" {
		t.Errorf("failures are %v: %v", got, err)
	}
}

// TestUnordered checks that a store that does not list in order is detected.
func TestUnordered(t *testing.T) {
	s := at(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `<ListBucketResult><Name>bucket</Name><Contents><Key>b</Key></Contents><Contents><Key>a</Key></Contents></ListBucketResult>`)
	})
	if infos, err := s.List(t.Context(), "", "", 10); meaning(err) != "permanent" {
		t.Errorf("got %v, %v", infos, err)
	}
}

// TestListOfAnother checks that names that were not asked for are not taken for
// those of this store.
func TestListOfAnother(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `<ListBucketResult><Name>bucket</Name><Contents><Key>a/map/1</Key></Contents></ListBucketResult>`)
	}))
	defer srv.Close()
	for _, c := range []struct{ prefix, list, want string }{
		{"a", "map/", "ok"}, {"a", "", "ok"}, {"", "a/map/", "ok"},
		{"b", "", "transient"}, {"a", "checkpoint/", "transient"}, {"", "map/", "transient"},
	} {
		s := storeAt(t, srv.URL, s3.Options{Prefix: c.prefix})
		if infos, err := s.List(t.Context(), c.list, "", 10); meaning(err) != c.want {
			t.Errorf("prefix %q, list %q: want %s, got %v, %v", c.prefix, c.list, c.want, infos, err)
		}
	}
}
