package bs3

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// simOp is one operation of a run. What it does depends on its numbers and on
// the world as it is then, but on no other operation: any may be left out.
type simOp struct {
	what string
	gap  time.Duration // since the one before
	bits [4]uint64
}

// simRun is what a seed stands for.
type simRun struct {
	seed  uint64
	cfg   simConfig
	net   simNetwork
	hosts []bool // whether it has a state directory
	most  int    // daemons alive at a time
	solo  bool   // nearly everything happens on one host
	ops   []simOp
}

// simKinds are the operations and how often each comes, by the kind of run:
// several writers at a time, one that crashes again and again, or both.
var simKinds = []struct {
	what                string
	zombie, crash, both int
	do                  func(*simRun, *simWorld, simOp)
}{
	{"write", 40, 50, 45, (*simRun).write},
	{"discard", 7, 7, 7, (*simRun).discard},
	{"read", 15, 10, 12, (*simRun).read},
	{"flush", 14, 8, 10, (*simRun).flush},
	{"checkpoint", 6, 4, 6, (*simRun).checkpoint},
	{"gc", 6, 4, 6, (*simRun).gc},
	{"start", 12, 8, 10, (*simRun).start},
	{"pause", 5, 1, 3, (*simRun).pause},
	{"outage", 1, 2, 2, (*simRun).outage},
	{"kill", 1, 7, 4, (*simRun).kill},
	{"crash", 1, 2, 2, (*simRun).crash},
	{"writeback", 0, 8, 3, (*simRun).writeback},
	{"close", 1, 2, 2, (*simRun).closeOne},
	{"damage", 1, 1, 1, (*simRun).damage},
	{"fsck", 1, 1, 1, (*simRun).fsck},
}

// simRushes is how often a rush comes, in runs with local logs.
const simRushes = 12

// simUnsteady: one in so many seeds reads ahead. What a read and the one ahead
// of it ask for in one instant is not the same each time.
const simUnsteady = 8

// newSimRun makes the run of a seed.
func newSimRun(seed uint64) *simRun {
	r := rand.New(rand.NewPCG(seed, 0x5eed))
	ms := func(choices ...float64) time.Duration {
		return time.Duration(choices[r.IntN(len(choices))] * float64(time.Millisecond))
	}
	share := func(choices ...float64) float64 { return choices[r.IntN(len(choices))] }
	run := &simRun{seed: seed, most: 1 + r.IntN(3)}
	collect := gc.Options{
		Wait: ms(0, 0, 23.7, 91.9), Step: 1 + r.IntN(8), IdleTimeout: ms(0, 3.1),
		LiveData: share(0.3, 0.7, 1), MaxGarbage: share(0, 0.3, 0.6),
	}
	if moves := rand.New(rand.NewPCG(seed, 0x5027)); moves.IntN(2) == 0 {
		collect.MaxMoves, collect.Eager = []float64{0.5, 2, 10}[moves.IntN(3)], true
	}
	run.cfg = simConfig{
		gc:          collect,
		cache:       int64(max(0, r.IntN(4)-2) * 64 * simBlockSize),
		chunkBlocks: 2 + r.IntN(3), durable: r.IntN(4) > 0,
		linger: ms(0, 0, 2.3, 17.1), checkpoints: ms(0, 0, 41.3, 160.7),
	}
	if seed%simUnsteady == simUnsteady-1 {
		run.cfg.readahead = 16 * simBlockSize
		if scans := rand.New(rand.NewPCG(seed, 0x5ca2)); scans.IntN(2) == 0 {
			run.cfg.whole = scans.IntN(2) == 0
			run.cfg.cache = int64(64+scans.IntN(4)*64) * simBlockSize
		}
	}
	if logs := rand.New(rand.NewPCG(seed, 0x106)); logs.IntN(3) == 0 {
		run.cfg.durable = false
		run.cfg.logSize = int64(6+logs.IntN(30)) * simPage
	}
	if disks := rand.New(rand.NewPCG(seed, 0xd15c)); disks.IntN(3) == 0 {
		head := layout.CacheHeader{BlockSize: simBlockSize}
		run.cfg.disk = layout.CacheHeaderSize + int64(1+disks.IntN(2))*head.SetSize()
		if !run.cfg.durable && run.cfg.logSize == 0 {
			run.cfg.logSize = 64 * simPage
		}
	}
	rough := share(0, 0.3, 1)
	run.net = simNetwork{
		latency: ms(0.2, 2, 10), upload: ms(1, 30, 30, 300), lateBy: ms(20, 300, 3000),
		fail: 0.03 * rough, refuse: 0.005 * rough, lost: 0.06 * rough, late: 0.06 * rough, slow: 0.03 * rough, half: 0.2 * rough,
		outlive: share(0, 0.6, 0.6), stall: share(0, 0.004, 0.02),
	}
	if lies := rand.New(rand.NewPCG(seed, 0x11e5)); lies.IntN(3) == 0 {
		run.net.wrong = 0.01
	}
	profile := r.IntN(3)
	run.solo = profile == 1 && r.IntN(3) > 0
	for range 3 {
		run.hosts = append(run.hosts, true)
	}
	run.hosts = append(run.hosts, false)
	total := 0
	weight := func(i int) int {
		k := simKinds[i]
		return []int{k.zombie, k.crash, k.both}[profile]
	}
	for i := range simKinds {
		total += weight(i)
	}
	rushes, snapshots := 0, 0
	if run.cfg.logSize > 0 {
		rushes = simRushes
	}
	if snaps := rand.New(rand.NewPCG(seed, 0x5a9)); snaps.IntN(3) == 0 {
		snapshots = simSnapshots
	}
	total += rushes + snapshots
	gap := ms(0.3, 1, 4)
	for range 60 + r.IntN(120) {
		at := r.IntN(total)
		i := 0
		for ; i < len(simKinds) && at >= weight(i); i++ {
			at -= weight(i)
		}
		what := "rush"
		if i < len(simKinds) {
			what = simKinds[i].what
		} else if at >= rushes {
			what = "snapshot"
		}
		op := simOp{what: what, gap: 1 + time.Duration(r.ExpFloat64()*float64(gap))}
		if r.IntN(12) == 0 {
			op.gap += time.Duration(r.IntN(int(150 * time.Millisecond)))
		}
		for j := range op.bits {
			op.bits[j] = r.Uint64()
		}
		run.ops = append(run.ops, op)
	}
	return run
}

