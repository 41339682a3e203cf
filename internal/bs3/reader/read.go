// Package reader reads an open volume: the map, then chunk memory, then the
// caches, then the store.
//
// What chunk memory does not have lies in objects that never change. Reads look
// the map up without a lock; chunk memory is copied inside an era of Memory, and
// an object that a read has looked up is not deleted before the read has left
// Fetches. (With a disk cache, a read that misses in memory takes the chunk lock
// for a moment, to learn the epoch of an object.)
package reader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/era"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/rcache"
	"bs3/internal/device"
)

// Memory is what is not in the store yet.
type Memory interface {
	Enter() era.Visit
	Leave(era.Visit)
	// Read copies whole blocks from loc on to dst; false if the store has them.
	Read(dst []byte, loc layout.Location) bool
	// Has reports whether Read would find what lies at loc.
	Has(loc layout.Location) bool
	// Object returns what the object table says of object k; zero if it was
	// collected.
	Object(k key.Key) layout.ObjectInfo
}

// Config is what a Reader needs to know.
type Config struct {
	Store  objproxy.Store // must retry what may succeed later
	UUID   layout.UUID    // of the volume
	Map    mapproxy.View
	Memory Memory
	Life   *life.Life
	Log    zerolog.Logger

	BlockSize int   // bytes
	Size      int64 // of the volume, bytes
	ChunkSize int   // most bytes of data in an object

	Cache *rcache.Cache // in memory; nil without one
	Disk  *rcache.Disk  // nil without one

	// Readahead is the most that is read ahead of a sequential stream into Cache,
	// in bytes; 0 = nothing.
	Readahead   int64
	CacheSize   int64 // of Cache, bytes
	Downloaders int   // requests that Store makes at a time; 0 = enough
	// WholeObjects: objects of which little is wanted are fetched whole where Cache
	// holds what comes along.
	WholeObjects bool
	// Gathered, if set, is told which blocks of the volume are in Cache now that took so
	// many requests. It must not wait.
	Gathered func(block, blocks uint64, requests int)
	// Missing, if set, is told with err of a read that fails because an object that the
	// map needs is not in the store, and returns the error for it. Otherwise the log
	// says so.
	Missing func(ctx context.Context, err error) error
}

// Reader reads an open volume. It is safe for concurrent use.
type Reader struct {
	c       Config
	fetches era.Readers // from look-up to the last byte from the store
	flights flights
	ahead   *readahead // nil if nothing is read ahead
	wholes  wholes
	buffers *buffers
	inflow  inflow // of what is written
	misses  atomic.Uint64
	wrong   atomic.Uint64
}

// New returns a reader of the volume that c describes.
func New(c Config) *Reader {
	r := &Reader{c: c}
	large := 0
	if c.Cache != nil && c.Readahead > 0 {
		r.ahead = newReadahead(c.Downloaders)
		large = aheadFetches // Run drops them
		if c.WholeObjects {
			r.wholes.orders = make(chan *order, mostOrders)
			r.wholes.fetched = make(chan struct{}, 1)
			r.wholes.mu.underWay = make(map[key.Key]*order)
			r.wholes.mu.tried = make(map[key.Key]bool)
		}
	}
	r.buffers = newBuffers(layout.Stride(c.BlockSize), large)
	return r
}

// Close closes the caches. No read may come any more.
func (r *Reader) Close() error {
	var err error
	if r.c.Cache != nil {
		err = r.c.Cache.Close()
	}
	if r.c.Disk != nil {
		err = errors.Join(err, r.c.Disk.Close())
	}
	return err
}

// Fetches are the reads that may still ask the store for an object that they
// have looked up.
func (r *Reader) Fetches() *era.Readers { return &r.fetches }

// Misses returns how many reads had to ask the store.
func (r *Reader) Misses() uint64 { return r.misses.Load() }

// WrongAnswers returns how many answers of the store did not match their check
// values.
func (r *Reader) WrongAnswers() uint64 { return r.wrong.Load() }

// miss is a run of blocks whose bytes have to come from the store.
type miss struct {
	block uint64 // of the volume
	loc   layout.Location
	n     uint32 // blocks
	dst   []byte // nil: only the caches want them
	epoch uint64 // of the object, where it is needed and known
	ahead bool   // nobody has asked for it yet
}

// covers reports whether the block at loc is one of m.
func (m miss) covers(loc layout.Location) bool { return m.loc <= loc && loc < m.loc.Add(m.n) }

// part returns the n blocks of m from its block at on.
func (m miss) part(at, n uint32, blockSize int) miss {
	if m.dst != nil {
		m.dst = m.dst[int(at)*blockSize:][:int(n)*blockSize]
	}
	m.block, m.loc, m.n = m.block+uint64(at), m.loc.Add(at), n
	return m
}

// blocks appends the numbers of m's blocks to few.
func (m miss) blocks(few []uint64) []uint64 {
	for i := range m.n {
		few = append(few, m.block+uint64(i))
	}
	return few
}

// without calls f for each run of the blocks of m of which has says no, by their
// place in m.
func (m miss) without(has func(i uint32) bool, blockSize int, f func(miss)) {
	from := uint32(0) // of the blocks before i those from from on are not had
	for i := range m.n {
		if !has(i) {
			continue
		}
		if from < i {
			f(m.part(from, i-from, blockSize))
		}
		from = i + 1
	}
	if from < m.n {
		f(m.part(from, m.n-from, blockSize))
	}
}

