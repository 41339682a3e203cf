// Package listen opens the sockets of the daemon, by the conventions that unix
// sockets need.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen opens a socket. A unix socket gets mode 0600; one that a dead daemon
// left behind is replaced, a live one is an error. release removes what Listen
// made in the file system, if it is still there; a second call does nothing.
func Listen(ctx context.Context, network, address string) (l net.Listener, release func(), err error) {
	if network != "unix" {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return l, func() {}, err
	}
	// The mode must be right from the first moment, and the umask belongs to the
	// whole process. On Linux bind(2) makes the file with the socket's mode.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err = private.Listen(ctx, network, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(ctx, address); err != nil {
			return nil, nil, err
		}
		l, err = private.Listen(ctx, network, address)
	}
	if err != nil {
		return nil, nil, err
	}
	// The listener would remove the name without a look. But a process that
	// replaces our socket owns the name from then on.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	made, err := os.Lstat(address)
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, sync.OnceFunc(func() {
		if now, err := os.Lstat(address); err == nil && os.SameFile(made, now) {
			_ = os.Remove(address) // best effort: a stale socket is replaced at the next start
		}
	}), nil
}

// removeStale removes the socket at path unless a process serves it.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: it is not a socket", path)
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("%s is served by a live process", path), nc.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("find out whether the socket is served: %w", err)
	}
	return os.Remove(path)
}