// simResult is how a run went.
type simResult struct {
	broken error
	trace  []simEvent
	count  map[string]int
}

// do runs it in a bubble of its own, with its state directories below root.
func (run *simRun) do(t *testing.T, root string) simResult {
	var w *simWorld
	synctest.Test(t, func(*testing.T) {
		w = newSimWorld(run.seed, root, run.net)
		run.drive(w)
	})
	if err := simUnmap(root); err != nil {
		t.Fatal(err)
	}
	return simResult{w.broken, w.trace(), w.count}
}

func (run *simRun) drive(w *simWorld) {
	w.caches = run.cfg.logSize > 0 || run.cfg.disk > 0
	for i, state := range run.hosts {
		w.newHost(i, run.cfg.chunkBlocks, state)
	}
	run.launch(w, w.hosts[0], 0)
	for i, op := range run.ops {
		w.pass(op.gap)
		if !w.ok() {
			break
		}
		w.log("#%d %s", i, op.what)
		switch op.what {
		case "rush":
			run.rush(w, op)
		case "snapshot":
			run.snapshot(w, op)
		}
		for _, k := range simKinds {
			if k.what == op.what {
				k.do(run, w, op)
			}
		}
	}
	for _, d := range run.alive(w) {
		d.kill()
	}
	if w.ok() {
		run.finish(w)
	}
	for _, d := range run.alive(w) {
		d.kill()
	}
	close(w.over)
	w.late.Wait()
	for _, d := range w.daemons {
		if d.e != nil {
			w.count["tidied"] += int(d.e.collector.Tidied())
		}
		if d.e != nil && d.e.reader.DiskStatus() != nil {
			w.count["disk hits"] += int(d.e.reader.DiskStatus().Hits)
		}
	}
}

// alive returns the daemons that have not ended.
func (run *simRun) alive(w *simWorld) []*simDaemon {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*simDaemon
	for _, d := range w.daemons {
		if !d.died {
			list = append(list, d)
		}
	}
	return list
}

// pick returns one of the daemons alive, mostly the newest; nil if there is none.
func (run *simRun) pick(w *simWorld, op simOp) *simDaemon {
	list := run.alive(w)
	if len(list) == 0 {
		return nil
	}
	if op.bits[3]%4 > 0 {
		return list[len(list)-1]
	}
	return list[op.bits[3]/4%uint64(len(list))]
}

