package bs3

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// simConfig is what all daemons of a run have in common.
type simConfig struct {
	chunkBlocks int
	durable     bool
	logSize     int64 // of local logs; 0 = none
	disk        int64 // bytes of disk caches; 0 = none
	linger      time.Duration
	checkpoints time.Duration
	gc          gc.Options
	cache       int64 // bytes
	readahead   int64 // bytes
	whole       bool  // objects are fetched whole
}

const (
	simBlockSize = 512
	simLeaves    = 3
	simBlocks    = simLeaves * 4096
)

// simPatience is how long, in fake time, anything may take that nothing hinders.
const simPatience = time.Hour

// simDaemon is one process: an engine on a host, and its clients.
type simDaemon struct {
	w      *simWorld
	name   string
	host   *simHost
	wire   *simWire
	ctx    context.Context // of the process; ends when it dies
	cancel context.CancelFunc
	tasks  sync.WaitGroup // everything that runs for it
	asked  sync.WaitGroup // the requests of its clients
	opened chan struct{}  // closed when its open has returned
	ended  chan struct{}  // closed when it is dead, or has ended itself

	// Under the world's mutex:
	epoch    uint64
	e        *Engine
	session  *simSession // while it serves, and after
	openErr  error
	draining bool // it takes no more requests
	closing  bool // it ends itself
	died     bool
	takeover bool
	bigWrite bool
	waiting  int // writes under way
}

func (w *simWorld) daemon(name string) *simDaemon {
	for _, d := range w.daemons {
		if d.name == name {
			return d
		}
	}
	panic("sim: no daemon " + name)
}

// gone reports whether the daemon is dead, or about to end. Under the world's mutex.
func (d *simDaemon) gone() bool { return d.died }

// stopping reports whether a request may have failed with err because it was
// given up or the engine stops. Under the world's mutex.
func (d *simDaemon) stopping(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || d.closing || d.e.Err() != nil
}

// serves reports whether clients may be served. Under the world's mutex.
func (d *simDaemon) serves() bool { return d.session != nil && !d.died && !d.closing && !d.draining }

// startDaemon starts a process on h; nil if another one there has the lock.
func (w *simWorld) startDaemon(h *simHost, cfg simConfig, slots, uploaders int, takeover bool) *simDaemon {
	w.mu.Lock()
	if h.path != "" && h.holder != nil {
		w.mu.Unlock()
		return nil
	}
	d := &simDaemon{w: w, name: fmt.Sprintf("d%d", len(w.daemons)+1), host: h, opened: make(chan struct{}), ended: make(chan struct{}), takeover: takeover}
	d.wire = w.newWire(d.name)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	h.holder = d
	w.daemons = append(w.daemons, d)
	w.logLocked("%s starts on %v, takeover=%v", d.name, h, takeover)
	w.mu.Unlock()

	retry := objproxy.NewRetry(d.wire, objproxy.RetryOptions{First: 3 * time.Millisecond, Max: 70 * time.Millisecond, Random: func() float64 {
		return w.random("retry "+d.name, uint64(time.Now().UnixNano())).Float64()
	}})
	opts := Options{
		// So many downloads that none waits: which of those that an open sends at
		// once would be first is not the same each time.
		Store: objproxy.NewPriority(retry, uploaders+1, 1000),
		Log:   zerolog.New(w).With().Str("who", d.name).Logger(),
		Host:  h.host(), StatePath: h.path, Takeover: takeover,
		Size: simBlocks * simBlockSize, BlockSize: simBlockSize, ChunkSize: cfg.chunkBlocks * simBlockSize,
		CachePath: h.cache, LogSize: cfg.logSize, DiskCache: cfg.disk, ForgetLocalLog: takeover,
		Durable: cfg.durable, Linger: cfg.linger, CheckpointInterval: cfg.checkpoints, GC: cfg.gc,
		ReadCache: cfg.cache, Readahead: cfg.readahead, WholeObjects: cfg.whole,
		Memory: int64(slots * cfg.chunkBlocks * simBlockSize), Uploaders: uploaders,
	}
	if h.disk != nil {
		opts.openLog = h.disk.open
	}
	d.tasks.Go(func() {
		e, err := Open(d.ctx, opts)
		d.openReturned(e, err)
	})
	return d
}

