package rcache

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// diskFile is the file of a Disk.
type diskFile interface {
	io.ReaderAt
	// WritePieces writes pieces of memory, at most groupBlocks, one after the other from
	// off on.
	WritePieces(pieces [][]byte, off int64) error
	io.Closer
}

// osFile is a diskFile of the operating system.
type osFile struct{ *os.File }

func (f osFile) WritePieces(pieces [][]byte, off int64) error {
	left := 0
	for _, p := range pieces {
		left += len(p)
	}
	for left > 0 {
		n, err := unix.Pwritev(int(f.Fd()), pieces, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		left, off = left-n, off+int64(n)
		if left > 0 {
			pieces = behind(pieces, n)
		}
	}
	return nil
}

// behind returns what comes after the first n bytes of pieces.
func behind(pieces [][]byte, n int) [][]byte {
	for n >= len(pieces[0]) {
		n -= len(pieces[0])
		pieces = pieces[1:]
	}
	return append([][]byte{pieces[0][n:]}, pieces[1:]...)
}
