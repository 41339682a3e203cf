package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What a decoder says of bytes it does not accept. Every error of this package
// wraps exactly one of these; ask with errors.Is.
var (
	// ErrMagic: the bytes were not written by bs3, or not as what they were
	// read as.
	ErrMagic = errors.New("not written by bs3 as what it is read as")
	// ErrVersion: bs3 wrote them, in a format newer than this program knows.
	ErrVersion = errors.New("format is newer than this program")
	// ErrDamaged: bs3 wrote them, but a checksum or a rule of the format does
	// not hold. The text says what and where.
	ErrDamaged = errors.New("damaged")
	// ErrShortTail: the tail given to DecodeTail is intact but does not reach
	// back to the end of the data. It comes as a *ShortTailError.
	ErrShortTail = errors.New("tail too short")
)

// ShortTailError says how much of the end of an object DecodeTail needs.
type ShortTailError struct {
	Need int // bytes
	Have int // bytes
}

func (e *ShortTailError) Error() string {
	return fmt.Sprintf("object: %v: %d bytes given, %d needed", ErrShortTail, e.Have, e.Need)
}

// Unwrap gives ErrShortTail.
func (e *ShortTailError) Unwrap() error { return ErrShortTail }

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

const magicSize = 8

// checkMark judges a magic and the version beside it. Nothing else of a format
// may be looked at before: a newer version is free to lay it out differently.
func checkMark(what, magic string, gotMagic, gotVersion []byte, version uint32) error {
	if string(gotMagic) != magic {
		return fmt.Errorf("%s: %w: magic is %q, not %q", what, ErrMagic, gotMagic, magic)
	}
	switch v := binary.LittleEndian.Uint32(gotVersion); {
	case v > version:
		return fmt.Errorf("%s: %w: version %d, known up to %d", what, ErrVersion, v, version)
	case v == 0:
		return fmt.Errorf("%s: %w", what, damaged("version is 0"))
	}
	return nil
}

// allZero is for reserved bytes: they are written as zeros and checked, so
// that a later version can give them a meaning.
func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func checkBlockSize(n uint32) error {
	if n != 512 && n != 4096 {
		return damaged("block size is %d, not 512 or 4096", n)
	}
	return nil
}
