// Package writer is the log of an open volume: what is written, flushed and
// stored, in order.
//
// A write goes into the open chunk and the map, under the chunk lock
// (write.go). A full or flushed chunk is sealed and goes to the upload workers
// (upload.go). The durable key moves on when that chunk and all below are
// stored, and only then is the chunk's memory used again (durable.go).
//
// The chunk lock, Log.mu, serialises everything that changes the order of the
// log: appending, sealing, taking keys, the map's changes, the durable key.
// Nothing is waited for under it. Who reads chunk memory enters an era instead
// (memory.go).
package writer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/era"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// Config is what a Log needs to know. All fields are required but the hooks and
// those whose comments allow zero.
type Config struct {
	Store objproxy.Store // must retry what may succeed later
	Owner *volume.Owner
	Life  *life.Life
	Log   zerolog.Logger

	BlockSize   int           // bytes
	ChunkBlocks int           // most data blocks of an object
	Slots       int           // chunks that chunk memory will hold, see AddSlots
	Durable     bool          // a flush waits for the store
	LocalLog    string        // directory of the local log, for which a flush waits unless Durable is set; empty = none
	Linger      time.Duration // how long a chunk stays open after its first write; 0 = until it is full or flushed
	Uploaders   int           // objects stored at a time

	// Grew, if set, is told when the log has grown, under the chunk lock: it
	// must not wait, nor call the Log.
	Grew func(volume.Growth)
	// Keep, if set, is given what was written to an object that the store has for
	// good, to put it into the read caches: blocks of the volume, as stored from loc on,
	// where layout.NoBlock is for none of them. stored is valid during the call. lend says
	// that it comes again, by Lend, if there is one, for the cache on the disk.
	Keep func(loc layout.Location, blocks []uint64, stored []byte, epoch uint64, lend bool)
	// Lend, if set, is given memory that is free, to put what it holds into the read cache
	// on the disk, under the chunk lock: it must not wait, nor call the Log. stored is
	// valid until revoke, which must not wait either, returns true, or until back is
	// called, by a goroutine without locks: one of them, and back once revoke has returned
	// false. A nil revoke means that nothing was lent.
	Lend func(loc layout.Location, blocks []uint64, stored []byte, epoch uint64, back func()) (revoke func() bool)
}

// Recovered is the log as an open found it in the store.
type Recovered struct {
	Map   *mapproxy.Proxy // with all objects up to Last
	Last  key.Key         // the writer's own fence, which ends the log
	Seq   uint64          // of the next record
	Grown volume.Length   // since the last checkpoint
}

// heapChunks bounds the chunks built outside chunk memory.
const heapChunks = 8

// Log is the log of an open volume. It is safe for concurrent use.
type Log struct {
	c        Config
	view     mapproxy.View
	readers  era.Readers // of chunk memory
	ring     ring
	uploads  *uploads
	heap     chan struct{}  // holds a token for each chunk that is built on the heap
	inMemory sync.WaitGroup // chunks whose slots are in use
	bodies   atomic.Int64   // readers of uploads that are not closed
	wg       sync.WaitGroup // uploaders, and a sync of the local log

	mu struct { // the chunk lock; see the package comment
		sync.Mutex
		maps     *mapproxy.Proxy
		cur      *chunk // the open chunk, or nil
		keys     key.Allocator
		seq      uint64 // of the next record
		free     []*wlog.Slot
		lent     []*loan       // free, too
		line     queue         // writers that wait for chunk memory
		probed   chan struct{} // who was first in line at the last Probe, and could go on
		durable  key.Key
		progress chan struct{} // closed when durable moves on, and replaced
		grown    volume.Length // since the last checkpoint
		flushes  gathering
		local    localLog
		written  int64 // bytes of data
	}
}

// New returns the log that continues r. It has no chunk memory yet
// (AddSlots), and stores nothing before Start.
func New(c Config, r Recovered) *Log {
	l := &Log{
		c:       c,
		view:    r.Map.View(),
		ring:    newRing(c.Slots + heapChunks),
		uploads: newUploads(),
		heap:    make(chan struct{}, heapChunks),
	}
	m := &l.mu
	m.maps, m.keys, m.seq, m.grown = r.Map, key.NewAllocator(r.Last+1), r.Seq, r.Grown
	m.durable, m.progress = r.Last, make(chan struct{})
	return l
}

