package wlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another living process uses the directory.
var ErrLocked = errors.New("in use by another daemon")

// The names of the files that SetAside can rename.
const (
	MemoryFileName = "memory"
	LogFileName    = "log"
)

// newLogName is the name of a local log that is not finished.
const newLogName = LogFileName + ".new"

// Dir is a locked directory of one daemon, for its state or for its local log
// and cache.
type Dir struct {
	path string
	lock *os.File
}

// LockDir creates the directory if it is missing (mode 0700) and takes its
// lock, which ends with the process at the latest. If another process has the
// lock, the error wraps ErrLocked and names that process's pid.
func LockDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(f.Name()) // only for the message
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("directory %s: %w (pid %s)", path, ErrLocked, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock the directory %s: %w", path, err)
	}
	d := &Dir{path: path, lock: f}
	if err := d.writePID(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dir) writePID() error {
	if err := d.lock.Truncate(0); err != nil {
		return fmt.Errorf("write the pid into %s: %w", d.lock.Name(), err)
	}
	if _, err := d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write the pid into %s: %w", d.lock.Name(), err)
	}
	return nil
}

// Path returns the path of the directory.
func (d *Dir) Path() string { return d.path }

// InMemory reports whether the directory is gone when the machine goes down
// (tmpfs, ramfs; statfs(2)). It returns false if it cannot tell.
func (d *Dir) InMemory() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		return false
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
}

// Close releases the lock. Closing again has no effect.
func (d *Dir) Close() error { return closeOnce(d.lock) }

// closeOnce closes c, and ignores that it is closed already.
func closeOnce(c io.Closer) error {
	if err := c.Close(); !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

// sync makes the directory's entries durable.
func (d *Dir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("sync the directory %s: %w", d.path, err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// SetAside renames a file so that no later open takes it for its own. It returns
// the new path.
func (d *Dir) SetAside(name string) (string, error) {
	for n := 1; ; n++ {
		to := fmt.Sprintf("%s.aside-%d", d.file(name), n)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(d.file(name), to); err != nil {
			return "", fmt.Errorf("set %s aside: %w", d.file(name), err)
		}
		return to, d.sync()
	}
}

// RemoveLog removes the local log and an unfinished one, if they exist.
func (d *Dir) RemoveLog() error {
	for _, name := range []string{LogFileName, newLogName} {
		if err := os.Remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the local log: %w", err)
		}
	}
	return d.sync()
}
