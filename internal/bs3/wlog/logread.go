package wlog

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"bs3/internal/bs3/layout"
)

// found is a frame that verified when the log was opened.
type found struct {
	offset      int64  // in the file
	first, next uint64 // sequence numbers: of its first record, after its last
}

// OpenLog opens the local log that an earlier daemon left and finds the frames
// of its owner; unless it has no owner, that reads all of the file. The error
// wraps fs.ErrNotExist if there is no log and ErrDamaged if the file is not one;
// other errors are the disk's.
func (d *Dir) OpenLog(open OpenLogFile) (l *Log, err error) {
	l = &Log{path: d.file(LogFileName)}
	if l.file, err = open(l.path); err != nil {
		return nil, err
	}
	if err := l.readHeader(); err != nil {
		return nil, errors.Join(fmt.Errorf("local log %s: %w", l.path, err), l.file.Close())
	}
	if l.head.Nonce == (layout.Nonce{}) {
		return l, nil
	}
	if err := l.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("read the local log %s: %w", l.path, err), l.file.Close())
	}
	return l, nil
}

func (l *Log) readHeader() error {
	page := make([]byte, layout.LogHeaderSize)
	if _, err := l.file.ReadAt(page, 0); errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: shorter than its header", ErrDamaged)
	} else if err != nil {
		return err
	}
	h, err := layout.DecodeLogHeader(page)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	st, err := os.Stat(l.path)
	if err != nil {
		return err
	}
	if st.Size() != layout.LogHeaderSize+h.Size {
		return fmt.Errorf("%w: it has %d bytes, its header says %d", ErrDamaged, st.Size(), layout.LogHeaderSize+h.Size)
	}
	l.head = *h
	return nil
}

// scan finds every frame of the owner that verifies. A frame may begin at any
// page: the frame before it may be whole, torn or partly overwritten.
func (l *Log) scan() error {
	window := make([]byte, 1<<20)
	have, from := 0, int64(0) // window[:have] is what lies in the ring from offset from
	for at := int64(0); at < l.head.Size; {
		if at >= from+int64(have) {
			from, have = at, int(min(int64(len(window)), l.head.Size-at))
			if _, err := l.file.ReadAt(window[:have], layout.LogHeaderSize+from); err != nil {
				return err
			}
		}
		size := int64(layout.LogAlign)
		h, err := layout.DecodeFrameHeader(window[at-from : have])
		if err == nil && l.mine(h, at) {
			f, _, _, err := l.read(layout.LogHeaderSize + at)
			switch {
			case err == nil:
				l.found = append(l.found, found{layout.LogHeaderSize + at, f.FirstSeq, f.NextSeq()})
				l.synced, l.last = max(l.synced, f.Synced), max(l.last, f.NextSeq())
				size = f.Size()
			case !errors.Is(err, layout.ErrDamaged):
				return err
			}
		}
		at += size
	}
	slices.SortFunc(l.found, func(a, b found) int { return cmp.Compare(a.first, b.first) })
	return nil
}

// mine reports whether a frame at offset at of the ring can be the owner's.
func (l *Log) mine(h layout.FrameHeader, at int64) bool {
	return h.UUID == l.head.UUID && h.Nonce == l.head.Nonce && h.BlockSize == l.head.BlockSize &&
		h.Position%l.head.Size == at && h.Size() <= l.head.Size-at
}

// read reads and verifies the frame at an offset of the file. It returns the
// frame, its data, and the CRCs of its blocks.
func (l *Log) read(offset int64) (*layout.Frame, []byte, []uint32, error) {
	fixed := make([]byte, layout.FrameHeaderSize)
	if _, err := l.file.ReadAt(fixed, offset); err != nil {
		return nil, nil, nil, err
	}
	h, err := layout.DecodeFrameHeader(fixed)
	if err != nil {
		return nil, nil, nil, err
	}
	b := make([]byte, h.HeadSize()+h.DataSize())
	if _, err := l.file.ReadAt(b, offset); err != nil {
		return nil, nil, nil, err
	}
	f, err := layout.DecodeFrame(b)
	if err != nil {
		return nil, nil, nil, err
	}
	data := b[f.HeadSize():]
	crcs, err := f.VerifyData(data)
	return f, data, crcs, err
}

// Frames returns how many frames of the owner OpenLog found.
func (l *Log) Frames() int { return len(l.found) }

// Synced returns a sequence number below which, according to the frames found,
// everything was synced in the log or stored. A record below it that is in
// neither was lost by the disk.
func (l *Log) Synced() uint64 { return l.synced }

// Last returns the sequence number after that of the last record found; 0 if
// there is none.
func (l *Log) Last() (next uint64) { return l.last }

// Entries returns the records of one frame found, from the one with sequence
// number seq; none if no frame has that. It is cheapest where seq ascends from
// call to call. Errors: ErrDamaged, those of the disk.
func (l *Log) Entries(seq uint64) ([]Entry, error) {
	if l.reading > 0 && l.found[l.reading-1].next > seq {
		l.reading = 0 // it is read again
	}
	for l.reading < len(l.found) && l.found[l.reading].next <= seq {
		l.reading++
	}
	if l.reading == len(l.found) || l.found[l.reading].first > seq {
		return nil, nil
	}
	f, data, crcs, err := l.read(l.found[l.reading].offset)
	if errors.Is(err, layout.ErrDamaged) || errors.Is(err, layout.ErrMagic) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err) // it verified when the log was opened
	}
	if err != nil {
		return nil, fmt.Errorf("read the local log %s: %w", l.path, err)
	}
	var entries []Entry
	bs, stride, at := int(f.BlockSize), layout.Stride(int(f.BlockSize)), 0
	for _, r := range f.Records {
		n := 0
		if r.Kind == layout.KindWrite {
			n = int(r.Blocks)
		}
		if r.Seq >= seq {
			entries = append(entries, NewEntry(r, data[at*stride:][:n*stride], crcs[at:at+n], bs))
		}
		at += n
	}
	return entries, nil
}