func (d *simDaemon) openReturned(e *Engine, err error) {
	w := d.w
	defer close(d.opened)
	w.mu.Lock()
	d.e, d.openErr = e, err
	died := d.died
	w.mu.Unlock()
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if died {
			return
		}
		w.logLocked("%s cannot open", d.name)
		w.events = append(w.events, simEvent{at: time.Since(w.start), text: d.name + ": " + err.Error(), noise: true})
		switch {
		case errors.Is(err, volume.ErrFenced) && (d.epoch > 0 || !d.takeover) && w.claims[len(w.claims)-1].epoch > d.epoch:
			w.count["fenced in open"]++
		case errors.Is(err, volume.ErrRefused) && d.epoch > 0:
			w.failLocked("CLAIMED: %s: %v", d.name, err)
		case errors.Is(err, volume.ErrRefused) && w.spoiled:
		case errors.Is(err, volume.ErrRefused) && !d.takeover:
			w.count["refused"]++
		case d.host.rotten && (errors.Is(err, volume.ErrRefused) || errors.Is(err, wlog.ErrDamaged)):
			w.count["opens of rotten logs"]++
		case volume.IsUnreadable(err) && d.wire.lied():
			w.count["opens of wrong answers"]++
		default:
			w.failLocked("OPEN: %s: %v", d.name, err)
		}
		d.endLocked()
		return
	}
	if died {
		return
	}
	s := w.opened(d, e)
	w.mu.Lock()
	d.session = s
	w.mu.Unlock()
	d.tasks.Go(func() { d.watch(e) })
	for _, r := range simRegions {
		d.read(r.from, r.n, 0)
		w.pass(1) // each at an instant of its own
	}
}

// watch ends the process when its volume has failed.
func (d *simDaemon) watch(e *Engine) {
	select {
	case <-e.Done():
	case <-d.ended:
		return
	}
	w := d.w
	w.mu.Lock()
	if d.died || d.closing {
		w.mu.Unlock()
		return
	}
	d.closing = true
	if err := e.Err(); !errors.Is(err, volume.ErrFenced) || w.owner(d.session) {
		w.failLocked("FAILED: e%d: %v", d.epoch, err)
	}
	w.logLocked("%s is fenced", d.name)
	w.count["fenced"]++
	w.mu.Unlock()
	_ = e.Close(d.ctx) // says again that it is fenced
	w.mu.Lock()
	defer w.mu.Unlock()
	d.endLocked()
}

// endLocked is the end of a process that ends itself.
func (d *simDaemon) endLocked() {
	if d.died {
		return
	}
	d.died = true
	d.host.holder = nil
	close(d.ended)
	d.cancel()
}

// kill ends the process at this instant, wherever it is.
func (d *simDaemon) kill() {
	synctest.Wait() // nothing is half done
	w := d.w
	w.mu.Lock()
	if d.died {
		w.mu.Unlock()
		return
	}
	d.died = true
	d.host.holder = nil
	e, closing := d.e, d.closing
	w.logLocked("%s dies", d.name)
	w.mu.Unlock()
	if err := d.host.processDied(); err != nil {
		w.fail("sim: state directory of %v: %v", d.host, err)
	}
	close(d.ended)
	close(d.wire.dead)
	d.cancel()
	if e != nil && !closing {
		d.tasks.Go(func() { _ = e.Close(d.ctx) }) // it fails: nothing is stored any more
	}
	d.exit()
}

// exit waits for all that runs for a process that has ended.
func (d *simDaemon) exit() {
	done := make(chan struct{})
	go func() {
		d.tasks.Wait()
		close(done)
	}()
	late := time.NewTimer(simPatience)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		d.w.hangs("%s has been told to end", d.name)
	}
}

