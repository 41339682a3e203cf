package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"

	"bs3/internal/device/blockdev"
)

// What follows is the edge to the kernel, which the tests replace.

// driver is the NBD client of the kernel.
type driver interface {
	// available returns nil if the kernel has it. Errors: ErrNoDriver.
	available() error
	// devices returns the backends, by index, of the devices that have one and are
	// connected, or were and are still held open.
	devices() (map[int]string, error)
	// backend returns the backend of a device, "" if it has none, and whether the
	// device is connected, or was and is still held open.
	backend(index int) (backend string, connected bool, err error)
	// connect connects a device that is not connected.
	connect(c connection) error
	// reconnect gives a device another socket, unless its socket is alive.
	reconnect(c connection) error
	// disconnect disconnects a device, which fails its requests.
	disconnect(index int) error
	// writeBack writes back what is held for the block device.
	writeBack(index int) error
	// stuckAfter sets the age at which requests are checked.
	stuckAfter(index int, age time.Duration) error
}

// connection is what the kernel needs to know of a connection.
type connection struct {
	index       int
	size        int64 // bytes
	blockSize   int   // bytes
	flags       uint16
	deadTimeout time.Duration
	backend     string
	socket      int // a file descriptor
}

// Numbers from linux/nbd-netlink.h.
const (
	family        = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8
	attrBackend     = 10 // since Linux 5.14; older ones ignore it

	sockItem = 1
	sockFD   = 1
)

func blockPath(index int) string { return "/dev/nbd" + strconv.Itoa(index) }

// client is the real driver.
type client struct {
	dial  func() (*genetlink.Conn, error)
	sysfs string // block devices
}

func linux() driver {
	return client{
		dial:  func() (*genetlink.Conn, error) { return genetlink.Dial(nil) },
		sysfs: "/sys/block",
	}
}

// converse asks the kernel for the family of commands and calls f with it.
func (c client) converse(f func(conn *genetlink.Conn, id uint16) error) (err error) {
	conn, err := c.dial()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	fam, err := conn.GetFamily(family)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (netlink has no family %s)", ErrNoDriver, family)
	}
	if err != nil {
		return fmt.Errorf("ask netlink for the family %s: %w", family, err)
	}
	return f(conn, fam.ID)
}

func (c client) available() error {
	return c.converse(func(*genetlink.Conn, uint16) error { return nil })
}

// command sends one command and waits for its end.
func (c client) command(command uint8, attributes func(*netlink.AttributeEncoder)) error {
	e := netlink.NewAttributeEncoder()
	attributes(e)
	data, err := e.Encode()
	if err != nil {
		return err
	}
	return c.converse(func(conn *genetlink.Conn, id uint16) error {
		m := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: data}
		// The kernel always reports errors, but success only on request.
		_, err := conn.Execute(m, id, netlink.Request|netlink.Acknowledge)
		return err
	})
}

// attributes adds the attributes that connect and reconnect share.
func (c connection) attributes(e *netlink.AttributeEncoder) {
	e.Uint32(attrIndex, uint32(c.index))
	e.Uint64(attrSize, uint64(c.size))
	e.Uint64(attrBlockSize, uint64(c.blockSize))
	e.Uint64(attrServerFlags, uint64(c.flags))
	e.Uint64(attrDeadTimeout, uint64(c.deadTimeout/time.Second))
	e.String(attrBackend, c.backend)
	e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
			item.Uint32(sockFD, uint32(c.socket))
			return nil
		})
		return nil
	})
}

func (c client) connect(to connection) error {
	return c.command(cmdConnect, func(e *netlink.AttributeEncoder) {
		to.attributes(e)
		e.Uint64(attrTimeout, 0) // seconds; requests wait for ever
	})
}

// reconnect leaves the time-out as it is: setting it would also set io_timeout.
func (c client) reconnect(to connection) error { return c.command(cmdReconfigure, to.attributes) }

func (c client) disconnect(index int) error {
	return c.command(cmdDisconnect, func(e *netlink.AttributeEncoder) { e.Uint32(attrIndex, uint32(index)) })
}

// file returns the path of an attribute of a device in sysfs.
func (c client) file(index int, name string) string {
	return filepath.Join(c.sysfs, "nbd"+strconv.Itoa(index), name)
}

func (c client) devices() (map[int]string, error) {
	files, err := filepath.Glob(filepath.Join(c.sysfs, "nbd*", "backend"))
	if err != nil {
		return nil, err
	}
	found := map[int]string{}
	for _, file := range files {
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "nbd"))
		if err != nil {
			continue
		}
		backend, _, err := c.backend(index)
		if err != nil {
			return nil, err
		}
		if backend != "" {
			found[index] = backend
		}
	}
	return found, nil
}

func (c client) backend(index int) (backend string, connected bool, err error) {
	// The PID of the process that connected it stays until nobody holds it open.
	_, err = os.Stat(c.file(index, "pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	text, err := os.ReadFile(c.file(index, "backend"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", true, nil
	}
	return strings.TrimSuffix(string(text), "\n"), true, err
}

func (client) writeBack(index int) error { return blockdev.WriteBack(blockPath(index)) }

// stuckAfter writes only a value that differs, since Linux waits for all requests
// in flight before it changes an attribute of a queue.
func (c client) stuckAfter(index int, age time.Duration) error {
	file, want := c.file(index, "queue/io_timeout"), strconv.FormatInt(age.Milliseconds(), 10)
	if text, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(text)) == want {
		return err
	}
	return os.WriteFile(file, []byte(want), 0)
}