// client returns a daemon for a client's request: mostly the newest that serves.
// If none does, it mostly waits for the newest to serve, for a while.
func (run *simRun) client(w *simWorld, op simOp) *simDaemon {
	var serving []*simDaemon
	alive := run.alive(w)
	w.mu.Lock()
	for _, d := range alive {
		if d.serves() {
			serving = append(serving, d)
		}
	}
	w.mu.Unlock()
	if n := uint64(len(serving)); n > 0 {
		if op.bits[3]%4 > 0 {
			return serving[n-1]
		}
		return serving[op.bits[3]/4%n]
	}
	if len(alive) == 0 || op.bits[3]>>32%8 == 0 {
		return nil
	}
	d := alive[len(alive)-1]
	t := w.due(300 * time.Millisecond)
	defer t.Stop()
	select {
	case <-d.opened:
	case <-d.ended:
	case <-t.C:
	}
	w.pass(1) // an instant of its own
	return d
}

// limit is after how long a client gives up; 0 = never.
func (op simOp) limit() time.Duration {
	if op.bits[2]%10 > 0 {
		return 0
	}
	return time.Duration(1 + op.bits[2]/10%uint64(40*time.Millisecond))
}

// place returns blocks of a region.
func (op simOp) place() (block uint64, n uint32) {
	r := simRegions[op.bits[0]%uint64(len(simRegions))]
	from := uint32(op.bits[0] >> 8 % uint64(r.n))
	n = 1
	if op.bits[0]>>16%3 == 0 {
		n = 1 + uint32(op.bits[0]>>24%uint64(r.n-from))
	}
	return r.from + uint64(from), n
}

func (run *simRun) write(w *simWorld, op simOp) {
	if d := run.client(w, op); d != nil {
		block, n := op.place()
		d.write(block, n, false, op.bits[1]%2 == 0, op.limit())
	}
}

func (run *simRun) discard(w *simWorld, op simOp) {
	if d := run.client(w, op); d != nil {
		block, n := op.place()
		switch op.bits[1] >> 8 % 8 {
		case 0: // a whole leaf, which leaves the map at once
			block, n = 4096, 4096
		case 1:
			block, n = 0, simBlocks
		}
		d.write(block, n, true, op.bits[1]%2 == 0, op.limit())
	}
}

// rush is writes and flushes in quick succession, and then mostly the end of the
// machine: what a local log is for.
func (run *simRun) rush(w *simWorld, op simOp) {
	d := run.client(w, op)
	if d == nil {
		return
	}
	r := w.random("rush", op.bits[0])
	for range 2 + r.IntN(8) {
		at := simOp{bits: [4]uint64{r.Uint64()}}
		block, n := at.place()
		d.write(block, n, r.IntN(8) == 0, r.IntN(2) == 0, 0)
		w.pass(time.Duration(r.Int64N(int64(time.Millisecond))))
		d.flush(0)
		w.pass(time.Duration(r.Int64N(int64(time.Millisecond))))
	}
	w.pass(time.Duration(r.Int64N(int64(5 * time.Millisecond))))
	if r.IntN(3) > 0 {
		run.crash(w, simOp{bits: [4]uint64{op.bits[0], op.bits[1], op.bits[2]}})
	}
}

func (run *simRun) read(w *simWorld, op simOp) {
	if d := run.client(w, op); d != nil {
		block, n := op.place()
		d.read(block, n, op.limit())
	}
}

func (run *simRun) flush(w *simWorld, op simOp) {
	if d := run.client(w, op); d != nil {
		d.flush(op.limit())
	}
}

func (run *simRun) checkpoint(w *simWorld, op simOp) {
	if d := run.client(w, op); d != nil {
		d.checkpoint()
	}
}

func (run *simRun) gc(w *simWorld, op simOp) {
	if run.cfg.gc.Wait > 0 {
		return // which comes first, if both are due, is not the same each time
	}
	if d := run.client(w, op); d != nil {
		if op.bits[0]%3 == 0 {
			d.defrag()
		} else {
			d.gc()
		}
	}
}

// start starts a daemon, mostly where the newest writer was.
func (run *simRun) start(w *simWorld, op simOp) {
	if len(run.alive(w)) >= run.most {
		return
	}
	run.launch(w, run.where(w, op), op.bits[1])
}

