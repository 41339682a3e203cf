package devtest

import (
	"context"
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"bs3/internal/device"
)

// BlockDevice is a block device of Linux as a Volume, without the page cache. It
// lets the contract suite run through a driver of the kernel.
type BlockDevice struct {
	f *os.File
	g device.Geometry
}

var _ device.Volume = (*BlockDevice)(nil)

// OpenBlockDevice opens the device at path, which shows a volume of geometry g.
// It is closed at the end of the test.
func OpenBlockDevice(t testing.TB, path string, g device.Geometry) *BlockDevice {
	t.Helper()
	mode := os.O_RDWR
	if g.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return &BlockDevice{f: f, g: g}
}

// Close closes the device before the end of the test.
func (b *BlockDevice) Close() error { return b.f.Close() }

// Geometry implements device.Volume.
func (b *BlockDevice) Geometry() device.Geometry { return b.g }

// Aligned returns n bytes of memory that O_DIRECT accepts.
func Aligned(n int) []byte {
	p := make([]byte, n+4096)
	at := int(-uintptr(unsafe.Pointer(&p[0])) & 4095)
	return p[at : at+n]
}

// ReadAt implements device.Volume.
func (b *BlockDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q := Aligned(len(p))
	_, err := b.f.ReadAt(q, off)
	copy(p, q)
	return err
}

// WriteAt implements device.Volume.
func (b *BlockDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q := Aligned(len(p))
	copy(q, p)
	_, err := b.f.WriteAt(q, off)
	return err
}

// Flush implements device.Volume.
func (b *BlockDevice) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.f.Sync()
}

// Discard implements device.Volume.
func (b *BlockDevice) Discard(ctx context.Context, off, n int64) error {
	return b.ioctl(ctx, unix.BLKDISCARD, off, n)
}

// WriteZeroes implements device.Volume.
func (b *BlockDevice) WriteZeroes(ctx context.Context, off, n int64) error {
	return b.ioctl(ctx, unix.BLKZEROOUT, off, n)
}

func (b *BlockDevice) ioctl(ctx context.Context, op uintptr, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	extent := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, b.f.Fd(), op, uintptr(unsafe.Pointer(&extent))); errno != 0 {
		return errno
	}
	return nil
}
