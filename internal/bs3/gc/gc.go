// Package gc gives back the space of what was overwritten or discarded: it
// moves the live blocks of thinly used objects into new ones, and deletes
// objects that nothing needs. Every failed step leaves the old data in charge.
package gc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/era"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// Log is the log that is collected.
type Log interface {
	// Objects returns what the object table says of at most n keys from from on,
	// and whether there are more; also the durable key and the next one.
	Objects(from key.Key, n int) (objects []layout.ObjectInfo, more bool, durable, next key.Key)
	// Live reports whether object k has live blocks.
	Live(k key.Key) bool
	// Dead returns those of keys that have none and are still in the table, in the
	// memory of keys.
	Dead(keys []key.Key) []key.Key
	// Forget takes deleted objects off the table, and returns the data blocks that
	// they had.
	Forget(keys []key.Key) (blocks uint64)
	// Slot returns memory for an object, when there is some. It goes back by Drop
	// or Rewrite.
	Slot(ctx context.Context) (*wlog.Slot, error)
	Drop(slot *wlog.Slot)
	// Rewrite makes slot, whose data blocks are those of moves, an object of the
	// log, and moves what still lies at its source, in one step. It returns how many
	// blocks that was.
	Rewrite(slot *wlog.Slot, moves []volume.Move) (moved int)
	// Fold gives back memory of the map around a block, where what was scattered has
	// come together.
	Fold(block uint64)
	// Grown returns, among others, how many objects the table has.
	Grown() volume.Growth
	// FlushToStore returns when all that was written before is in the store.
	FlushToStore(ctx context.Context) error
	// Written returns how many bytes were written since the open.
	Written() int64
	// Activity returns a number that grows with each write, and whether nothing
	// was written since the last checkpoint.
	Activity() (seq uint64, idle bool)
}

// Options govern the collection.
type Options struct {
	Wait        time.Duration // between two collections by time; 0 = none by time
	Step        int           // blocks looked at or moved before the foreground gets its turn
	IdleTimeout time.Duration // how long a step gives way while the foreground is busy
	LiveData    float64       // objects with a smaller share of live blocks are compacted
	MaxGarbage  float64       // share of garbage in the log above which compaction starts by itself; 0 = never
	MaxMoves    float64       // most bytes moved by time to merge and sort objects, as a share of those written; 0 = none
	Eager       bool          // merge and sort for any gain: in tests of small volumes
	Reserve     int64         // least bytes kept in the store for a collection to give up when it is full; 0 = none
}

// Report says what a collection did.
type Report struct {
	Compacted   int   `json:"compacted"`    // objects whose live blocks were moved
	MovedBytes  int64 `json:"moved_bytes"`  // live blocks written again
	Deleted     int   `json:"deleted"`      // objects removed from the store
	FreedBytes  int64 `json:"freed_bytes"`  // their data blocks
	FailedReads int   `json:"failed_reads"` // objects that could not be read or did not verify: left as they are
}

// Add adds o to r.
func (r *Report) Add(o Report) {
	r.Compacted += o.Compacted
	r.MovedBytes += o.MovedBytes
	r.Deleted += o.Deleted
	r.FreedBytes += o.FreedBytes
	r.FailedReads += o.FailedReads
}

// Config is what a Collector needs to know.
type Config struct {
	Options
	Store       objproxy.Store // must retry what may succeed later
	UUID        layout.UUID
	Log         Log
	Map         mapproxy.View
	Checkpoints *checkpoint.Keeper
	Fetches     *era.Readers  // who may still ask for an object that they have looked up
	Misses      func() uint64 // reads that had to ask the store
	// Cached copies the block at a location to dst, if the read cache has it, and does
	// not count as a read; nil without one.
	Cached      func(loc layout.Location, dst []byte) bool
	Life        *life.Life
	Logger      zerolog.Logger
	BlockSize   int // bytes
	ChunkBlocks int // most data blocks of an object

	// Outcome takes how background work went.
	Outcome func(what string, err error)
}

