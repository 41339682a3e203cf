// Package objproxy defines the object store, Store, with its errors, and the
// wrappers that give every store the same behaviour (priorities, retry and
// others). The stores themselves are leaves: s3, dir, and the memory store of
// objtest.
package objproxy

import (
	"context"
	"errors"
	"io"
	"time"
)

// The errors of a store that its callers distinguish. Stores return them
// wrapped; test for them with errors.Is. Any other error is permanent: the
// store understood the request and refused it (credentials, a full disk, a bad
// name).
var (
	// ErrNotFound means that the store was reached and has no such object. It
	// does not mean that the place of all objects (a bucket, a directory) is
	// missing, or that something in between answered.
	ErrNotFound = errors.New("object not found")
	// ErrExists means that the condition of a Put does not hold. What is there
	// may be the caller's own if an answer was lost; only reading it tells.
	ErrExists = errors.New("condition failed: another object or version is there")
	// ErrRange means that the object ends before the requested range does.
	// Asking again does not help.
	ErrRange = errors.New("range reaches past the end of the object")
	// ErrDamaged means that the object is there, but was cut off, extended or
	// replaced behind the store's back, and the store can tell. Asking again does
	// not help. Not every store can tell, and none looks at every byte.
	ErrDamaged = errors.New("what is there is not what was put")
	// ErrTransient means that the store did not answer or is busy. A Put that
	// fails with it may have been stored, or may be stored later.
	ErrTransient = errors.New("store did not answer properly")
)

// Version identifies the bytes under a name. It is opaque. Other bytes have
// another version; equal bytes put again may have the same one.
type Version string

// Info describes one stored object.
type Info struct {
	Name     string
	Size     int64     // bytes
	Version  Version   // may be empty in what List returns
	Modified time.Time // for people; never used for correctness
}

// Condition guards a Put. The zero value puts unconditionally.
type Condition struct {
	absent    bool
	isVersion bool // an empty version is a condition too, which never holds
	version   Version
}

// IfAbsent returns the condition that no object has the name.
func IfAbsent() Condition { return Condition{absent: true} }

// IfVersion returns the condition that the object has exactly version v.
func IfVersion(v Version) Condition { return Condition{isVersion: true, version: v} }

// Absent reports whether c is IfAbsent.
func (c Condition) Absent() bool { return c.absent }

// Version returns the version that c requires, and reports whether it requires
// one.
func (c Condition) Version() (Version, bool) { return c.version, c.isVersion }

// Body is the content of a Put in two parts that need not be contiguous, so
// that data is sent from where it lies: a chunk and its tail. A store may read
// it several times, and may still read after Put has returned (net/http does).
// The memory may be reused only after every reader was closed.
type Body struct {
	Data, Tail []byte
	// Opened and Closed, if set, are called for each reader that a store opens
	// and closes. They must be quick and safe for concurrent use.
	Opened, Closed func()
}

// Size returns the length of the body in bytes.
func (b Body) Size() int64 { return int64(len(b.Data) + len(b.Tail)) }

// Store is a place for objects. Every method transfers all bytes or returns an
// error, honours ctx, and is safe for concurrent use.
type Store interface {
	// Put stores body under name if cond holds, and returns the version that it
	// got. A damaged object is there, so that IfAbsent does not hold; whether it
	// still has its version is the store's to say. Errors: ErrExists, ErrDamaged
	// (that cannot be said), ErrTransient, others.
	Put(ctx context.Context, name string, body Body, cond Condition) (Version, error)
	// Get fills p from offset off of the object; a range that reaches past the
	// end is ErrRange. With off < 0 it reads the last len(p) bytes into the
	// beginning of p, or all if the object is shorter. It returns the number of
	// bytes read, and info of the very object that they belong to. Errors:
	// ErrNotFound, ErrDamaged, ErrRange, ErrTransient, others.
	Get(ctx context.Context, name string, p []byte, off int64) (n int, info Info, err error)
	// List returns up to limit (>0) objects whose names start with prefix and
	// sort after after, in ascending order. If it returns fewer than limit,
	// there are no more. It does not look into the objects: damaged ones are
	// listed, with the size that they have.
	List(ctx context.Context, prefix, after string, limit int) ([]Info, error)
	// Delete removes the named objects; one that does not exist counts as
	// removed. The error, if any, joins one *DeleteError per name that failed.
	Delete(ctx context.Context, names []string) error
}

// Open returns a new reader of the body for one attempt to send it.
func (b Body) Open() io.ReadSeekCloser {
	if b.Opened != nil {
		b.Opened()
	}
	return &bodyReader{body: b}
}
