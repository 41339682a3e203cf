package nbd

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

func TestStopLetsReceivedRequestsFinish(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	s := startServer(t, vol, Options{})
	c, idle := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
	dawdler := dialRaw(t, s)
	dawdler.recv(18)
	release := vol.Block(devtest.Write, devtest.Flush)
	first := c.startWrite(0, block(1))
	second := c.start(0, cmdFlush, 0, 0, nil)
	awaitBlocked(t, vol, 2)
	s.stop()
	idle.awaitEnd()
	dawdler.wantEnd()
	unanswered(t, "a blocked write", first)
	if _, err := net.Dial("unix", s.addr.String()); err == nil {
		t.Error("a stopping server accepts connections")
	}
	release()
	for _, ch := range []<-chan answer{first, second} {
		if a := c.await(ch); a.err != nil || a.e != 0 {
			t.Errorf("a request received before the stop: %+v", a)
		}
	}
	c.awaitEnd()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil // for the cleanup
	mustHold(t, vol, 1)
}

func TestStopCancelsWhatDoesNotFinish(t *testing.T) {
	vol := devtest.NewMemory(device.Geometry{Size: maxRequest, BlockSize: 4096})
	s := startServer(t, vol, Options{StopTimeout: 20 * time.Millisecond})
	c, silent := dial(t, s, clientOptions{}), dialRaw(t, s)
	// One that takes no replies must not keep the server.
	silent.hello(flagFixedNewstyle | flagNoZeroes)
	silent.send(cat(be64(magicOption), be32(optExportName), be32(0)))
	silent.recv(10)
	silent.send(requestBytes(0, cmdRead, 1, 0, maxRequest)) // no socket holds that
	waitFor(t, "the replies to fill the socket", func() bool { return vol.Calls(devtest.Read) > 0 })
	vol.Block(devtest.Write)
	ch := c.startWrite(0, block(1))
	awaitBlocked(t, vol, 1)
	s.stop()
	if a := c.await(ch); a.err != nil || a.e != errnoSHUTDOWN {
		t.Errorf("a write that cannot finish is answered with %+v, want ESHUTDOWN", a)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil // for the cleanup
}

func TestTooManyConnections(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{MaxConns: 2})
	a, b := dial(t, s, clientOptions{}), dial(t, s, clientOptions{})
	old := dialRaw(t, s)
	old.hello(flagFixedNewstyle | flagNoZeroes)
	old.send(cat(be64(magicOption), be32(optExportName), be32(0))) // it has no error reply
	old.wantEnd()
	c := dialRaw(t, s)
	c.hello(flagFixedNewstyle | flagNoZeroes)
	if r := c.option(optInfo, cat(str(""), be16(0))); r.kind != repInfo || c.optReply().kind != repAck {
		t.Errorf("info at the limit of connections: %+v", r)
	}
	if r := c.option(optGo, cat(str(""), be16(0))); r.kind != repErrPolicy || string(r.data) != "there are already 2 connections" {
		t.Errorf("go at the limit of connections: %#x %q", r.kind, r.data)
	}
	a.vanish()
	waitFor(t, "a place", func() bool { return len(s.connections()) == 2 })
	if r := c.option(optGo, cat(str(""), be16(0))); r.kind != repInfo || c.optReply().kind != repAck {
		t.Errorf("go after a connection has ended: %#x %q", r.kind, r.data)
	}
	if err := c.nc.Close(); err != nil {
		t.Error(err)
	}
	waitFor(t, "a place", func() bool { return len(s.connections()) == 1 })
	dial(t, s, clientOptions{}).mustRead(0, 1)
	b.mustRead(0, 1)
}

// Clients that do not finish the handshake keep nobody out.
func TestHalfOpenHandshakes(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{MaxConns: 1, HandshakeTimeout: time.Hour})
	var half []*rawClient
	for range maxHandshakes + 3 {
		c := dialRaw(t, s)
		c.recv(18)
		half = append(half, c)
	}
	for _, c := range half[:3] { // the oldest have made room
		c.wantEnd()
	}
	c := dial(t, s, clientOptions{})
	c.mustRead(0, 1)
	waitFor(t, "the ones that were ended to be gone", func() bool { return len(s.connections()) == maxHandshakes })
	last := half[len(half)-1]
	last.send(be32(flagFixedNewstyle | flagNoZeroes))
	if r := last.option(optList, nil); r.kind != repServer {
		t.Errorf("a later one cannot go on: %+v", r)
	}
}

func run(opts Options) error {
	opts.Log = zerolog.Nop()
	return New(devtest.NewMemory(testGeometry()), opts).Run(context.Background())
}

func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nbd.sock")
	opts := Options{Network: "unix", Address: path}

	t.Run("stale is replaced, mode is private", func(t *testing.T) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s := startServer(t, devtest.NewMemory(testGeometry()), opts)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("mode is %v, want a socket for its owner alone", info.Mode())
		}
		dial(t, s, clientOptions{}).mustRead(0, 1)

		t.Run("live is an error that names it", func(t *testing.T) {
			if err := run(opts); err == nil || !strings.Contains(err.Error(), path+" is served by a live process") {
				t.Errorf("error %v", err)
			}
			dial(t, s, clientOptions{}).mustRead(0, 1)
		})
	})
	t.Run("removed at the end", func(t *testing.T) {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket file: %v", err)
		}
	})
	t.Run("of another daemon is left", func(t *testing.T) {
		s := startServer(t, devtest.NewMemory(testGeometry()), opts)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		other := startServer(t, devtest.NewMemory(testGeometry()), opts)
		s.stop()
		if err := <-s.done; err != nil {
			t.Error(err)
		}
		s.done <- nil // for the cleanup
		dial(t, other, clientOptions{}).mustRead(0, 1)
	})
	t.Run("other file is kept", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run(opts); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("the file that was in the way: %q, %v", b, err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		opts.Address = filepath.Join(t.TempDir(), "none", "nbd.sock")
		if err := run(opts); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), opts.Address) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPortInUse(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{Network: "tcp", Address: "127.0.0.1:0"})
	if err := run(Options{Network: "tcp", Address: s.addr.String()}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
}

// brokenListener fails with the given errors.
type brokenListener struct {
	net.Listener
	errs []error
}

func (l *brokenListener) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	if err == nil {
		c, _ := net.Pipe() // no socket, so the server can do nothing with it
		return c, nil
	}
	return nil, err
}

func TestAcceptErrors(t *testing.T) {
	s := New(devtest.NewMemory(testGeometry()), Options{Log: zerolog.Nop()})
	broken := errors.New("broken for good")
	l := &brokenListener{errs: []error{syscall.EMFILE, nil, syscall.ECONNABORTED, broken}}
	if err := s.accept(t.Context(), l); !errors.Is(err, broken) {
		t.Errorf("accept ended with %v", err)
	}
	if len(l.errs) != 0 || len(s.conns) != 0 {
		t.Errorf("%d accepts were not tried, %d connections", len(l.errs), len(s.conns))
	}
	ctx, cancel := context.WithTimeout(t.Context(), acceptRetry/10)
	defer cancel()
	if err := s.accept(ctx, &brokenListener{errs: []error{syscall.ENFILE}}); err != nil {
		t.Errorf("accept ended with %v when stopped in its pause", err)
	}
	if err := s.accept(ctx, &brokenListener{errs: []error{nil}}); err != nil {
		t.Errorf("accept ended with %v when stopped", err)
	}
}