// Collector collects the garbage of an open volume. Collect, CollectInOrder, Plan,
// PlanDefrag, Look, GiveBack, Collected, Tidied, Progress, Spread and Undeleted are safe for
// concurrent use; the rest is Run's.
type Collector struct {
	c          Config
	objects    volume.Objects
	sortChunks int   // of live blocks that are written in order
	readers    int   // objects read at a time
	part       int64 // most bytes that Defrag moves before it gives back what is dead then
	requests   chan request
	gathered   chan gathered
	rewritten  key.Key       // the last one after what was gathered was written back. Run's
	deleting   chan struct{} // holds a token while what is dead is deleted
	reserve    reserve
	tidyAt     tidiness // when there was nothing to tidy; zero: not known. Run's
	sorted     class    // Run's
	writtenAt  int64    // how much had been written when something could be tidied last. Run's

	mu struct {
		sync.Mutex
		found     int64                // bytes of data in the store at the open
		collected Report               // of all collections
		tidied    int64                // bytes of it that were moved by time to merge and sort
		undeleted checkpoint.Undeleted // when it was tried last
		denying   bool                 // the store deleted nothing when it was asked for something new
		unmovable map[key.Key]bool     // objects that could not be compacted
		spread    Spread               // when it was looked at last
		progress  *Progress            // of the collection under way; nil: none is
	}
}

// request asks Run for a collection, or to put everything in order.
type request struct {
	defrag bool
	reply  chan answer
}

type answer struct {
	report Report
	err    error
}

// New returns a collector of a volume that nobody writes before New returns. It does
// nothing before Run.
func New(c Config) *Collector {
	if c.Step <= 0 {
		c.Step = 1024
	}
	chunk := c.ChunkBlocks * c.BlockSize
	g := &Collector{
		c: c, objects: volume.Objects{Store: c.Store, UUID: c.UUID, BlockSize: c.BlockSize, Blocks: c.Map.Blocks()},
		requests: make(chan request), gathered: make(chan gathered, 1), deleting: make(chan struct{}, 1),
		sortChunks: chunks(gatherBytes, chunk, leastSorted, mostSorted), readers: chunks(readBytes, chunk, leastRead, mostRead),
		part: defragBytes, reserve: reserve{turn: make(chan struct{}, 1)},
	}
	if c.Eager {
		g.part = int64(chunk)
	}
	g.mu.unmovable = make(map[key.Key]bool)
	_ = g.eachObject(context.Background(), func(o layout.ObjectInfo, _, _ key.Key) { g.mu.found += int64(o.Total) * int64(c.BlockSize) })
	return g
}

// take takes a token; whoever has it gives it back by receiving from token.
func take(ctx context.Context, token chan struct{}) error {
	select {
	case token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Collect deletes what is dead already, compacts thinly used objects, writes the
// checkpoints needed, and deletes what is dead by then. One collection runs at a
// time; the others wait for their turn, but what can be deleted at once is. When
// ctx ends Collect returns, but a collection that has begun goes on. It waits
// until Run takes it up. Errors: volume.ErrFenced, device.ErrStopped, that of
// ctx, those of the store.
func (g *Collector) Collect(ctx context.Context) (Report, error) { return g.ask(ctx, false) }

// CollectInOrder is Collect, and puts all live blocks in order: see Defrag.
func (g *Collector) CollectInOrder(ctx context.Context) (Report, error) { return g.ask(ctx, true) }

func (g *Collector) ask(ctx context.Context, defrag bool) (Report, error) {
	r := request{defrag, make(chan answer, 1)}
	var early Report
	select {
	case g.requests <- r:
	default: // another one is under way, and may wait for room in the store
		var err error
		if early, err = g.early(ctx, true); !g.goesOn(err) {
			return early, err
		}
		select {
		case g.requests <- r:
		case <-g.c.Life.Done():
			return early, g.c.Life.Err()
		case <-ctx.Done():
			return early, context.Cause(ctx)
		}
	}
	select {
	case a := <-r.reply:
		early.Add(a.report)
		return early, a.err
	case <-g.c.Life.Done():
		return early, g.c.Life.Err()
	case <-ctx.Done():
		return early, context.Cause(ctx)
	}
}

// early is what of a collection, perhaps one that was asked for, can be done
// beside another one. Outcome is told how it went, unless ctx has ended.
func (g *Collector) early(ctx context.Context, asked bool) (Report, error) {
	if err := g.c.Life.Err(); err != nil {
		return Report{}, err
	}
	ctx, release := g.c.Life.Limit(objproxy.Background(ctx))
	defer release()
	report, err := g.GiveBack(ctx)
	g.account(report)
	if asked && g.goesOn(err) {
		if _, e := g.makeRoom(ctx); e != nil {
			err = e
		}
	}
	if ctx.Err() == nil {
		g.c.Outcome("garbage collection", err)
	}
	return report, err
}

// Run collects on request and by time, until ctx ends. It is the one worker of
// all background work on the map.
func (g *Collector) Run(ctx context.Context) {
	due := make(chan struct{})
	var clock sync.WaitGroup
	defer clock.Wait()
	behind := objproxy.Background(ctx)
	if g.c.Wait > 0 {
		clock.Go(func() { g.remind(ctx, due) })
	}
	clock.Go(func() { g.keepReserve(behind) })
	for {
		select {
		case r := <-g.requests:
			g.underWay(true)
			report, err := g.all(behind, r.defrag)
			g.underWay(false)
			g.account(report)
			r.reply <- answer{report, err}
			g.c.Outcome("garbage collection", err)
			if err == nil && !r.defrag { // which has looked itself
				_, _ = g.takeCensus(behind) // for Spread; nobody waits for it
			}
		case <-due:
			g.underWay(true)
			report, err := g.ByTime(behind)
			g.underWay(false)
			g.account(report)
			g.c.Outcome("garbage collection", err)
		case p := <-g.gathered:
			report, err := g.rewrite(behind, p)
			g.account(report)
			g.c.Outcome("putting what was read in order", err)
		case <-ctx.Done():
			return
		}
	}
}

// remind says when a collection by time is due, until ctx ends. While another
// one is under way, and may wait for room in the store, it deletes what is dead.
func (g *Collector) remind(ctx context.Context, due chan<- struct{}) {
	t := time.NewTicker(g.c.Wait)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		select {
		case due <- struct{}{}:
		default:
			_, _ = g.early(ctx, false)
		}
	}
}

func (g *Collector) account(r Report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.collected.Add(r)
}

// Collected returns what all collections did together.
func (g *Collector) Collected() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.collected
}