// close ends the process in an orderly way.
func (d *simDaemon) close() {
	w := d.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !d.serves() {
		return
	}
	d.draining = true
	s, e := d.session, d.e
	w.logLocked("%s closes", d.name)
	d.tasks.Go(func() {
		d.asked.Wait()
		w.pass(1)
		w.mu.Lock()
		if d.died || d.closing {
			w.mu.Unlock()
			return
		}
		d.closing = true
		history := s.acked()
		w.mu.Unlock()
		err := e.Close(d.ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if d.died {
			return
		}
		switch {
		case err == nil:
			w.logLocked("%s is closed", d.name)
			w.count["closed"]++
			w.flushAcked(s, history)
		case errors.Is(err, volume.ErrFenced) && !w.owner(s):
			w.count["fenced"]++
		default:
			w.failLocked("CLOSE: e%d: %v", s.epoch, err)
		}
		d.endLocked()
	})
}

// simRegions are the blocks that clients use: few, at the edges of leaves too.
var simRegions = []struct {
	from uint64
	n    uint32
}{{0, 3}, {4094, 4}, {simBlocks - 2, 2}}

// request begins a client's request, unless the daemon does not serve.
func (d *simDaemon) request(limit time.Duration, f func(ctx context.Context, e *Engine, s *simSession)) {
	w := d.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !d.serves() || time.Now().Before(d.wire.pausedUntil()) {
		return
	}
	e, s := d.e, d.session
	d.asked.Add(1)
	d.tasks.Go(func() {
		defer d.asked.Done()
		ctx := d.ctx
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		f(ctx, e, s)
	})
}

// write asks for a write (stamped) or a discard.
func (d *simDaemon) write(block uint64, n uint32, zero, fast bool, limit time.Duration) {
	d.request(limit, func(ctx context.Context, e *Engine, s *simSession) {
		w := d.w
		w.mu.Lock()
		if d.bigWrite || d.waiting >= 6 {
			w.mu.Unlock()
			return
		}
		r := simRec{block: block, n: n}
		var pieces []*simWrite
		if zero {
			pieces = []*simWrite{{simRec: r}}
		} else {
			chunk := uint32(e.opts.chunkBlocks())
			if d.waiting > 0 || limit > 0 { // the order of its pieces among others could not be told
				r.n = min(r.n, chunk)
			}
			w.writes++
			r.stamp = w.writes
			for at := uint32(0); at < r.n; at += chunk {
				pieces = append(pieces, &simWrite{simRec: simRec{block + uint64(at), min(chunk, r.n-at), r.stamp}})
			}
			d.bigWrite = len(pieces) > 1
		}
		s.log = append(s.log, pieces...)
		d.waiting++
		w.mu.Unlock()

		off := int64(r.block) * simBlockSize
		var err error
		switch {
		case zero && fast:
			err = e.WriteZeroes(ctx, off, int64(r.n)*simBlockSize)
		case zero:
			err = e.Discard(ctx, off, int64(r.n)*simBlockSize)
		case fast && e.TryWriteAt(r.data(), off):
		default:
			err = e.WriteAt(ctx, r.data(), off)
		}

		w.mu.Lock()
		defer w.mu.Unlock()
		d.waiting--
		if len(pieces) > 1 {
			d.bigWrite = false
		}
		if d.gone() {
			return
		}
		for _, p := range pieces {
			p.acked = err == nil
			p.dropped = err != nil && errors.Is(err, context.DeadlineExceeded)
		}
		switch {
		case err == nil:
			w.count["writes"]++
		case !d.stopping(err):
			w.failLocked("ERROR: e%d write of block %d: %v", s.epoch, block, err)
		}
	})
}

// read asks for a read.
func (d *simDaemon) read(block uint64, n uint32, limit time.Duration) {
	d.request(limit, func(ctx context.Context, e *Engine, s *simSession) {
		d.w.mu.Lock()
		before := s.lastAcked()
		d.w.mu.Unlock()
		p := make([]byte, int(n)*simBlockSize)
		for i := range p {
			p[i] = 0xA5 // what a buffer may hold must never be taken for an answer
		}
		off := int64(block) * simBlockSize
		var err error
		if !e.TryReadAt(p, off) {
			err = e.ReadAt(ctx, p, off)
		}
		d.w.readDone(s, before, block, p, err)
		if block%3 == 0 { // as if it were part of a scan that took many requests
			e.collector.Gathered(block, uint64(n), math.MaxInt32)
		}
	})
}

// flush asks for a flush.
func (d *simDaemon) flush(limit time.Duration) {
	d.request(limit, func(ctx context.Context, e *Engine, s *simSession) {
		w := d.w
		mode := e.Mode()
		w.mu.Lock()
		history := s.acked()
		w.mu.Unlock()
		err := e.Flush(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case d.gone():
		case err == nil && mode == "durable":
			w.logLocked("%s acknowledges a flush of %d writes", d.name, len(history))
			w.flushAcked(s, history)
		case err == nil && mode == "local log":
			w.logLocked("%s acknowledges a flush of %d writes to the log", d.name, len(history))
			w.synced = append(w.synced, simSynced{simFlush{s.epoch, history}, d.host, d.host.disks})
			w.count["log flushes"]++
		case err != nil && !d.stopping(err):
			w.failLocked("ERROR: e%d flush: %v", s.epoch, err)
		}
	})
}

// checkpoint asks for a checkpoint.
func (d *simDaemon) checkpoint() { d.background("checkpoints", (*Engine).Checkpoint) }

// gc asks for a garbage collection.
func (d *simDaemon) gc() {
	d.background("collections", func(e *Engine, ctx context.Context) error {
		_, err := e.GC(ctx)
		return err
	})
}

// defrag asks for one that puts all in order.
func (d *simDaemon) defrag() {
	d.background("defrags", func(e *Engine, ctx context.Context) error {
		r, err := e.Defrag(ctx)
		if r.MovedBytes > 0 {
			d.w.add("defrags that moved", 1)
		}
		return err
	})
}

func (d *simDaemon) background(what string, f func(*Engine, context.Context) error) {
	d.request(0, func(ctx context.Context, e *Engine, s *simSession) {
		err := f(e, ctx)
		w := d.w
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case d.gone():
		case err == nil:
			w.count[what]++
		case objproxy.FailedDeletes(err) != nil:
			w.count["deletes failed"]++
		case !d.stopping(err) && (!errors.Is(err, volume.ErrFenced) || w.owner(s)):
			w.failLocked("ERROR: e%d %s: %v", s.epoch, what, err)
		}
	})
}
