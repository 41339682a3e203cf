package bs3

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// Options are what Open needs to know.
type Options struct {
	// Store keeps the volume. It must retry what may succeed later, for as long
	// as ctx lasts (objproxy.NewRetry).
	Store objproxy.Store
	Log   zerolog.Logger
	Host  Host

	Size      int64 // bytes, a multiple of BlockSize
	BlockSize int   // bytes, 512 or 4096
	ChunkSize int   // bytes, a multiple of BlockSize
	IOMin     int   // bytes, for device.Geometry
	IOOpt     int   // bytes, for device.Geometry

	Durable bool          // a flush waits for the store
	Linger  time.Duration // how long a chunk stays open after its first write; 0 = until it is full or flushed
	Memory  int64         // bytes of chunk memory

	Uploaders   int // objects uploaded at a time, at least 1
	Downloaders int // requests for objects that Store makes at a time, of which half may read ahead; 0 = enough

	ReadCache int64 // bytes of memory for what was read or written lately; 0 = none
	Readahead int64 // bytes, the most that is read ahead of a sequential stream into the read cache; 0 = nothing
	// WholeObjects: see reader.Config. Without Readahead it has no effect.
	WholeObjects bool

	StatePath string // directory for the chunk memory; empty = on the heap, it dies with the process

	// CachePath is a directory on a disk of this machine; empty = none. Unless
	// Durable is set it keeps the local log, and a flush waits for that.
	CachePath string
	LogSize   int64 // bytes of the local log
	DiskCache int64 // bytes there for what was read or written lately; 0 = none
	// ForgetLocalLog opens a volume also if a local log may hold what was flushed
	// and that log is not here, or damaged: it is lost then.
	ForgetLocalLog bool
	openLog        wlog.OpenLogFile // in tests

	CheckpointInterval time.Duration // 0 = none by time
	SkipCheckpoint     bool          // write none but by Engine.Checkpoint
	GC                 gc.Options

	// Takeover opens a volume that a writer on another host did not release. That
	// writer, if it lives, is fenced; what it acknowledged and did not store is lost.
	Takeover bool

	// UnsafeNoFencing makes a volume also in a store without conditional puts:
	// then the administrator alone keeps a second writer away.
	UnsafeNoFencing bool

	// Identified, if set, is called by Open with the UUID of the volume, or of the one
	// that it is about to make, before anything of it is changed. An error ends the
	// open, which then leaves no trace in the store.
	Identified func(ctx context.Context, volume string) error

	// NotWhole, if set, is called by Open with the UUID of a volume that is not
	// Whole, before anything is kept by which a later open would find it so. It
	// takes away the devices that outlived a writer; an error ends the open.
	NotWhole func(ctx context.Context, volume string) error

	// Progress, if set, is told how Open gets on, from its goroutine.
	Progress func(OpenProgress)

	// OpenFor bounds how long Open asks a store that does not answer, if neither
	// chunk memory nor the local log holds writes; 0 = five minutes.
	OpenFor time.Duration
}

// OpenProgress says how far an open is. Stages follow each other.
type OpenProgress struct {
	Stage string // what is done now
	Done  int    // of its objects, or writes
	Total int    // of them, if it is known
}

// defaultOpenFor is OpenFor where that is 0.
const defaultOpenFor = 5 * time.Minute

// complete sets what is not set, and refuses what cannot be.
func (o *Options) complete() error {
	if n := o.slots(); n < 2 || n > layout.MaxSlots {
		return fmt.Errorf("%w: %d bytes of chunk memory hold %d chunks of %d bytes, not 2 to %d", volume.ErrRefused, o.Memory, n, o.ChunkSize, layout.MaxSlots)
	}
	if o.CachePath != "" && !o.Durable && o.LogSize < layout.LogAlign {
		return fmt.Errorf("%w: a local log of %d bytes", volume.ErrRefused, o.LogSize)
	}
	if o.UnsafeNoFencing {
		o.Store = objproxy.Unfenced(o.Store)
	}
	if o.openLog == nil {
		o.openLog = wlog.OpenFile
	}
	if o.OpenFor <= 0 {
		o.OpenFor = defaultOpenFor
	}
	return nil
}

// identified tells whoever asked to know which volume it is.
func (o *Options) identified(ctx context.Context, volume layout.UUID) error {
	if o.Identified == nil {
		return nil
	}
	return o.Identified(ctx, volume.String())
}

// slots is how many chunks the configured memory holds.
func (o *Options) slots() int { return int(o.Memory / int64(o.ChunkSize)) }

// blocks is the size of the volume.
func (o *Options) blocks() uint64 { return uint64(o.Size) / uint64(o.BlockSize) }

// chunkBlocks is how many data blocks an object has at most.
func (o *Options) chunkBlocks() int { return o.ChunkSize / o.BlockSize }
