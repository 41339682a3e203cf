package wlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// Log is the local log: a ring of frames in one file. All blocks of the file are
// allocated and written in advance, so that a sync writes what was written and
// no metadata of the file system. The caller serialises all calls, except that
// one goroutine at a time may call Write and Sync while others call the rest.
type Log struct {
	head     layout.LogHeader
	file     LogFile
	path     string
	position int64    // up to which the ring was handed out
	inUse    []extent // oldest first, of ascending keys
	found    []found  // what OpenLog found, by sequence number
	reading  int      // of found, where Entries goes on
	synced   uint64   // the highest Synced of the frames found
	last     uint64   // after the last record found
	heads    []byte   // of the frames being written
	parts    [][]byte
	zeros    [layout.LogAlign]byte
}

// extent is a part of the ring that holds frames of one object.
type extent struct {
	key      key.Key
	from, to int64 // positions
}

// CreateLog creates an empty log of size bytes in place of an existing one. It
// takes a while because it writes all of the file.
func (d *Dir) CreateLog(ctx context.Context, size int64, open OpenLogFile) (*Log, error) {
	l := &Log{head: layout.LogHeader{BlockSize: 512, Size: size &^ (layout.LogAlign - 1)}, path: d.file(LogFileName)}
	if err := l.create(ctx, d.file(newLogName)); err != nil {
		_ = os.Remove(d.file(newLogName))
		return nil, fmt.Errorf("create the local log %s of %d MiB: %w", l.path, size>>20, err)
	}
	if err := d.sync(); err != nil {
		return nil, err
	}
	var err error
	l.file, err = open(l.path)
	return l, err
}

func (l *Log) create(ctx context.Context, unfinished string) error {
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(unfinished, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	total := layout.LogHeaderSize + l.head.Size
	// Where the file system cannot do this, writing shows whether there is room.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, total); errors.Is(err, unix.ENOSPC) {
		return err
	}
	if _, err := f.Write(layout.AppendLogHeader(nil, &l.head)); err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at := int64(layout.LogHeaderSize); at < total; at += int64(len(zeros)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := f.Write(zeros[:min(int64(len(zeros)), total-at)]); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(unfinished, l.path)
}

// Path returns the path of the file, for messages.
func (l *Log) Path() string { return l.path }

// Header returns the header of the file.
func (l *Log) Header() layout.LogHeader { return l.head }

// Close closes the file. Closing again has no effect.
func (l *Log) Close() error { return closeOnce(l.file) }

// Own empties the log and gives it to the writer nonce: from now on only that
// writer's frames count. The zero nonce gives it to nobody. Own syncs the file.
func (l *Log) Own(uuid layout.UUID, nonce layout.Nonce, blockSize int) error {
	l.head.UUID, l.head.Nonce, l.head.BlockSize = uuid, nonce, uint32(blockSize)
	l.position, l.inUse, l.found, l.reading, l.synced, l.last = 0, nil, nil, 0, 0, 0
	if err := l.file.Writev([][]byte{layout.AppendLogHeader(nil, &l.head)}, 0); err != nil {
		return fmt.Errorf("local log %s: %w", l.path, err)
	}
	return l.Sync()
}

// Addition is a frame to be written, with its data: stored blocks. Write sums
// them up.
type Addition struct {
	layout.Frame
	Data []byte
}

// Reserve assigns the frames their positions and reports whether there is room
// for all of them; if not, it reserves nothing. Keys must not descend, within
// one call or from one call to the next.
func (l *Log) Reserve(batch []Addition) bool {
	position, n := l.position, len(l.inUse)
	var last extent
	if n > 0 {
		last = l.inUse[n-1]
	}
	for i := range batch {
		if !l.reserve(&batch[i].FrameHeader) {
			l.position, l.inUse = position, l.inUse[:n]
			if n > 0 {
				l.inUse[n-1] = last
			}
			return false
		}
	}
	return true
}

func (l *Log) reserve(h *layout.FrameHeader) bool {
	at, size := l.position, h.Size()
	if rest := l.head.Size - at%l.head.Size; size > rest {
		at += rest // no frame wraps around the end
	}
	oldest := at
	if len(l.inUse) > 0 {
		oldest = l.inUse[0].from
	}
	if at+size-oldest > l.head.Size {
		return false
	}
	h.Position = at
	if n := len(l.inUse) - 1; n >= 0 && l.inUse[n].key == h.Key {
		l.inUse[n].to = at + size
	} else {
		l.inUse = append(l.inUse, extent{h.Key, at, at + size})
	}
	l.position = at + size
	return true
}

// Release frees the room of the frames of keys up to durable.
func (l *Log) Release(durable key.Key) {
	n := 0
	for n < len(l.inUse) && l.inUse[n].key <= durable {
		n++
	}
	l.inUse = slices.Delete(l.inUse, 0, n)
}

// Used returns how many bytes of the ring are in use.
func (l *Log) Used() int64 {
	if len(l.inUse) == 0 {
		return 0
	}
	return l.position - l.inUse[0].from
}

// Write writes frames at the positions that Reserve assigned, without syncing.
// After an error it is unknown which of their bytes the disk has.
func (l *Log) Write(batch []Addition) error {
	l.heads = l.heads[:0]
	size := 0
	for i := range batch {
		size += int(batch[i].HeadSize())
	}
	l.heads = slices.Grow(l.heads, size) // parts point into it, so it must not move
	for len(batch) > 0 {
		n, from, to := 0, batch[0].Position, batch[0].Position
		l.parts = l.parts[:0]
		for ; n < len(batch) && batch[n].Position == to && (n == 0 || to%l.head.Size != 0); n++ {
			start := len(l.heads)
			batch[n].Sum = layout.AddSum(0, batch[n].Data, int(batch[n].BlockSize))
			l.heads = layout.AppendFrame(l.heads, &batch[n].Frame)
			l.parts = append(l.parts, l.heads[start:])
			if len(batch[n].Data) > 0 {
				l.parts = append(l.parts, batch[n].Data)
			}
			if rest := batch[n].Size() - batch[n].HeadSize() - batch[n].DataSize(); rest > 0 {
				l.parts = append(l.parts, l.zeros[:rest])
			}
			to += batch[n].Size()
		}
		if err := l.file.Writev(l.parts, layout.LogHeaderSize+from%l.head.Size); err != nil {
			return fmt.Errorf("local log %s: %w", l.path, err)
		}
		batch = batch[n:]
	}
	clear(l.parts[:cap(l.parts)])
	return nil
}

// Sync makes durable what was written before. After an error the disk may have
// lost it, even if a later Sync succeeds.
func (l *Log) Sync() error {
	if err := l.file.Datasync(); err != nil {
		return fmt.Errorf("sync the local log %s: %w", l.path, err)
	}
	return nil
}
