package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// service is a Service whose answers a test sets.
type service struct {
	mu     sync.Mutex
	status string
	probe  func(ctx context.Context) error
}

func (s *service) Status() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *service) Probe(ctx context.Context) error {
	s.mu.Lock()
	probe := s.probe
	s.mu.Unlock()
	if probe == nil {
		return nil
	}
	return probe(ctx)
}

func (s *service) set(status string, probe func(ctx context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.probe = status, probe
}

// manager collects what a Notifier tells it.
type manager struct {
	mu    sync.Mutex
	heard []string
}

func (m *manager) hear(state string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard = append(m.heard, strings.Split(state, "\n")...)
	return nil
}

// since returns what was heard, and forgets it.
func (m *manager) since() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	heard := m.heard
	m.heard = nil
	return heard
}

func count(heard []string, prefix string) (n int) {
	for _, h := range heard {
		if strings.HasPrefix(h, prefix) {
			n++
		}
	}
	return n
}

// notified runs a Notifier in virtual time while f runs.
func notified(t *testing.T, watchdog time.Duration, s *service, f func(n *Notifier, m *manager, end func())) {
	synctest.Test(t, func(t *testing.T) {
		m := &manager{}
		n := &Notifier{log: zerolog.Nop(), send: m.hear, watchdog: watchdog}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { n.Run(ctx, s) })
		end := func() {
			cancel()
			wg.Wait()
		}
		f(n, m, end)
		end()
	})
}

func TestLife(t *testing.T) {
	s := &service{status: "opening"}
	notified(t, 0, s, func(n *Notifier, m *manager, end func()) {
		time.Sleep(9 * time.Second)
		heard := m.since()
		if count(heard, "STATUS=") != 1 || heard[0] != "STATUS=opening" {
			t.Errorf("while it opens: %q", heard)
		}
		// Each lasts until after the next.
		if n := count(heard, "EXTEND_TIMEOUT_USEC=122000000"); n != 5 {
			t.Errorf("%d extensions in 9 s: %q", n, heard)
		}

		s.set("serving\nwell", nil)
		n.Ready()
		time.Sleep(10 * time.Second)
		if heard := m.since(); !slices.Equal(heard, []string{"READY=1", "STATUS=serving well"}) {
			t.Errorf("while it serves: %q", heard)
		}

		s.set("closing", nil)
		n.Stopping()
		time.Sleep(10 * time.Second)
		heard = m.since()
		if heard[0] != "STOPPING=1" || heard[1] != "STATUS=closing" || count(heard, "EXTEND_TIMEOUT_USEC=") != 5 {
			t.Errorf("while it closes: %q", heard)
		}
		s.set("failed", nil)
		end()
		if heard := m.since(); !slices.Equal(heard, []string{"STATUS=failed"}) {
			t.Errorf("at the end: %q", heard)
		}
	})
}

// A service that is stopped while it starts is never reported ready.
func TestStoppedWhileStarting(t *testing.T) {
	notified(t, 0, &service{}, func(n *Notifier, m *manager, _ func()) {
		n.Stopping()
		n.Ready()
		n.Stopping()
		if heard := m.since(); count(heard, "STOPPING=1") != 1 || count(heard, "READY=1") != 0 {
			t.Errorf("%q", heard)
		}
	})
}

func TestWatchdog(t *testing.T) {
	s := &service{}
	notified(t, 3*time.Second, s, func(n *Notifier, m *manager, _ func()) {
		n.Ready()
		time.Sleep(9500 * time.Millisecond)
		if n := count(m.since(), "WATCHDOG=1"); n != 10 {
			t.Errorf("%d signs of life in 9.5 s", n)
		}
		s.set("", func(context.Context) error { return errors.New("it is stuck") })
		time.Sleep(10 * time.Second)
		if n := count(m.since(), "WATCHDOG=1"); n != 0 {
			t.Errorf("%d signs of life of a service that is stuck", n)
		}
		s.set("", nil) // it is alive again
		time.Sleep(2 * time.Second)
		if n := count(m.since(), "WATCHDOG=1"); n == 0 {
			t.Error("no sign of life")
		}
		// A probe that hangs is no sign of life, and does not keep Run from ending.
		s.set("", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		time.Sleep(5 * time.Second)
		m.since()
		time.Sleep(10 * time.Second)
		if heard := m.since(); len(heard) != 0 {
			t.Errorf("while a probe hangs: %q", heard)
		}
	})
}

// The environment names the socket of the manager.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "5000000")
	var said strings.Builder
	log := zerolog.New(&said)
	n := New(log)
	if n.watchdog != 5*time.Second {
		t.Fatalf("%+v", n)
	}
	n.Ready()
	for _, want := range []string{"STATUS=starting", "READY=1"} {
		b := make([]byte, 100)
		if got, err := l.Read(b); err != nil || string(b[:got]) != want {
			t.Errorf("%q, %v, want %q", b[:got], err, want)
		}
	}
	if said.Len() > 0 {
		t.Errorf("it is not content: %s", said.String())
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if n := New(log); n.watchdog != 0 || !strings.Contains(said.String(), "soon") {
		t.Errorf("a watchdog time that is no number: %v, %s", n.watchdog, said.String())
	}
	said.Reset()
	_ = l.Close()
	_ = os.Remove(path)
	if New(log); !strings.Contains(said.String(), path) {
		t.Errorf("a socket that is not there: %s", said.String())
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := New(zerolog.Nop())
	n.Ready()
	n.Run(t.Context(), nil) // returns at once, without a look at the service
	n.Stopping()
}
