package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Every error of this package wraps exactly one of these; test for them with
// errors.Is.
var (
	// ErrMagic means that bs3 did not write the bytes, or not as what they were
	// read as.
	ErrMagic = errors.New("not written by bs3 as what it is read as")
	// ErrVersion means that bs3 wrote the bytes in a format that this program does
	// not know: a newer one, or one that is no longer in use.
	ErrVersion = errors.New("format is not one that this program knows")
	// ErrDamaged means that bs3 wrote the bytes, but a checksum or a rule of the
	// format does not hold. The text of the error tells what and where.
	ErrDamaged = errors.New("damaged")
	// ErrShortTail means that the tail passed to DecodeTail is intact but does
	// not reach back to the end of the data. It comes as a *ShortTailError.
	ErrShortTail = errors.New("tail too short")
)

// ShortTailError holds how much of the end of an object DecodeTail needs.
type ShortTailError struct {
	Need int // bytes
	Have int // bytes
}

func (e *ShortTailError) Error() string {
	return fmt.Sprintf("object: %v: %d bytes given, %d needed", ErrShortTail, e.Have, e.Need)
}

// Unwrap returns ErrShortTail.
func (e *ShortTailError) Unwrap() error { return ErrShortTail }

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

const magicSize = 8

// checkMark checks a magic and the version next to it. A decoder must not look
// at anything else before: a newer version may lay it out differently.
func checkMark(what, magic string, gotMagic, gotVersion []byte, version uint32) error {
	if string(gotMagic) != magic {
		return fmt.Errorf("%s: %w: magic is %q, not %q", what, ErrMagic, gotMagic, magic)
	}
	switch v := binary.LittleEndian.Uint32(gotVersion); v {
	case version:
		return nil
	case 0:
		return fmt.Errorf("%s: %w", what, damaged("version is 0"))
	default:
		return fmt.Errorf("%s: %w: version %d, not %d", what, ErrVersion, v, version)
	}
}

// checkHead checks the header of size bytes at the start of b: its length, its
// magic at 0, its version behind that, and its checksum, which lies at crcAt and
// covers all bytes before it. It returns the header.
func checkHead(what string, b []byte, size, crcAt int, magic string, version uint32) ([]byte, error) {
	if len(b) < size {
		return nil, fmt.Errorf("%s: %w: %d bytes, less than a header", what, ErrMagic, len(b))
	}
	b = b[:size]
	if err := checkMark(what, magic, b[:magicSize], b[magicSize:], version); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(b[crcAt:]) != CRC(b[:crcAt]) {
		return nil, fmt.Errorf("%s: %w", what, damaged("checksum of the header"))
	}
	return b, nil
}

// allZero reports whether b, which is reserved, is zero. Reserved bytes are
// written as zeros and checked, so that a later version can use them.
func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// pageSize is the alignment in bytes of the parts of files that are mapped, or
// written without being read first.
const pageSize = 4096

// alignPage rounds n up to a multiple of pageSize.
func alignPage(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

func checkBlockSize(n uint32) error {
	if n != 512 && n != 4096 {
		return damaged("block size is %d, not 512 or 4096", n)
	}
	return nil
}
