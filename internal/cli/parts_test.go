package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/config"
)

func TestKeepTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := withLimit(t.Context(), infoFor)
		defer cancel()
		down := errors.New("no route to the store")
		tries := 0
		err := keepTrying(ctx, func() error { tries++; return down })
		if !errors.Is(err, errStore) || !errors.Is(err, down) || exitCode(err) != exitStore {
			t.Errorf("the error is %v", err)
		}
		if took := time.Since(start); took != infoFor {
			t.Errorf("it took %v", took)
		}
		if tries < 8 || tries > 12 {
			t.Errorf("%d tries", tries)
		}
		tries = 0
		err = keepTrying(t.Context(), func() error {
			if tries++; tries < 4 {
				return down
			}
			return nil
		})
		if err != nil || tries != 4 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
}

// answers is a store that gives its answers to Get in turn, then that there is no
// such object.
type answers struct {
	objproxy.Store
	errs []error
}

func (a *answers) Get(context.Context, string, []byte, int64) (int, objproxy.Info, error) {
	if len(a.errs) == 0 {
		return 0, objproxy.Info{}, objproxy.ErrNotFound
	}
	err := a.errs[0]
	a.errs = a.errs[1:]
	return 0, objproxy.Info{}, err
}

func TestReadInfoTriesAgainWhereItMayHelp(t *testing.T) {
	busy, forbidden := fmt.Errorf("503: %w", objproxy.ErrTransient), errors.New("403")
	for name, test := range map[string]struct {
		answers []error
		code    int
		atLeast time.Duration
		atMost  time.Duration
	}{
		"no volume":       {nil, exitOther, 0, 0},
		"busy twice":      {[]error{busy, busy}, exitOther, firstWait, time.Second},
		"forbidden":       {[]error{forbidden}, exitStore, 0, 0},
		"does not answer": {slices.Repeat([]error{busy}, 1000), exitStore, infoFor, infoFor},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				trying, cancel := withLimit(t.Context(), infoFor)
				defer cancel()
				_, err := readInfo(t.Context(), trying, &store{Store: &answers{errs: test.answers}, where: "here"})
				if got := exitCode(err); got != test.code || !strings.Contains(err.Error(), "here") {
					t.Errorf("exit code %d: %v", got, err)
				}
				if took := time.Since(start); took < test.atLeast || took > test.atMost {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// syncBuffer is a buffer for a logger that another goroutine uses.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestWatchSignals(t *testing.T) {
	var said syncBuffer
	exits, collect := make(chan struct{}, 8), make(chan struct{}, 1)
	ctx, stop := watchSignals(t.Context(), zerolog.New(&said), collect, func() { exits <- struct{}{} })
	defer stop()
	raise := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	raise(syscall.SIGUSR1)
	select {
	case <-collect:
	case <-time.After(time.Minute):
		t.Fatal("SIGUSR1 does not ask for a collection")
	}
	raise(syscall.SIGTERM)
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("SIGTERM does not end the ctx")
	}
	select {
	case <-exits:
		t.Error("the first signal exits at once")
	default:
	}
	second := syscall.SIGINT
	if !signal.Ignored(syscall.SIGHUP) {
		second = syscall.SIGHUP
	}
	raise(second)
	select {
	case <-exits:
	case <-time.After(time.Minute):
		t.Fatal("the second signal does not exit")
	}
}

func TestProfiler(t *testing.T) {
	var said syncBuffer
	stop, err := startProfiler(t.Context(), 0, zerolog.New(&said))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(said.String(), `"url":"`)
	url, _, _ := strings.Cut(rest, `"`)
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Fatalf("it listens on %q", url)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "goroutine") {
		t.Errorf("%s: %s, %v", url, resp.Status, err)
	}
	stop()
	if resp, err := http.Get(url); err == nil {
		_ = resp.Body.Close()
		t.Error("it goes on after stop")
	}
}

func TestProfilerPortInUse(t *testing.T) {
	var said syncBuffer
	stop, err := startProfiler(t.Context(), 0, zerolog.New(&said))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	_, rest, _ := strings.Cut(said.String(), "127.0.0.1:")
	digits, _, _ := strings.Cut(rest, "/")
	port := 0
	for _, d := range digits {
		port = 10*port + int(d-'0')
	}
	if stop, err := startProfiler(t.Context(), port, zerolog.Nop()); err == nil {
		stop()
		t.Errorf("two profilers on port %d", port)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, config.Log{Level: 1, Pretty: false}, true)
	log.Debug().Msg("quiet")
	log.Info().Msg("loud")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"message":"loud"`) || !strings.Contains(s, `"time":`) {
		t.Errorf("JSON at level info: %s", s)
	}
	for _, color := range []bool{true, false} {
		out.Reset()
		log = newLogger(&out, config.Log{Level: 0, Pretty: true}, color)
		log.Debug().Msg("loud")
		if s := out.String(); strings.Contains(s, "{") || !strings.Contains(s, "loud") || strings.Contains(s, "\x1b") != color {
			t.Errorf("pretty at level debug, color %v: %q", color, s)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 4096: "4096 B", 4 << 20: "4 MB", 1.5 * (1 << 20): "1.5 MB", 8 << 30: "8 GB", 1.25 * (1 << 30): "1.25 GB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

// TestURI: what a path may have and an URI may not is escaped; the rest stays
// readable.
func TestURI(t *testing.T) {
	for _, test := range []struct {
		addr net.Addr
		want string
	}{
		{&net.UnixAddr{Name: "/run/bs3/config/nbd.sock", Net: "unix"}, "nbd+unix:///?socket=/run/bs3/config/nbd.sock"},
		{&net.UnixAddr{Name: "/a b+c&d#e%41'/é", Net: "unix"}, "nbd+unix:///?socket=/a%20b%2Bc%26d%23e%2541%27/%C3%A9"},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 10809}, "nbd://[::1]:10809"},
	} {
		if got := uri(test.addr); got != test.want {
			t.Errorf("%v is %s, want %s", test.addr, got, test.want)
		}
	}
}