// Start begins to store what is sealed, until Close.
func (l *Log) Start() {
	for range l.c.Uploaders {
		l.wg.Go(l.uploader)
	}
}

// Close ends what Start began. The life of the volume must have ended, and no
// request may come any more. What is not stored stays in chunk memory.
func (l *Log) Close() {
	l.mu.Lock() // nobody is about to write any more
	if c := l.mu.cur; c != nil {
		c.stopTimers()
	}
	l.mu.Unlock()
	l.uploads.close()
	l.wg.Wait()
}

// View returns the part of the map that needs no lock.
func (l *Log) View() mapproxy.View { return l.view }

// State is how a Log is doing.
type State struct {
	Seq     uint64  // of the next record
	Next    key.Key // that is given out next
	Durable key.Key // it and all below are in the store
	Free    int     // slots of chunk memory
	Waiting int     // writers, for chunk memory
	Written int64   // bytes of data, with what was replayed
	Objects int     // in the object table
	Total   uint64  // their data blocks
	Growth  volume.Growth

	Mode     string     // what a flush means: durable, local log or barrier
	LocalLog *LogStatus // nil in a mode without one
}

// Now returns the state. It waits for nothing but the chunk lock.
func (l *Log) Now() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now()
}

func (l *Log) now() State {
	m := &l.mu
	s := State{
		Seq: m.seq, Next: m.keys.Next(), Durable: m.durable, Free: len(m.free) + len(m.lent), Waiting: len(m.line.writers),
		Written: m.written, Growth: l.growth(), Mode: l.mode(), LocalLog: l.logStatus(),
	}
	s.Objects, _, s.Total = m.maps.Totals()
	return s
}

// AtRest reports whether everything that was written is in the store.
func (s State) AtRest() bool { return !s.Growth.Open && s.Durable == s.Next-1 }

func (l *Log) mode() string {
	switch {
	case l.c.Durable:
		return "durable"
	case l.c.LocalLog == "":
		return "barrier"
	case l.mu.local.log == nil: // it has failed
		return "durable"
	}
	return "local log"
}

// growth returns what Config.Grew is told. Under the chunk lock.
func (l *Log) growth() volume.Growth {
	g := volume.Growth{Length: l.mu.grown, Open: l.mu.cur != nil}
	g.Table, g.Live, _ = l.mu.maps.Totals()
	return g
}

// Grown returns how the log has grown since the last Freeze.
func (l *Log) Grown() volume.Growth {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.growth()
}

// Freeze seals the open chunk and takes the map as it is then, in one step. The
// Frozen of the Cut must be released.
func (l *Log) Freeze() volume.Cut {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.sealThrough()
	cut := volume.Cut{Last: last, Seq: l.mu.seq, Grown: l.mu.grown, Map: l.mu.maps.Freeze()}
	l.mu.grown = volume.Length{}
	return cut
}

// Regrow adds n, the Grown of a Cut, back to the growth of the log, because no
// checkpoint came of that Cut.
func (l *Log) Regrow(n volume.Length) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.grown.Add(n)
}

// errLineStuck: nobody has told the first writer of the line that it may go on.
var errLineStuck = errors.New("a writer waits for chunk memory although some is free")

// Probe returns nil when the log has shown that it moves: that the chunk lock
// can be had, readers of chunk memory leave, and writers do not wait for
// nothing. look is called in between. One probe runs at a time.
func (l *Log) Probe(ctx context.Context, look func()) error {
	if l.lineStuck() {
		return errLineStuck
	}
	look()
	return l.readers.Gone(ctx)
}

// lineStuck reports whether the first writer in line could go on, and could at
// the last call.
func (l *Log) lineStuck() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &l.mu
	var waits chan struct{} // the first writer, if it could go on
	// One of those that are lent may be in use, by a disk that hangs.
	if (len(m.free) > 0 || len(m.lent) > 1) && len(m.line.writers) > 0 {
		waits = m.line.writers[0]
	}
	stuck := waits != nil && waits == m.probed
	m.probed = waits
	return stuck
}

// Verify counts the live blocks of all objects anew, and returns the state at
// that moment, with an error if the object table does not say the same.
func (l *Log) Verify() (State, error) {
	l.mu.Lock()
	s, frozen := l.now(), l.mu.maps.Freeze()
	l.mu.Unlock()
	defer frozen.Release()
	return s, frozen.Verify()
}