// Tidied returns how many bytes were moved by time to merge and sort: those that
// MaxMoves bounds.
func (g *Collector) Tidied() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.tidied
}

// Undeleted returns which objects without live data the store did not delete.
func (g *Collector) Undeleted() checkpoint.Undeleted {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.undeleted
}

// all is a whole collection, after which the reserve is there again.
func (g *Collector) all(ctx context.Context, defrag bool) (Report, error) {
	do := g.everything
	if defrag {
		do = g.Defrag
	}
	report, err := do(ctx)
	if err == nil || errors.Is(err, errKept) {
		g.keepReserve(ctx)
	}
	g.c.Logger.Info().Int("compacted", report.Compacted).Int64("moved_bytes", report.MovedBytes).Int("deleted", report.Deleted).
		Int64("freed_bytes", report.FreedBytes).Int("failed_reads", report.FailedReads).Msg("garbage collection")
	return report, err
}

// everything gives back all that can be given back now. What is dead already goes
// first: all else needs room in the store.
func (g *Collector) everything(ctx context.Context) (Report, error) {
	g.progress(func(p *Progress) { *p = Progress{} })
	report, err := g.GiveBack(ctx)
	if !g.goesOn(err) {
		return report, err
	}
	stuck, err := g.makeRoom(ctx)
	if err != nil {
		return report, err
	}
	if stuck { // then what was discarded gives back more than what is moved
		if err := g.settle(ctx, &report); !g.goesOn(err) {
			return report, err
		}
	}
	compacted, err := g.Compact(ctx, g.Thin())
	report.Add(compacted)
	if err != nil {
		return report, err
	}
	err = g.settle(ctx, &report)
	return report, err
}

// ByTime runs a periodic collection. Only Run, or a test in its place, may call
// it. It compacts only when there is too much garbage, and not where nothing gets
// into the store: what it moves would have to be stored before anything that was
// written since. While the volume is written it leaves the checkpoints to their
// own rhythm; on an idle one it goes on until nothing more can be deleted, and
// then sends no request.
func (g *Collector) ByTime(ctx context.Context) (Report, error) {
	report, refusal := g.GiveBack(ctx)
	if !g.goesOn(refusal) {
		return report, refusal
	}
	compacted, err := g.thinOut(ctx)
	report.Add(compacted)
	if err != nil {
		return report, err
	}
	tidied, err := g.tidy(ctx)
	report.Add(tidied)
	if err != nil {
		return report, err
	}
	if _, idle := g.c.Log.Activity(); idle {
		deleted, err := g.settleDead(ctx)
		report.Add(deleted)
		return report, err
	}
	return report, refusal
}

// thinOut compacts what is needed so that there is not too much garbage.
func (g *Collector) thinOut(ctx context.Context) (Report, error) {
	if g.c.MaxGarbage <= 0 || g.c.MaxGarbage >= 1 {
		return Report{}, nil
	}
	excess := batch{objects: g.Excess(g.c.MaxGarbage)}
	g.progress(func(p *Progress) {
		if p.Pass > 0 { // it is moved beside what the pass sorts
			p.TotalBytes += g.bytes([]batch{excess})
		}
	})
	return g.compactUnlessStuck(ctx, excess)
}