func (run *simRun) where(w *simWorld, op simOp) *simHost {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.hosts[0]
	if len(w.claims) > 0 {
		last = w.claims[len(w.claims)-1].host
	}
	same := uint64(6)
	if run.solo {
		same = 30
	}
	if op.bits[0]%same > 0 && (last.holder == nil || last.path == "") {
		return last
	}
	return w.hosts[op.bits[0]/same%uint64(len(w.hosts))]
}

func (run *simRun) launch(w *simWorld, h *simHost, bits uint64) {
	slots := 3 + h.id%3 // the same each time, or chunk memory is made anew
	if bits%8 == 7 {
		slots = 3 + int(bits>>4%3)
	}
	w.startDaemon(h, run.cfg, slots, 2+int(bits>>8%2), bits>>16%16 > 0)
}

func (run *simRun) pause(w *simWorld, op simOp) {
	if d := run.pick(w, op); d != nil {
		lengths := [...]time.Duration{5 * time.Millisecond, 40 * time.Millisecond, 200 * time.Millisecond, time.Second}
		long := lengths[op.bits[0]%4]
		w.log("%s is paused for %v", d.name, long)
		d.wire.pause(long)
	}
}

func (run *simRun) outage(w *simWorld, op simOp) {
	if d := run.pick(w, op); d != nil {
		d.wire.breakFor(time.Duration(10+op.bits[0]%400) * time.Millisecond)
	}
}

// kill ends a process, and mostly starts the next one there.
func (run *simRun) kill(w *simWorld, op simOp) {
	if d := run.pick(w, op); d != nil {
		if op.bits[1]>>32%2 == 0 {
			run.writeback(w, simOp{bits: op.bits})
		}
		d.kill()
		if op.bits[0]%4 > 0 {
			w.pass(time.Duration(op.bits[0] / 4 % uint64(5*time.Millisecond)))
			run.launch(w, d.host, op.bits[1])
		}
		if op.bits[0]>>32%4 == 0 && run.most > 1 { // somebody else takes over at the same time
			w.pass(time.Duration(op.bits[0] >> 40 % uint64(5*time.Millisecond)))
			run.launch(w, w.hosts[op.bits[2]%uint64(len(w.hosts))], op.bits[2]>>8)
		}
	}
}

// crash is the end of all processes of a host, and of its chunk memory, or of
// some pages of it.
func (run *simRun) crash(w *simWorld, op simOp) {
	d := run.pick(w, op)
	if d == nil {
		return
	}
	for _, x := range run.alive(w) {
		if x.host == d.host {
			x.kill()
		}
	}
	r := w.random("crash", op.bits[0])
	err := d.host.wiped
	if r.IntN(2) == 0 {
		err = func() error { return d.host.torn(r.IntN) }
		w.add("torn", 1)
	} else {
		w.add("wiped", 1)
	}
	w.log("%v goes down", d.host)
	e := errors.Join(err(), d.host.diskCrashes(r.IntN))
	if run.cfg.logSize > 0 && d.host.cache != "" && r.IntN(6) == 0 {
		w.log("the disk of %v is lost", d.host)
		w.add("disks lost", 1)
		e = errors.Join(e, d.host.diskLost())
	}
	if e != nil {
		w.fail("sim: directories of %v: %v", d.host, e)
	}
	if op.bits[1]%2 == 0 {
		w.pass(time.Duration(op.bits[1] / 2 % uint64(5*time.Millisecond)))
		run.launch(w, d.host, op.bits[2])
	}
}

func (run *simRun) writeback(w *simWorld, op simOp) {
	if d := run.pick(w, op); d != nil {
		synctest.Wait()
		if err := d.host.writeback(); err != nil {
			w.fail("sim: state directory of %v: %v", d.host, err)
		}
	}
}

func (run *simRun) closeOne(w *simWorld, op simOp) {
	if d := run.pick(w, op); d != nil {
		d.close()
	}
}

// damage spoils what the store has, and what the disk of a host has.
func (run *simRun) damage(w *simWorld, op simOp) {
	w.damage(w.random("damage", op.bits[0]).IntN)
	d := run.pick(w, op)
	if d == nil || d.host.cache == "" {
		return
	}
	synctest.Wait() // nothing is being written there
	if err := w.rot(d.host, w.random("rot", op.bits[1]).IntN); err != nil {
		w.fail("sim: directories of %v: %v", d.host, err)
	}
}

