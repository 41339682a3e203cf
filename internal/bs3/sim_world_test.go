package bs3

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/objtest"
)

// simWorld is all that one run of the simulation shares: the store, the
// network to it, the hosts, and what the checker knows. One seed is one world.
//
// A run is deterministic because at each fake instant one thing happens: every
// request, answer and operation has a nanosecond of its own (due), and what
// becomes of a request depends on the seed and on what it asks for, never on
// the order in which goroutines happen to run.
type simWorld struct {
	seed  uint64
	start time.Time
	net   simNetwork
	store *objtest.Memory
	root  string        // directory of the hosts' state directories
	over  chan struct{} // closed at the end: what is still on its way is dropped
	late  sync.WaitGroup

	mu      sync.Mutex
	busy    map[int64]struct{} // nanoseconds that are taken
	turns   []*simTurn         // requests of this instant
	calm    bool               // nothing goes wrong any more
	caches  bool               // hosts have disks for local logs and caches
	events  []simEvent
	broken  error                 // the first broken promise
	stored  map[key.Key]simStored // by the key, also of what was deleted since
	deleted map[key.Key]bool
	named   []string // the checkpoints that the record names
	spoiled bool     // it lost all of them
	damaged string   // a checkpoint that was damaged, for as long as the record names it
	claims  []simClaim

	snapshots   map[simSnapshot][]simRec // that the record has named, and the history that each holds
	held        []layout.Snapshot        // that it names
	everDamaged map[string]bool          // checkpoints
	sessions    []*simSession
	flushed     []simFlush
	synced      []simSynced
	daemons     []*simDaemon
	hosts       []*simHost
	writes      uint64 // stamps given out
	requests    int    // that reached the store
	count       map[string]int
}

// simNetwork says how bad the network of a run is.
type simNetwork struct {
	latency                time.Duration // longest usual way there, or back
	upload                 time.Duration // longest extra way of an object of the log, for one in four
	lateBy                 time.Duration
	fail, refuse           float64 // shares: not done, ErrTransient; not done, a permanent error
	lost, late, slow, half float64 // done, not answered; answered, then done; answered late; a batch of deletes half done
	outlive                float64 // share of the requests under way that survive their process
	stall                  float64 // share of answers at which the process stops for a while
	deny, full             float64 // shares: of the deletes that are refused; of the time in which puts are
	wrong                  float64 // share of the answers to gets that hold other bytes than were stored
}

// simEvent is one line of the trace. Lines of the same instant have no order.
type simEvent struct {
	at    time.Duration
	text  string
	noise bool // not the same in each run of a seed: log lines
}

func (e simEvent) String() string { return fmt.Sprintf("%14.6fms %s", float64(e.at)/1e6, e.text) }

func newSimWorld(seed uint64, root string, net simNetwork) *simWorld {
	return &simWorld{
		seed: seed, start: time.Now(), net: net, root: root,
		store: objtest.NewMemory(), over: make(chan struct{}),
		busy: make(map[int64]struct{}), stored: make(map[key.Key]simStored), deleted: make(map[key.Key]bool), count: make(map[string]int),
		snapshots: make(map[simSnapshot][]simRec), everDamaged: make(map[string]bool),
	}
}

// random returns numbers that depend on the seed and on what they are for.
func (w *simWorld) random(what string, nth uint64) *rand.Rand {
	h := fnv.New64a()
	_, _ = io.WriteString(h, what)
	return rand.New(rand.NewPCG(w.seed, h.Sum64()+nth*0x9e3779b97f4a7c15))
}

// due returns a timer for about d from now, at a nanosecond of its own.
func (w *simWorld) due(d time.Duration) *time.Timer {
	at := time.Now().Add(max(d, time.Microsecond)).UnixNano() // later than inTurn, which is soonest
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if _, taken := w.busy[at]; !taken {
			break
		}
		at++
	}
	w.busy[at] = struct{}{}
	return time.NewTimer(time.Duration(at - time.Now().UnixNano()))
}

// pass lets about d go by.
func (w *simWorld) pass(d time.Duration) { <-w.due(d).C }

func (w *simWorld) log(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logLocked(format, args...)
}

func (w *simWorld) logLocked(format string, args ...any) {
	w.events = append(w.events, simEvent{at: time.Since(w.start), text: fmt.Sprintf(format, args...)})
}

// Write implements io.Writer, for the logs of the engines.
func (w *simWorld) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, simEvent{at: time.Since(w.start), text: strings.TrimSpace(string(p)), noise: true})
	return len(p), nil
}

// fail notes a broken promise. The run goes on to its end; the first counts.
func (w *simWorld) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(format, args...)
}

func (w *simWorld) failLocked(format string, args ...any) {
	w.logLocked("BROKEN "+format, args...)
	if w.broken == nil {
		w.broken = fmt.Errorf(format, args...)
	}
}

// hangs is the end of a run whose goroutines will never end: the bubble, and
// with it the test binary, dies of them, so what is known is told now.
func (w *simWorld) hangs(format string, args ...any) {
	w.fail("HANGS: "+format, args...)
	for _, e := range w.trace() {
		fmt.Fprintln(os.Stderr, e)
	}
	fmt.Fprintf(os.Stderr, "seed %d: %v\n", w.seed, w.broken)
}

func (w *simWorld) ok() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken == nil
}

func (w *simWorld) add(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count[what] += n
}

// trace returns the events of the run, in order. Of what happened in the same
// instant the order says nothing, so it is by text.
func (w *simWorld) trace() []simEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortStableFunc(w.events, func(a, b simEvent) int {
		if c := cmp.Compare(a.at, b.at); c != 0 {
			return c
		}
		switch {
		case a.noise && b.noise:
			return 0
		case a.noise:
			return 1
		case b.noise:
			return -1
		}
		return cmp.Compare(a.text, b.text)
	})
	return w.events
}
