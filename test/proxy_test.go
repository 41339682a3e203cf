package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"bs3/internal/bs3/key"
)

// storeProxy stands between the daemon and its S3 server and spoils the requests
// that its rule names.
type storeProxy struct {
	t       testing.TB
	forward http.Handler
	ended   chan struct{} // closed when the test ends

	mu      sync.Mutex
	rule    rule
	seen    []string // methods and paths of all requests
	spoiled int
}

// rule returns the fault for a request, or nil to pass it on. It may wait first.
type rule func(r *http.Request) fault

// fault answers a request in place of the server, which forward reaches.
type fault func(w http.ResponseWriter, r *http.Request, forward http.Handler)

// newProxiedVolume configures a volume on a real S3 server behind a proxy.
func newProxiedVolume(t testing.TB) (*volume, *storeProxy) {
	t.Helper()
	v := newVolume(t, onVersitygw)
	target, err := url.Parse(v.config["s3.remote"].(string))
	if err != nil {
		t.Fatal(err)
	}
	p := &storeProxy{t: t, ended: make(chan struct{}), forward: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // which is signed
		},
		// The daemon cancels requests, and the server ends with its test.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	server := httptest.NewServer(p)
	t.Cleanup(func() {
		close(p.ended)
		server.CloseClientConnections()
		server.Close()
	})
	return v.with("s3.remote", server.URL), p
}

func (p *storeProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.seen = append(p.seen, r.Method+" "+r.URL.RequestURI())
	rule := p.rule
	p.mu.Unlock()
	if rule != nil {
		if f := rule(r); f != nil {
			p.mu.Lock()
			p.spoiled++
			p.mu.Unlock()
			f(w, r, p.forward)
			return
		}
	}
	p.forward.ServeHTTP(w, r)
}

// spoil sets the rule and forgets the requests seen.
func (p *storeProxy) spoil(r rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule, p.seen, p.spoiled = r, nil, 0
}

// heal lets everything through.
func (p *storeProxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = nil
}

// spoilt returns how many requests were spoiled.
func (p *storeProxy) spoilt() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoiled
}

// requests returns the requests seen whose method is one of methods.
func (p *storeProxy) requests(methods ...string) (found []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		if method, _, _ := strings.Cut(s, " "); slices.Contains(methods, method) {
			found = append(found, s)
		}
	}
	return found
}

// isLogObject reports whether a request is for an object of the log.
func isLogObject(r *http.Request) bool {
	dir, file := path.Split(strings.TrimSuffix(r.URL.Path, "/"))
	_, err := key.Parse(path.Base(dir) + "/" + file)
	return err == nil
}

func isRead(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// where makes a rule that spoils the requests that match.
func where(f fault, match func(*http.Request) bool) rule {
	return func(r *http.Request) fault {
		if match(r) {
			return f
		}
		return nil
	}
}

// always makes a rule that spoils every request.
func always(f fault) rule { return func(*http.Request) fault { return f } }

// hold makes a rule that holds the requests that match until release is called.
func (p *storeProxy) hold(match func(*http.Request) bool) (r rule, release func()) {
	released := make(chan struct{})
	return func(r *http.Request) fault {
		if match(r) {
			p.mu.Lock()
			p.spoiled++
			p.mu.Unlock()
			select {
			case <-released:
			case <-p.ended:
			case <-r.Context().Done():
			}
		}
		return nil
	}, sync.OnceFunc(func() { close(released) })
}

// answer answers with an S3 error code, or without a body if code is empty.
func answer(status int, code string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		body := ""
		if code != "" {
			w.Header().Set("Content-Type", "application/xml")
			body = fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>a test</Message></Error>", code)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body) // a client that is gone needs no answer
	}
}

// reset resets the connection instead of answering.
func reset(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	_ = conn.(*net.TCPConn).SetLinger(0) // so that Close sends a reset
	conn.Close()
}

// cutOff ends the connection in the middle of an answer.
func cutOff(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	w.Header().Set("Content-Length", "1000")
	w.Header().Set("ETag", `"0123"`)
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, "cut off")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// afterHalf reads half of the body, then lets then answer.
func afterHalf(then fault) fault {
	return func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		then(w, r, forward)
	}
}

// afterAll reads all of the body, then lets then answer.
func afterAll(then fault) fault {
	return func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		then(w, r, forward)
	}
}

// lost passes the request on and drops the answer.
func lost(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	forward.ServeHTTP(httptest.NewRecorder(), r)
	reset(w, r, forward)
}