// fsck is a reader without an epoch.
func (run *simRun) fsck(w *simWorld, op simOp) {
	c := w.newWire(fmt.Sprintf("fsck%x", op.bits[0]))
	w.late.Go(func() {
		w.fsck(c, objproxy.NewRetry(c, objproxy.RetryOptions{First: time.Millisecond, Max: 20 * time.Millisecond, Random: func() float64 { return 0.5 }}), op.bits[1]%2 == 0)
	})
}

// finish opens the volume on a store that works, twice, and looks at all of it.
func (run *simRun) finish(w *simWorld) {
	r := w.random("finish", 0)
	w.pass(time.Duration(r.Int64N(int64(100 * time.Millisecond))))
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	for i := range 2 {
		h := run.where(w, simOp{bits: [4]uint64{r.Uint64()}})
		d := w.startDaemon(h, run.cfg, 4, 2, true)
		if !d.await(d.opened, "open") || d.e == nil {
			w.fail("FINAL: %s cannot open: %v", d.name, d.openErr)
			return
		}
		if i == 1 {
			w.removeSnapshots(d, w.random("remove", 0).IntN)
		}
		run.settle(w, d)
		w.checkSnapshots(d.e)
		if i == 0 && r.IntN(2) == 0 {
			d.kill()
			continue
		}
		d.close()
		d.await(d.ended, "close")
		d.exit()
	}
	if w.ok() && r.IntN(8) == 0 {
		run.spoil(w)
	}
}

// spoil takes the volume all its checkpoints: it must not be opened any more.
func (run *simRun) spoil(w *simWorld) {
	w.mu.Lock()
	for _, name := range w.named {
		_ = w.store.Delete(context.Background(), []string{name}) // it never fails
	}
	w.logLocked("all checkpoints are lost")
	w.spoiled = true
	w.mu.Unlock()
	d := w.startDaemon(w.hosts[0], run.cfg, 4, 2, true)
	d.await(d.opened, "open")
	if d.openErr == nil {
		w.fail("BASE: %s opened a volume without its checkpoints", d.name)
		d.kill()
		return
	}
	d.exit()
	w.add("spoiled", 1)
}

// settle looks at all of a volume that is at rest.
func (run *simRun) settle(w *simWorld, d *simDaemon) {
	w.pass(20 * time.Millisecond) // the reads that follow an open
	for range 2 {
		if err := d.e.Checkpoint(context.Background()); err != nil {
			w.fail("FINAL: checkpoint of e%d: %v", d.epoch, err)
			return
		}
	}
	w.checkBases(d.e)
	if run.cfg.gc.Wait > 0 { // it collects by itself
		w.pass(100*run.cfg.gc.Wait + watchEvery)
		w.silent(d)
	}
	for tries := 0; run.cfg.gc.Wait == 0; tries++ {
		if tries == 8 {
			w.fail("FINAL: collecting the garbage of e%d at rest does not come to an end", d.epoch)
			return
		}
		collect := d.e.GC
		if run.seed%2 == 1 {
			collect = d.e.Defrag
		}
		report, err := collect(context.Background())
		if err != nil {
			w.fail("FINAL: gc of e%d: %v", d.epoch, err)
			return
		}
		if report == (gc.Report{}) {
			w.silent(d)
			break
		}
		w.log("gc of %s: %+v", d.name, report)
	}
	w.checkBases(d.e)
	w.fsck(nil, w.store, true)
	for _, r := range simRegions {
		d.read(r.from, r.n, 0)
		w.pass(1)
	}
	w.pass(200 * time.Millisecond)
}

// silent makes sure that a volume at rest sends no requests.
func (w *simWorld) silent(d *simDaemon) {
	const idle = 5 * time.Second
	w.pass(watchEvery) // a last look at the record belongs to the writes before
	w.mu.Lock()
	before := w.requests
	w.mu.Unlock()
	w.pass(idle)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.requests - before; n > 0 {
		w.failLocked("IDLE: e%d sent %d requests in %v with nothing to do", d.epoch, n, idle)
	}
	w.count["silent"]++
}

// await waits for c, for as long as it may take at most.
func (d *simDaemon) await(c <-chan struct{}, what string) bool {
	t := time.NewTimer(simPatience)
	defer t.Stop()
	select {
	case <-c:
		return true
	case <-t.C:
		d.w.hangs("%s: %s", d.name, what)
		return false
	}
}

func (op simOp) String() string { return fmt.Sprintf("%s after %v %x", op.what, op.gap, op.bits) }
