package nbd

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// socketPair returns two sockets that are connected to each other.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// attach connects a client without a handshake, as that of Linux. served receives
// what Serve returns.
func attach(t testing.TB, s *testServer) (c *client, served <-chan error) {
	t.Helper()
	theirs, ours := socketPair(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), ours) }()
	c = &client{
		t: t, nc: theirs, size: uint64(s.geometry.Size), flags: s.Flags(), blockSize: s.geometry.BlockSize,
		pending: make(map[uint64]pending), ended: make(chan struct{}),
	}
	go c.receive(bufio.NewReader(theirs))
	return c, ended
}

func TestContractWithoutHandshake(t *testing.T) {
	devtest.Run(t, func(t *testing.T) device.Volume {
		s := startServer(t, devtest.NewMemory(device.Geometry{Size: 8 << 20, BlockSize: 4096}), Options{})
		c, _ := attach(t, s)
		return struct{ device.Volume }{c} // no block status to ask
	})
}

func TestFlags(t *testing.T) {
	g := testGeometry()
	if got := New(devtest.NewMemory(g), Options{}).Flags(); got != flagHasFlags|flagSendFlush|flagSendFUA|flagMultiConn|flagSendTrim|flagSendWriteZeroes|flagSendFastZero {
		t.Errorf("flags %#x", got)
	}
	g.ReadOnly = true
	if got := New(devtest.NewMemory(g), Options{}).Flags(); got != flagHasFlags|flagSendFlush|flagSendFUA|flagMultiConn|flagReadOnly {
		t.Errorf("read-only: flags %#x", got)
	}
}

// How a client without a handshake leaves.
func TestServeEnds(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	s := startServer(t, vol, Options{})

	// It disconnects: what it has sent is finished.
	c, served := attach(t, s)
	release := vol.Block(devtest.Write)
	write := c.start(0, cmdWrite, 0, 4096, make([]byte, 4096))
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	c.start(0, cmdDisc, 0, 0, nil)
	select {
	case err := <-served:
		t.Fatalf("it has ended before its request: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if a := <-write; a.e != 0 || a.err != nil {
		t.Errorf("the write: %+v", a)
	}
	if err := <-served; err != nil {
		t.Errorf("after NBD_CMD_DISC: %v", err)
	}

	// Its socket breaks: what it has sent is dropped.
	c, served = attach(t, s)
	vol.Block(devtest.Write)
	c.start(0, cmdWrite, 0, 4096, make([]byte, 4096))
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	_ = c.nc.Close()
	if err := <-served; err == nil {
		t.Error("a connection that breaks ends as if it had said so")
	}

	// The server stops.
	c, served = attach(t, s)
	c.mustRead(0, 4096)
	s.stop()
	if err := <-served; !errors.Is(err, errStopping) {
		t.Errorf("when the server stops: %v", err)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil // for the end of the test
	_, served = attach(t, s)
	if err := <-served; !errors.Is(err, errStopped) {
		t.Errorf("after the server has stopped: %v", err)
	}
}
