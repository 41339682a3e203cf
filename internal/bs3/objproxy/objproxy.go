// Package objproxy is the way to the object store: the Store interface with
// its errors, and the wrappers (two priorities, retry) that give every store
// the same manners. The stores themselves are leaves: s3, dir, and the memory
// store of objtest.
package objproxy

import (
	"context"
	"errors"
	"io"
	"time"
)

// The answers of a store that mean something to its callers. Stores return
// them wrapped; ask with errors.Is. Any other error is permanent: the request
// was understood and refused (credentials, a full disk, a bad name).
var (
	// ErrNotFound: the store was reached and says that there is no such
	// object. A bucket that is missing, or a bodyless 404, is not this.
	ErrNotFound = errors.New("object not found")
	// ErrExists: the condition of a Put does not hold. What is there may be
	// the caller's own, if an answer was lost on the way: only reading it tells.
	ErrExists = errors.New("condition failed: another object or version is there")
	// ErrRange: the object is there and ends before the range that was asked
	// for. Asking again will not help.
	ErrRange = errors.New("range reaches past the end of the object")
	// ErrTransient: the store did not answer, or answered that it is busy. A
	// Put that ends so may have been stored, or may be stored later.
	ErrTransient = errors.New("store did not answer properly")
)

// Version identifies the bytes under a name; it changes with every Put and
// never returns. It is opaque (an ETag, for S3).
type Version string

// Info describes one stored object.
type Info struct {
	Name     string
	Size     int64     // bytes
	Version  Version   // empty in the answers of a List where the store gives none
	Modified time.Time // for people; never used for correctness
}

// Condition guards a Put. The zero value puts unconditionally.
type Condition struct {
	absent    bool
	isVersion bool // an empty version is a condition too: one that never holds
	version   Version
}

// IfAbsent lets a Put succeed only where no object has the name.
func IfAbsent() Condition { return Condition{absent: true} }

// IfVersion lets a Put succeed only over exactly version v.
func IfVersion(v Version) Condition { return Condition{isVersion: true, version: v} }

// Absent says whether c is IfAbsent.
func (c Condition) Absent() bool { return c.absent }

// Version gives the version c asks for, and whether it asks for one.
func (c Condition) Version() (Version, bool) { return c.version, c.isVersion }

// Body is the content of a Put in two parts that need not be contiguous, so
// that data is sent from where it lies: a chunk and its footer. A store may
// read it several times and still read after Put has returned (net/http
// does): the memory may be reused only after every reader was closed.
type Body struct {
	Data, Tail []byte
	// Opened and Closed, if set, are called for each reader that a store opens
	// and closes. They must be quick and safe for concurrent use.
	Opened, Closed func()
}

// Size is the length of the body in bytes.
func (b Body) Size() int64 { return int64(len(b.Data) + len(b.Tail)) }

// Store is a place for immutable objects. Every method takes all bytes or
// returns an error, honours ctx, and is safe for concurrent use.
type Store interface {
	// Put stores body under name if cond holds, and returns the version it
	// got. Errors: ErrExists, ErrTransient, others.
	Put(ctx context.Context, name string, body Body, cond Condition) (Version, error)
	// Get fills p from offset off of the object, or fails: a range that
	// reaches past the end is ErrRange. With off < 0 it reads the
	// last len(p) bytes, or all if the object is shorter, and n says how many
	// there were; p then holds them from its start. Info belongs to the very
	// bytes returned. Errors: ErrNotFound, ErrRange, ErrTransient, others.
	Get(ctx context.Context, name string, p []byte, off int64) (n int, info Info, err error)
	// List gives up to limit (>0) objects whose names start with prefix and
	// sort after after, in ascending order. Fewer than limit = no more.
	List(ctx context.Context, prefix, after string, limit int) ([]Info, error)
	// Delete removes the named objects; one that is not there counts as
	// removed. The error, if any, joins one *DeleteError per name that failed.
	Delete(ctx context.Context, names []string) error
}

// Open gives a fresh reader over the body for one attempt at sending it.
func (b Body) Open() io.ReadSeekCloser {
	if b.Opened != nil {
		b.Opened()
	}
	return &bodyReader{body: b}
}
