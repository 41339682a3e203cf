package wlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// LogFile is what a Log needs of its file.
type LogFile interface {
	io.ReaderAt
	io.Closer
	// Writev writes all of bufs, one behind the other, at offset off, or returns
	// an error.
	Writev(bufs [][]byte, off int64) error
	// Datasync makes durable what was written.
	Datasync() error
}

// OpenLogFile opens the file of an existing log: OpenFile, or a test's
// replacement.
type OpenLogFile func(path string) (LogFile, error)

type osFile struct{ *os.File }

// OpenFile is the OpenLogFile of real files.
func OpenFile(path string) (LogFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the local log: %w", err)
	}
	return osFile{f}, nil
}

// mostParts is the most buffers that one call of pwritev(2) takes (IOV_MAX).
const mostParts = 1024

func (f osFile) Writev(bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := unix.Pwritev(int(f.Fd()), bufs[:min(len(bufs), mostParts)], off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		case n == 0:
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: io.ErrShortWrite}
		}
		off += int64(n)
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			bufs = slices.Concat([][]byte{bufs[0][n:]}, bufs[1:])
		}
	}
	return nil
}

func (f osFile) Datasync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}
