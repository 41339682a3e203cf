package s3_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
)

// losing is a server that takes some requests and never answers them.
type losing struct {
	loses  atomic.Int32 // how many requests it will lose
	opened atomic.Int32 // connections
	closed chan struct{}
	gate   sync.WaitGroup // requests are answered once as many as it counts are there
}

func (l *losing) start(t *testing.T) *s3.Store {
	t.Helper()
	l.closed = make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		l.gate.Wait()
		if l.loses.Add(-1) >= 0 {
			select {
			case <-r.Context().Done():
			case <-l.closed:
			}
			return
		}
		w.Header().Set("ETag", `"e"`)
		if r.Method == http.MethodGet {
			io.WriteString(w, "0123456789")
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			l.opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(l.closed) })
	return storeAt(t, srv.URL, s3.Options{})
}

// TestLostAnswer checks that a request that the store has taken and never answers
// is given up long before a slow transfer would be, and asked again on a new
// connection, although others are idle.
func TestLostAnswer(t *testing.T) {
	body := objproxy.Body{Data: make([]byte, 4<<20)}
	for what, request := range map[string]func(s *s3.Store) error{
		"put": func(s *s3.Store) error {
			_, err := s.Put(t.Context(), "volume", body, objproxy.Condition{})
			return err
		},
		"get": func(s *s3.Store) error {
			_, _, err := s.Get(t.Context(), "volume", make([]byte, 10), 0)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			l := &losing{}
			s := l.start(t)
			s.SetTimes(time.Hour, 500*time.Millisecond)
			l.gate.Add(1)
			var both sync.WaitGroup
			for range 2 { // each on a connection of its own
				both.Go(func() {
					if err := request(s); err != nil {
						t.Error(err)
					}
				})
			}
			for l.opened.Load() < 2 {
				time.Sleep(time.Millisecond)
			}
			l.gate.Done()
			both.Wait()
			l.loses.Store(1)
			err := request(s)
			if meaning(err) != "transient" || !strings.Contains(err.Error(), "has not answered for") {
				t.Fatalf("%v", err)
			}
			before := l.opened.Load()
			if err := request(s); err != nil {
				t.Fatal(err)
			}
			if l.opened.Load() != before+1 {
				t.Errorf("%d connections, then %d", before, l.opened.Load())
			}
		})
	}
}

// TestLostAnswerOfACondition checks that a conditional put that is given up is told
// as done, as far as anybody can tell, if it was stored, and can be made again if
// not.
func TestLostAnswerOfACondition(t *testing.T) {
	const before, after = 1, 2
	var lose atomic.Int32
	inner := gofakes3.New(s3mem.New()).Server()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var how int32
		if r.Method == http.MethodPut {
			how = lose.Swap(0)
		}
		switch how {
		case 0:
			inner.ServeHTTP(w, r)
			return
		case before:
			io.Copy(io.Discard, r.Body)
		case after:
			inner.ServeHTTP(httptest.NewRecorder(), r)
		}
		<-r.Context().Done()
	}))
	defer srv.Close()
	if err := storeAt(t, srv.URL, s3.Options{}).EnsureBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, cond := range map[string]func(s *s3.Store, name string) objproxy.Condition{
		"absent": func(*s3.Store, string) objproxy.Condition { return objproxy.IfAbsent() },
		"version": func(s *s3.Store, name string) objproxy.Condition {
			v, err := s.Put(t.Context(), name, objproxy.Body{Data: []byte("first")}, objproxy.IfAbsent())
			if err != nil {
				t.Fatal(err)
			}
			return objproxy.IfVersion(v)
		},
	} {
		for how, want := range map[int32]string{before: "transient", after: "exists"} {
			s := storeAt(t, srv.URL, s3.Options{}) // one that does not know yet that answers get lost
			s.SetTimes(time.Hour, 300*time.Millisecond)
			name := fmt.Sprint(what, how)
			put := func(cond objproxy.Condition) error {
				_, err := s.Put(t.Context(), name, objproxy.Body{Data: []byte(name)}, cond)
				return err
			}
			c := cond(s, name)
			lose.Store(how)
			if err := put(c); meaning(err) != want {
				t.Errorf("%s, lost %d: want %s, got %v", what, how, want, err)
			}
			if err := put(c); (err == nil) != (how == before) || err != nil && meaning(err) != "exists" {
				t.Errorf("%s, lost %d, made again: %v", what, how, err)
			}
			got := make([]byte, len(name))
			if _, _, err := s.Get(t.Context(), name, got, 0); err != nil || string(got) != name {
				t.Errorf("%s, lost %d: there is %q, %v", what, how, got, err)
			}
		}
	}
}

// TestSlowReceiver checks that a request is not given up while the other side
// still takes it, however long the kernel holds the rest.
func TestSlowReceiver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const size, leastWait = 4 << 20, 100 * time.Millisecond
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		buf := make([]byte, 32<<10)
		for n := 0; n < size; {
			time.Sleep(leastWait / 25)
			m, err := conn.Read(buf)
			if err != nil {
				return
			}
			n += m
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n")
	}()
	s := storeAt(t, "http://"+l.Addr().String(), s3.Options{SignPayload: s3.SignPayloadNever})
	s.SetTimes(time.Hour, leastWait)
	start := time.Now()
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{Data: make([]byte, size)}, objproxy.Condition{}); err != nil {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if took := time.Since(start); took < 2*leastWait {
		t.Errorf("it took %v, which shows nothing", took)
	}
}

// TestPatience checks that a store whose answers take long, or get lost in
// numbers, is waited for longer, and one whose answers come in time not so long.
func TestPatience(t *testing.T) {
	p := s3.NewPace()
	bound := func(want time.Duration) {
		t.Helper()
		if got := p.Bound().Round(2 * time.Second); got != want {
			t.Errorf("the bound is %v, want %v", got, want)
		}
	}
	bound(10 * time.Second)
	p.Answered(100 * time.Millisecond)
	bound(10 * time.Second)
	p.Answered(20 * time.Second)
	bound(50 * time.Second)
	for range 1000 {
		p.Answered(100 * time.Millisecond)
	}
	bound(10 * time.Second)
	for _, want := range []time.Duration{30 * time.Second, 70 * time.Second, 2 * time.Minute, 2 * time.Minute} {
		waited := p.Bound()
		for range 32 { // that were sent at the same time
			p.Unanswered(waited)
		}
		bound(want)
	}
}