// TryRead is Read, but returns false unless all of it is unmapped, in chunk
// memory or in the memory cache; the contents of p are undefined then.
func (r *Reader) TryRead(p []byte, off int64) bool {
	if r.c.Life.Err() != nil {
		return false
	}
	var few [16]sectormap.Run
	if !r.readMemory(p, off, few[:0], true, nil) {
		return false
	}
	if r.ahead != nil {
		r.ahead.passed(off, int64(len(p)))
	}
	return true
}

// readMemory fills p with what is unmapped or in memory. It hands other runs to
// missed, or, if that is nil, gives up at the first. Only the first try of a read
// counts for what the cache keeps.
func (r *Reader) readMemory(p []byte, off int64, runs []sectormap.Run, first bool, missed func(miss)) bool {
	v := r.c.Memory.Enter()
	defer r.c.Memory.Leave(v)
	bs := r.c.BlockSize
	runs = r.c.Map.Lookup(uint64(off)/uint64(bs), uint32(len(p)/bs), runs)
	for _, run := range runs {
		dst := p[:int(run.N)*bs]
		p = p[len(dst):]
		if !run.Loc.Mapped() {
			clear(dst)
		} else if !r.c.Memory.Read(dst, run.Loc) && !r.readCache(dst, run, first, missed) {
			return false
		}
	}
	return true
}

// readCache fills dst, the blocks of run, from the cache in memory. It hands
// those that are not there to missed, or, if that is nil, gives up.
func (r *Reader) readCache(dst []byte, run sectormap.Run, first bool, missed func(miss)) bool {
	bs := r.c.BlockSize
	has := func(i uint32) bool {
		loc, p := run.Loc.Add(i), dst[int(i)*bs:][:bs]
		return r.c.Cache != nil && (first && r.c.Cache.Get(loc, p) || !first && r.c.Cache.Peek(loc, p))
	}
	if missed != nil {
		miss{block: run.Block, loc: run.Loc, n: run.N, dst: dst}.without(has, bs, missed)
		return true
	}
	for i := range run.N {
		if !has(i) {
			return false
		}
	}
	return true
}

// attempt is what one try of a read has found, for the next one.
type attempt struct {
	tried  bool
	gone   layout.Location // is not in the store; 0 = none
	err    error           // about gone
	stream bool            // the read goes on where one before has ended
	waited time.Duration   // for what others fetch
}

// Read fills p, whole blocks within the volume, from off. It waits for the store
// for as long as ctx allows. Errors: device.ErrStopped, that of ctx,
// objproxy.ErrNotFound (wrapped) for data that is missing, those of the store.
func (r *Reader) Read(ctx context.Context, p []byte, off int64) error {
	if r.ahead != nil {
		r.ahead.passed(off, int64(len(p)))
	}
	for last := (attempt{}); ; {
		if err := r.c.Life.Err(); err != nil {
			return err
		}
		at, err := r.try(ctx, p, off, &last)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errUnchanged):
			if r.c.Missing != nil {
				last.err = r.c.Missing(ctx, last.err)
			} else {
				r.c.Log.Error().Err(last.err).Int64("offset", off).Msg("an object that the map needs is not in the store: data is missing")
			}
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, last.err)
		case errors.Is(err, objproxy.ErrNotFound):
			last.gone, last.err = at, err // the map may have moved on while we asked
		case !errors.Is(err, errAgain):
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		last.tried = true
	}
}

var (
	// errUnchanged: the map still shows the location that was not there.
	errUnchanged = errors.New("the map still needs the object")
	// errAgain: another read was fetching one of the blocks; the cache may have
	// all of them now.
	errAgain = errors.New("look again")
)

// try looks up and reads. An error is errUnchanged, errAgain, or about the
// location that it comes with. The first try of a read counts for reading ahead.
func (r *Reader) try(ctx context.Context, p []byte, off int64, last *attempt) (layout.Location, error) {
	v := r.fetches.Enter()
	defer r.fetches.Leave(v)
	var misses []miss
	r.readMemory(p, off, nil, !last.tried, func(m miss) { misses = append(misses, m) })
	// Anywhere in a run: where the runs begin depends on what the caches have.
	if slices.ContainsFunc(misses, func(m miss) bool { return m.covers(last.gone) }) {
		return last.gone, errUnchanged
	}
	if len(misses) == 0 {
		return 0, nil
	}
	if !last.tried {
		r.misses.Add(1)
		last.stream = r.ahead != nil && r.ahead.missed(off, int64(len(p)))
	}
	return r.fetchOnce(ctx, misses, last)
}

// Peek reads the first block as a user would, if it is in memory.
func (r *Reader) Peek() {
	v := r.c.Memory.Enter()
	defer r.c.Memory.Leave(v)
	if r.c.Life.Err() == nil { // otherwise nothing may be mapped any more
		r.readMemory(make([]byte, r.c.BlockSize), 0, nil, false, nil)
	}
}

// Allocation describes which of the n bytes at off are mapped, in order and
// without gaps. It may stop early, but describes at least one block if n > 0.
// It sends no request.
func (r *Reader) Allocation(off, n int64) []device.Extent {
	const most = 4096 // runs looked at in one answer; the rest is asked for again
	bs := uint64(r.c.BlockSize)
	var extents []device.Extent
	var few [64]sectormap.Run
	for block, left := uint64(off)/bs, uint64(n)/bs; left > 0 && len(extents) < most; {
		some := min(left, most) // a run for each of them, if it comes to that
		for _, run := range r.c.Map.Lookup(block, uint32(some), few[:0]) {
			x := device.Extent{Length: int64(run.N) * int64(bs), Hole: !run.Loc.Mapped()}
			if last := len(extents) - 1; last >= 0 && extents[last].Hole == x.Hole {
				extents[last].Length += x.Length
			} else {
				extents = append(extents, x)
			}
		}
		block, left = block+some, left-some
	}
	return extents
}
