package cli

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serviceManager hears what a daemon tells it.
type serviceManager struct {
	t      *testing.T
	socket *net.UnixConn
	path   string

	mu    sync.Mutex
	heard []string
	more  chan struct{} // closed when there is more, and replaced
}

func startServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	m := &serviceManager{t: t, socket: socket, path: path, more: make(chan struct{})}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.heard = append(m.heard, strings.Split(string(b[:n]), "\n")...)
			close(m.more)
			m.more = make(chan struct{})
			m.mu.Unlock()
		}
	}()
	return m
}

// expect waits for a line that contains text, and forgets all up to it.
func (m *serviceManager) expect(text string) string {
	m.t.Helper()
	late := lastMoment(m.t)
	for {
		m.mu.Lock()
		for i, line := range m.heard {
			if strings.Contains(line, text) {
				m.heard = m.heard[i+1:]
				m.mu.Unlock()
				return line
			}
		}
		more := m.more
		m.mu.Unlock()
		select {
		case <-more:
		case <-late:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.t.Fatalf("no %q; %q", text, m.heard)
		}
	}
}

// forget drops all that was sent before the call.
func (m *serviceManager) forget() {
	m.t.Helper()
	const mark = "FORGET" // what is read after it was sent later
	self, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = self.Close() }()
	if _, err := self.Write([]byte(mark)); err != nil {
		m.t.Fatal(err)
	}
	m.expect(mark)
}

// has reports whether a line with text waits to be looked at.
func (m *serviceManager) has(text string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, line := range m.heard {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// What systemd is told from start to end, and while the store is away.
func TestServiceManager(t *testing.T) {
	dir := t.TempDir()
	// A file is in the way of the store's directory.
	parent := filepath.Join(dir, "parent")
	if err := os.WriteFile(parent, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := startServiceManager(t)
	d := startDaemon(t, dir, []string{
		"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=300000", "BS3_DIR_PATH=" + filepath.Join(parent, "store"),
	}, "--local")
	m.expect("STATUS=opening the volume in directory " + parent + "/store; the store does not answer as it should since 2")
	m.expect("EXTEND_TIMEOUT_USEC=")
	m.expect("WATCHDOG=1")
	if m.has("READY=1") {
		t.Fatal("it is ready and has no store")
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
	m.expect("READY=1")
	d.expect("serving")
	status := m.expect("STATUS=serving ")
	if !strings.HasSuffix(status, ".bs3/nbd.sock, 8 GB, durable") {
		t.Errorf("serving: %q", status)
	}
	for range 3 {
		m.expect("WATCHDOG=1")
	}
	d.signal(syscall.SIGTERM)
	m.expect("STOPPING=1")
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	m.expect("STATUS=stopped")
}

// The status says why a volume is refused.
func TestServiceManagerOfRefusedVolume(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, nil, "--local")
	d.expect("serving")
	d.signal(syscall.SIGTERM)
	d.wait()
	m := startServiceManager(t)
	d = startDaemon(t, dir, []string{"NOTIFY_SOCKET=" + m.path, "BS3_SIZE=9"}, "--local")
	if code := d.wait(); code != exitRefused {
		t.Errorf("exit %d", code)
	}
	if status := m.expect("STATUS=failed: "); !strings.Contains(status, "has 8589934592 bytes, the configuration says 9663676416 (size)") {
		t.Errorf("%q", status)
	}
}

// A daemon that stands still gives no signs of life.
func TestServiceManagerOfStoppedProcess(t *testing.T) {
	m := startServiceManager(t)
	d := startDaemon(t, t.TempDir(), []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=300000"}, "--local")
	m.expect("READY=1")
	m.expect("WATCHDOG=1")
	d.signal(syscall.SIGSTOP)
	for d.state() != "T" {
		time.Sleep(time.Millisecond)
	}
	m.forget()
	time.Sleep(time.Second)
	if m.has("WATCHDOG=1") {
		t.Error("a stopped process gives a sign of life")
	}
	d.signal(syscall.SIGCONT)
	m.expect("WATCHDOG=1")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
}

// A daemon that is stopped while it waits for the store was never ready.
func TestServiceManagerOfInterruptedOpen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := startServiceManager(t)
	d := startDaemon(t, dir, []string{"NOTIFY_SOCKET=" + m.path, "BS3_DIR_PATH=" + filepath.Join(file, "store")}, "--local")
	m.expect("the store does not answer")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	m.expect("STOPPING=1")
	if m.has("READY=1") {
		t.Error("it said that it was ready")
	}
}
