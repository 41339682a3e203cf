// Package volume is what the store holds of a volume: its record, its log, its
// checkpoints. Reading needs no epoch and may happen beside a writer; changing
// the record needs an Owner.
//
// Everything here is safe for concurrent use unless it says otherwise.
package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
)

// What an open, the requests of a volume, and its readers may answer. They come
// wrapped.
var (
	// ErrFenced: another writer has taken the volume over. This one is done for
	// good; what it acknowledged and did not store is lost to the volume.
	ErrFenced = errors.New("fenced")
	// ErrRefused: the volume, or what lies where it should, does not fit what
	// was asked for. No data was changed; a person has to decide.
	ErrRefused = errors.New("refused")
	// ErrStore: the store could not be used within the time that an open gives it.
	ErrStore = errors.New("the store cannot be used")
	// ErrNoVolume: there is no volume record.
	ErrNoVolume = errors.New("no volume here")
	// ErrMoving: a writer replaced checkpoints faster than they could be read.
	ErrMoving = errors.New("the volume changes faster than it can be checked; try again, or while it is not written")
	// ErrMoved: what was read is not what the volume record names any more.
	ErrMoved = errors.New("the writer has replaced the checkpoints")
)

// MostRestarts is how often a reader begins again because the writer has
// replaced the checkpoints that it was reading.
const MostRestarts = 20

// Length is how much log roll-forward has to read, and what it does not learn
// from that.
type Length struct {
	Objects int
	Bytes   int64
	Deleted int // objects that were taken off the object table
}

// Add adds m to l.
func (l *Length) Add(m Length) {
	l.Objects += m.Objects
	l.Bytes += m.Bytes
	l.Deleted += m.Deleted
}

// LengthOf returns the length of a log that consists of one object with that
// many data blocks, of blockSize bytes each, and that many records.
func LengthOf(blocks, blockSize, records int) Length {
	return Length{Objects: 1, Bytes: int64(blocks*layout.Stride(blockSize) + layout.TailSize(records))}
}

// RequestBytes is how many bytes of transfer a request to a store costs, about: two
// runs of an object that lie no further apart are fetched together.
const RequestBytes = 64 << 10

// Move is a live block that is to be written again.
type Move struct {
	Block  uint64
	Source layout.Location // where it was read
	CRC    uint32          // of its bytes
}

// IsDamage reports whether err is an answer about an object itself (it is not
// there, or does not verify), rather than a failure to get it.
func IsDamage(err error) bool {
	return errors.Is(err, objproxy.ErrNotFound) || IsUnreadable(err)
}

// IsUnreadable reports whether err says that what is there is not what was put:
// it does not verify, the store itself can tell, or it is too short.
func IsUnreadable(err error) bool {
	for _, answer := range []error{layout.ErrDamaged, layout.ErrMagic, layout.ErrVersion, layout.ErrShortTail, objproxy.ErrDamaged, objproxy.ErrRange} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return false
}

// WrongBlock is the error for data block index of object k, in which block of the
// volume lies, when the store goes on to return other bytes than were written:
// layout.ErrDamaged, wrapped.
func WrongBlock(k key.Key, index uint32, block uint64) error {
	return fmt.Errorf("object %d (%s), data block %d, which is block %d of the volume: %w: the store returns other bytes than were written; %s",
		k, k.Name(), index, block, layout.ErrDamaged, remedy)
}

// WrongObject adds to err, which says what is wrong with an object, that block of
// the volume lies there.
func WrongObject(err error, block uint64) error {
	return fmt.Errorf("%w; block %d of the volume lies there; %s", err, block, remedy)
}

const remedy = "find all such blocks with bs3 fsck --data, and restore them from a backup"

// Fits returns layout.ErrDamaged (wrapped) if o cannot be of a volume of so many
// blocks of blockSize bytes.
func Fits(o *layout.Object, blockSize int, blocks uint64) error {
	if int(o.BlockSize) != blockSize {
		return fmt.Errorf("object %d: %w: blocks of %d bytes", o.Key, layout.ErrDamaged, o.BlockSize)
	}
	for i, r := range o.Records {
		if r.Block+uint64(r.Blocks) > blocks {
			return fmt.Errorf("object %d: %w: record %d reaches to block %d of %d", o.Key, layout.ErrDamaged, i, r.Block+uint64(r.Blocks), blocks)
		}
	}
	return nil
}

// EpochOf returns the epoch in the name of a checkpoint or a pack; ok is false
// if name is of neither.
func EpochOf(name string) (epoch uint64, ok bool) {
	if _, epoch, _, err := layout.ParseCheckpointName(name); err == nil {
		return epoch, true
	}
	epoch, _, err := layout.ParsePackName(name)
	return epoch, err == nil
}

// IsPart reports whether name is of an object, a checkpoint or a pack.
func IsPart(name string) bool {
	_, notObject := key.Parse(name)
	_, ok := EpochOf(name)
	return ok || notObject == nil
}

// RetryWait is how long to wait before another try where objproxy.Retry has no
// reason to try again.
const RetryWait = 10 * time.Second

// Denials counts how often in a row the condition of a put did not hold.
type Denials int

// mostDenials is how many of them other writers and lost answers explain.
const mostDenials = 3

// Again is called when the condition of a put of name does not hold, although
// it came from what was there a moment ago. A store that goes on to say so
// contradicts itself: then Again logs that and waits, before what is there is
// read once more.
func (n *Denials) Again(ctx context.Context, name string, log zerolog.Logger) error {
	if *n++; *n <= mostDenials {
		return nil
	}
	log.Error().Str("name", name).Int("times", int(*n)).Msg("the store denies a condition that holds by what it shows; trying again")
	return objproxy.Sleep(ctx, RetryWait)
}

// Growth is how the log has grown since the last checkpoint, and what that says
// of the next one.
type Growth struct {
	Length        // sealed
	Open   bool   // more is in the open chunk
	Table  int    // objects in the object table
	Live   uint64 // blocks that are mapped
}

// Cut is one moment of a volume: the map with exactly the objects of the log up
// to Last.
type Cut struct {
	Last  key.Key
	Seq   uint64 // of the next record
	Grown Length // the log since the cut before
	Map   *mapproxy.Frozen
}
