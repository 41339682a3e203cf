package bs3

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	simSeeds    = flag.Int("sim.seeds", simDefault, "simulation: how many seeds to run")
	simFirst    = flag.Uint64("sim.first", 0, "simulation: the first of them")
	simSeed     = flag.Int64("sim.seed", -1, "simulation: run this seed alone and show its trace")
	simParallel = flag.Int("sim.parallel", runtime.GOMAXPROCS(0), "simulation: seeds that run at a time")
	simFailures = flag.Int("sim.failures", 20, "simulation: stop after so many failing seeds")
	simShorten  = flag.Bool("sim.shorten", true, "simulation: look for a short list of operations that fails")
	simOut      = flag.String("sim.out", "", "simulation: where the traces of failing seeds go; empty = a temporary directory")
)

// TestSim runs the engine in worlds made from seeds: several daemons on
// several hosts, a bad network, crashes. The promises of docs/ARCHITECTURE.md
// are checked at every open, read and flush.
func TestSim(t *testing.T) {
	root := simRoot(t)
	if *simSeed >= 0 {
		simOne(t, root, uint64(*simSeed))
		return
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(1 << 30)) // a run needs little; what fsck pools is large
	var next atomic.Uint64
	next.Store(*simFirst)
	last := *simFirst + uint64(*simSeeds)
	var mu sync.Mutex
	total := make(map[string]int)
	var failed []uint64
	begin := time.Now()
	t.Run("seeds", func(t *testing.T) {
		for i := range *simParallel {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for seed := next.Add(1) - 1; seed < last; seed = next.Add(1) - 1 {
					res := newSimRun(seed).doIn(t, root)
					mu.Lock()
					for what, n := range res.count {
						total[what] += n
					}
					if res.broken != nil {
						failed = append(failed, seed)
						t.Errorf("seed %d: %v", seed, res.broken)
						if *simShorten && len(failed) <= 3 {
							simReport(t, root, newSimRun(seed), res)
						}
					}
					stop := len(failed) >= *simFailures
					mu.Unlock()
					if stop {
						return
					}
				}
			})
		}
	})
	took := time.Since(begin)
	t.Logf("%d seeds, %d failed, %.0f seeds per minute on %d cores: %s", *simSeeds, len(failed), float64(*simSeeds)/took.Minutes(), *simParallel, simCounts(total))
	if *simSeeds >= 200 && len(failed) == 0 {
		for _, what := range []string{"opens", "replayed", "memory needed", "fenced", "fenced in open", "objects replaced", "checkpoints", "flushes", "reads", "writes",
			"late puts", "late deletes", "torn", "wiped", "refused", "closed", "bases checked",
			"log flushes", "logs needed", "log syncs failed", "disks lost", "disk caches", "disk hits", "moves", "objects deleted", "collections", "defrags", "defrags that moved", "tidied", "silent", "checkpoints damaged", "fscks", "snapshots", "snapshots from outside", "snapshots removed", "snapshots removed from outside", "snapshots checked", "snapshots read", "snapshots removed under a reader", "objects held by snapshots", "spoiled", "wrong answers", "rotten"} {
			if total[what] == 0 {
				t.Errorf("no run had any %q: it is not tested", what)
			}
		}
	}
}

// TestSimOddStore runs worlds in which the store refuses half of all deletes,
// and for a third of the time all puts.
func TestSimOddStore(t *testing.T) {
	root := simRoot(t)
	total := make(map[string]int)
	for seed := range uint64(simDefault / 5) {
		run := newSimRun(seed)
		run.net.deny, run.net.full = 0.5, 0.3
		res := run.doIn(t, root)
		for what, n := range res.count {
			total[what] += n
		}
		if res.broken != nil {
			t.Errorf("seed %d: %v", seed, res.broken)
		}
	}
	t.Log(simCounts(total))
	for _, what := range []string{"puts refused", "deletes refused", "objects deleted", "checkpoints", "closed"} {
		if total[what] == 0 {
			t.Errorf("no run had any %q: it is not tested", what)
		}
	}
}

// doIn runs it below root, and leaves nothing there.
func (run *simRun) doIn(t *testing.T, root string) simResult {
	t.Helper()
	dir, err := os.MkdirTemp(root, fmt.Sprintf("seed%d-", run.seed))
	if err != nil {
		t.Fatal(err)
	}
	res := run.do(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return res
}

func simOne(t *testing.T, root string, seed uint64) {
	res := newSimRun(seed).doIn(t, root)
	for _, e := range res.trace {
		fmt.Println(e)
	}
	t.Log(simCounts(res.count))
	if res.broken != nil {
		t.Errorf("seed %d: %v", seed, res.broken)
		simReport(t, root, newSimRun(seed), res)
	}
}

func simCounts(count map[string]int) string {
	var list []string
	for what, n := range count {
		list = append(list, fmt.Sprintf("%s %d", what, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// simReport says how to run a failing seed again, finds a short list of
// operations that still fails, and saves the traces.
func simReport(t *testing.T, root string, run *simRun, res simResult) {
	t.Helper()
	out := *simOut
	if out == "" {
		var err error
		if out, err = os.MkdirTemp("", "bs3-sim-"); err != nil {
			t.Error(err)
			return
		}
	}
	save := func(name string, trace []simEvent) {
		path := filepath.Join(out, name)
		var b strings.Builder
		for _, e := range trace {
			fmt.Fprintln(&b, e)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Error(err)
		}
		t.Logf("trace: %s", path)
	}
	t.Logf("again: go test ./internal/bs3 -run TestSim -sim.seed=%d", run.seed)
	save(fmt.Sprintf("seed%d.trace", run.seed), res.trace)
	short, shortRes, tries := run.shorten(t, root)
	if short == nil {
		t.Logf("it does not fail again: the run is not the same each time")
		return
	}
	save(fmt.Sprintf("seed%d.short.trace", run.seed), shortRes.trace)
	t.Logf("%d of %d operations are enough (%d tries): %v", len(short.ops), len(run.ops), tries, shortRes.broken)
	for _, op := range short.ops {
		t.Logf("  %v", op)
	}
}

// shorten leaves out operations for as long as the run still fails; nil if it
// does not fail at all.
func (run *simRun) shorten(t *testing.T, root string) (best *simRun, res simResult, tries int) {
	fails := func(ops []simOp) bool {
		tries++
		try := *run
		try.ops = ops
		r := try.doIn(t, root)
		if r.broken != nil {
			best, res = &try, r
		}
		return r.broken != nil
	}
	if !fails(run.ops) {
		return nil, res, tries
	}
	const most = 300
	for size := len(best.ops) / 2; size > 0 && tries < most; {
		cut := false
		for at := 0; at < len(best.ops) && tries < most; {
			if fails(slices.Delete(slices.Clone(best.ops), at, min(at+size, len(best.ops)))) {
				cut = true
			} else {
				at += size
			}
		}
		if !cut || size > len(best.ops) {
			size /= 2
		}
	}
	return best, res, tries
}
