package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fake is a kernel whose NBD client treats sockets and devices as that of Linux
// does.
type fake struct {
	missing bool // there is no client

	mu       sync.Mutex
	deviceOf map[int]*fakeDevice
	calls    []string // of the driver, in order
	fail     map[string]error

	writingBack chan struct{} // if set, what takes and ends a wait of writeBack
}

type fakeDevice struct {
	connection
	nc        net.Conn // the kernel's end
	dead      bool     // the kernel has seen that nc's other end is gone
	slow      int      // how often it is asked before it sees that
	connected bool     // not disconnected since it was connected
	held      bool     // somebody has it open
}

func newFake() *fake { return &fake{deviceOf: map[int]*fakeDevice{}, fail: map[string]error{}} }

// call records a call and returns its error.
func (f *fake) call(name string, index int) error {
	f.calls = append(f.calls, fmt.Sprint(name, " ", index))
	return f.fail[name]
}

func (f *fake) available() error {
	if f.missing {
		return ErrNoDriver
	}
	return nil
}

func (f *fake) devices() (map[int]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := map[int]string{}
	for index, d := range f.deviceOf {
		if d.backend != "" {
			list[index] = d.backend
		}
	}
	return list, f.fail["devices"]
}

func (f *fake) backend(index int) (string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.deviceOf[index]; d != nil {
		return d.backend, true, f.fail["backend"]
	}
	return "", false, f.fail["backend"]
}

// take makes a connection of the kernel's end of a pair.
func take(socket int) (net.Conn, error) {
	fd, err := unix.Dup(socket)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "kernel")
	defer file.Close()
	return net.FileConn(file)
}

func (f *fake) connect(c connection) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("connect", c.index); err != nil {
		return err
	}
	if f.deviceOf[c.index] != nil {
		return unix.EBUSY
	}
	nc, err := take(c.socket)
	f.deviceOf[c.index] = &fakeDevice{connection: c, nc: nc, connected: true}
	return err
}

// reconnect revives also what was disconnected and is held, as older versions of
// Linux do.
func (f *fake) reconnect(c connection) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("reconnect", c.index); err != nil {
		return err
	}
	d := f.deviceOf[c.index]
	if d == nil || d.backend != c.backend {
		return unix.EINVAL
	}
	if d.slow--; !d.dead || d.slow >= 0 {
		return nil // and nothing is done
	}
	nc, err := take(c.socket)
	d.nc, d.dead, d.connected = nc, false, true
	return err
}

func (f *fake) disconnect(index int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("disconnect", index); err != nil {
		return err
	}
	d := f.deviceOf[index]
	if d == nil {
		return nil
	}
	request := binary.BigEndian.AppendUint32(nil, 0x25609513)
	request = append(request, make([]byte, 24)...)
	request[7] = 2 // NBD_CMD_DISC
	_, _ = d.nc.Write(request)
	_ = d.nc.Close()
	d.dead, d.connected = true, false
	if !d.held {
		delete(f.deviceOf, index)
	}
	return nil
}

func (f *fake) writeBack(index int) error {
	if f.writingBack != nil {
		f.writingBack <- struct{}{}
		<-f.writingBack
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.call("writeBack", index)
}

func (f *fake) stuckAfter(index int, _ time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.call("stuckAfter", index)
}

// die is the death of the process that serves device index.
func (f *fake) die(index int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.deviceOf[index]
	_ = d.nc.Close()
	d.dead = true
}

func (f *fake) hold(index int, held bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.deviceOf[index]
	if d.held = held; !held && !d.connected {
		delete(f.deviceOf, index)
	}
}

// see returns a copy of a device, and whether there is one.
func (f *fake) see(index int) (fakeDevice, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.deviceOf[index]; d != nil {
		return *d, true
	}
	return fakeDevice{}, false
}

func (f *fake) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

// read sends a read of 4 KiB at off as the kernel does, and returns the data.
func (f *fake) read(t *testing.T, index int, off uint64) []byte {
	t.Helper()
	d, _ := f.see(index)
	request := binary.BigEndian.AppendUint32(nil, 0x25609513)
	request = binary.BigEndian.AppendUint32(request, 0) // NBD_CMD_READ
	request = binary.BigEndian.AppendUint64(request, 7)
	request = binary.BigEndian.AppendUint64(request, off)
	request = binary.BigEndian.AppendUint32(request, 4096)
	reply := make([]byte, 16+4096)
	_, err := d.nc.Write(request)
	if err == nil {
		_, err = io.ReadFull(d.nc, reply)
	}
	if err == nil && (binary.BigEndian.Uint32(reply) != 0x67446698 || reply[15] != 7) {
		err = errors.New("no simple reply to the request")
	}
	if err != nil {
		t.Fatalf("read of device %d: %v", index, err)
	}
	return reply[16:]
}
