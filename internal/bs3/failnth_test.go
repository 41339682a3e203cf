package bs3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// failRun is one run of a scenario in which one store call fails.
type failRun struct {
	t      *testing.T
	memory *objtest.Memory
	store  *failStore
	root   string
	tidy   bool     // collections by time merge and sort
	disk   *simDisk // of the local log, in its mode

	damaged bool // a checkpoint is, by the test

	e       *Engine
	history []simRec
	flushed int // of the history, by an acknowledged flush
}

// failStore is a store whose way can be changed while nobody uses it, and cut.
type failStore struct {
	objtest.Hooks
	cut atomic.Bool
}

func newFailStore(inner objproxy.Store) *failStore {
	s := &failStore{}
	var calls atomic.Int64
	s.Hooks = objtest.Hooks{Inner: inner, Before: func(ctx context.Context, _ objtest.Op) error {
		if s.cut.Load() {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		// One after the other, so that the nth call is the same in each run.
		return objproxy.Sleep(ctx, time.Millisecond+time.Duration(calls.Add(1)))
	}}
	return s
}

func (f *failRun) options(host string) Options {
	o := Options{
		Store: f.store, Log: zerolog.Nop(),
		Host: Host{ID: host, Name: host, Boot: [16]byte{1}}, StatePath: filepath.Join(f.root, host), Takeover: true,
		Size: 2 * 4096 * simBlockSize, BlockSize: simBlockSize, ChunkSize: 3 * simBlockSize,
		Durable: true, Memory: 5 * 3 * simBlockSize, Uploaders: 2,
		GC: gc.Options{Step: 4, LiveData: 0.9},
	}
	if f.tidy {
		o.GC.MaxMoves, o.GC.Eager = 1, true
	}
	if f.disk != nil {
		o.Durable, o.CachePath, o.LogSize, o.openLog = false, filepath.Join(f.root, host+"-cache"), logFrames(32), f.disk.open
	}
	return o
}

// crash is the end of the machine: the state directory is gone, and what was not
// synced of the local log.
func (f *failRun) crash(host string) {
	f.t.Helper()
	f.kill()
	o := f.options(host)
	if err := os.RemoveAll(o.StatePath); err != nil {
		f.t.Fatal(err)
	}
	if f.disk == nil {
		return
	}
	if err := f.disk.crash(filepath.Join(o.CachePath, "log"), func() bool { return false }); err != nil {
		f.t.Fatal(err)
	}
}

func (f *failRun) open(host string) (err error) {
	f.e, err = Open(f.t.Context(), f.options(host))
	return err
}

func (f *failRun) write(block uint64, n uint32) error {
	r := simRec{block, n, uint64(len(f.history)) + 1}
	if err := f.e.WriteAt(f.t.Context(), r.data(), int64(block)*simBlockSize); err != nil {
		return err
	}
	f.history = append(f.history, r)
	return nil
}

func (f *failRun) discard(block uint64, n uint32) error {
	if err := f.e.Discard(f.t.Context(), int64(block)*simBlockSize, int64(n)*simBlockSize); err != nil {
		return err
	}
	f.history = append(f.history, simRec{block: block, n: n})
	return nil
}

func (f *failRun) flush() error {
	n := len(f.history)
	err := f.e.Flush(f.t.Context())
	if err == nil {
		f.flushed = n
	}
	return err
}

// some writes to a few blocks, so that objects are thin soon.
func (f *failRun) some(rounds int) error {
	for i := range rounds {
		for _, block := range []uint64{uint64(i), 4095, 4096 + uint64(i%3)} {
			if err := f.write(block, 1); err != nil {
				return err
			}
		}
		if err := f.flush(); err != nil {
			return err
		}
	}
	return nil
}

func (f *failRun) close() error {
	e := f.e
	f.e = nil
	n := len(f.history)
	err := e.Close(f.t.Context())
	if err == nil {
		f.flushed = n
	}
	return err
}

// kill ends the engine as the death of its process would.
func (f *failRun) kill() {
	if f.e == nil {
		return
	}
	synctest.Wait()
	f.store.cut.Store(true)
	ctx, cancel := context.WithCancel(f.t.Context())
	cancel()
	if err := f.e.Close(ctx); err == nil {
		f.t.Error("close without a context succeeded")
	}
	f.e = nil
	f.store.cut.Store(false)
}

// do fails the test if a step of the preparation does.
func (f *failRun) do(steps ...error) {
	f.t.Helper()
	for _, err := range steps {
		if err != nil {
			f.t.Fatalf("preparation: %v", err)
		}
	}
}

// check opens the volume in a copy of the store, with the state directory or
// after the machine has crashed, and compares.
func (f *failRun) check(host string, lost bool) {
	f.t.Helper()
	f.store = newFailStore(f.memory.Clone())
	if lost {
		f.crash(host)
	}
	if err := f.open(host); err != nil {
		f.t.Fatalf("open (state lost: %v): %v", lost, err)
	}
	v, _, err := volume.ReadRecord(f.t.Context(), f.store)
	f.do(err)
	for _, name := range v.Checkpoints {
		if _, err := volume.ReadCheckpoint(f.t.Context(), f.store, v.UUID, name); err != nil && !f.damaged {
			f.t.Errorf("a checkpoint that the record names: %v", err)
		}
	}
	n := int(f.e.log.Now().Seq - 1)
	switch {
	case n < f.flushed || n > len(f.history):
		f.t.Fatalf("%d writes are there, %d were acknowledged and %d flushed (state lost: %v)", n, len(f.history), f.flushed, lost)
	case n < len(f.history) && !lost:
		f.t.Fatalf("%d writes are there, %d were acknowledged", n, len(f.history))
	}
	f.compare(f.history[:n])
	f.compareSnapshots()
	// It must go on from here.
	history, flushed := f.history, f.flushed
	f.history = slices.Clone(f.history[:n])
	if err := f.some(2); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.e.GC(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.compare(f.history)
	f.history = history // which the snapshots are of
	f.compareSnapshots()
	if err := f.e.Close(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.e, f.history, f.flushed = nil, history, flushed
}

func (f *failRun) compare(history []simRec) {
	f.t.Helper()
	held := simFold(history)
	if m := f.e.log.View().Mapped(); m != uint64(len(held)) {
		f.t.Fatalf("%d blocks are mapped, not %d", m, len(held))
	}
	for b, stamp := range held {
		p := make([]byte, simBlockSize)
		if err := f.e.ReadAt(f.t.Context(), p, int64(b)*simBlockSize); err != nil {
			f.t.Fatal(err)
		}
		if got, err := simRead(p, b); err != nil || got != stamp {
			f.t.Fatalf("block %d holds write %d, not %d: %v", b, got, stamp, err)
		}
	}
}

// compareSnapshots reads all blocks of all snapshots.
func (f *failRun) compareSnapshots() {
	f.t.Helper()
	ctx := f.t.Context()
	v, _, err := volume.ReadRecord(ctx, f.store)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, s := range v.Snapshots {
		c, err := volume.ReadCheckpoint(ctx, f.store, v.UUID, s.Directory)
		if err == nil {
			err = simCompare(ctx, f.store, s.Name, simFold(f.history[:c.NextSeq-1]))
		}
		if err != nil {
			f.t.Fatalf("snapshot %s: %v", s.Name, err)
		}
	}
}

// snapshotted is a volume with two snapshots, of which one shares its state with a
// checkpoint, and one was made without an epoch.
func snapshotted(f *failRun) {
	f.do(f.open("a"), f.some(3))
	_, err := f.e.Snapshot(f.t.Context(), "s")
	f.do(err, f.some(2))
	_, err = checkpoint.SnapshotOutside(f.t.Context(), f.store, zerolog.Nop(), "t")
	f.do(err, f.some(3))
}

// failScenarios are what a store call may fail in. before runs on a store that
// works; then run must either succeed, or fail and leave a volume that has
// everything.
var failScenarios = []struct {
	name   string
	before func(*failRun)
	run    func(*failRun) error
	host   string // that has the volume then
	logged bool   // in the mode of the local log
}{
	{"first open", func(*failRun) {}, func(f *failRun) error { return f.open("a") }, "a", false},
	{"write and flush", func(f *failRun) { f.do(f.open("a"), f.some(2)) }, func(f *failRun) error { return f.some(3) }, "a", false},
	{"write without flush", func(f *failRun) { f.do(f.open("a")) }, func(f *failRun) error {
		for i := range 7 {
			if err := f.write(uint64(i), 3); err != nil {
				return err
			}
		}
		return nil
	}, "a", false},
	{"discard and flush", func(f *failRun) { f.do(f.open("a"), f.some(3)) }, func(f *failRun) error {
		if err := errors.Join(f.discard(1, 2), f.discard(4096, 4096)); err != nil {
			return err
		}
		return f.flush()
	}, "a", false},
	{"checkpoint", func(f *failRun) { f.do(f.open("a"), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2)) }, func(f *failRun) error {
		return f.e.Checkpoint(f.t.Context())
	}, "a", false},
	{"collect garbage", func(f *failRun) {
		f.do(f.open("a"), f.some(5), f.e.Checkpoint(f.t.Context()), f.some(3), f.discard(0, 2))
	}, func(f *failRun) error {
		_, err := f.e.GC(f.t.Context())
		return err
	}, "a", false},
	{"put in order", func(f *failRun) {
		f.do(f.open("a"))
		for i := range uint64(12) { // three blocks an object
			f.do(f.write(i*5%12, 1))
		}
		f.do(f.flush(), f.e.Checkpoint(f.t.Context()))
	}, func(f *failRun) error {
		r, err := f.e.Defrag(f.t.Context())
		if err == nil && r.MovedBytes == 0 {
			f.t.Error("nothing was moved")
		}
		return err
	}, "a", false},
	{"tidy by time", func(f *failRun) {
		f.tidy = true
		f.do(f.open("a"))
		for i := range uint64(12) {
			f.do(f.write(i*5%12, 1))
		}
		f.do(f.flush(), f.e.Checkpoint(f.t.Context()), f.e.Checkpoint(f.t.Context()))
	}, func(f *failRun) error {
		r, err := f.e.collector.ByTime(f.t.Context())
		if err == nil && r.MovedBytes == 0 {
			f.t.Error("nothing was moved")
		}
		return errors.Join(err, f.flush()) // which waits for what was moved, too
	}, "a", false},
	{"close", func(f *failRun) { f.do(f.open("a"), f.some(2), f.write(1, 1)) }, (*failRun).close, "a", false},
	{"open", func(f *failRun) {
		f.do(f.open("a"), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2), f.close())
	}, func(f *failRun) error { return f.open("a") }, "a", false},
	{"open and replay", func(f *failRun) {
		f.do(f.open("a"), f.some(2))
		synctest.Wait()
		f.store.cut.Store(true)
		for i := range 7 {
			f.do(f.write(uint64(i), 1))
		}
		f.do(f.discard(2, 1))
		f.kill()
	}, func(f *failRun) error { return f.open("a") }, "a", false},
	{"open with a damaged checkpoint", func(f *failRun) {
		f.do(f.open("a"), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2))
		f.kill()
		v, _, err := volume.ReadRecord(f.t.Context(), f.memory)
		f.do(err, f.memory.Delete(f.t.Context(), v.Checkpoints[1:]))
		f.damaged = true
	}, func(f *failRun) error {
		if err := f.open("a"); err != nil {
			return err
		}
		return f.e.Checkpoint(f.t.Context())
	}, "a", false},
	{"take over", func(f *failRun) {
		f.do(f.open("a"), f.some(2))
		f.kill()
	}, func(f *failRun) error {
		if err := f.open("b"); err != nil {
			return err
		}
		return f.some(1)
	}, "b", false},
	{"read", func(f *failRun) { f.do(f.open("a"), f.some(4), f.close(), f.open("a")) }, func(f *failRun) error {
		return f.e.ReadAt(f.t.Context(), make([]byte, 4*simBlockSize), 0)
	}, "a", false},
	{"snapshot", func(f *failRun) { f.do(f.open("a"), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2)) }, func(f *failRun) error {
		_, err := f.e.Snapshot(f.t.Context(), "s")
		return errors.Join(err, f.some(2))
	}, "a", false},
	{"snapshot from outside", func(f *failRun) { f.do(f.open("a"), f.some(2), f.e.Checkpoint(f.t.Context()), f.some(2)) }, func(f *failRun) error {
		_, err := checkpoint.SnapshotOutside(f.t.Context(), f.store, zerolog.Nop(), "s")
		return errors.Join(err, f.e.Checkpoint(f.t.Context()))
	}, "a", false},
	{"remove snapshots", snapshotted, func(f *failRun) error {
		ctx := f.t.Context()
		return errors.Join(f.e.Checkpoint(ctx), f.e.RemoveSnapshot(ctx, "s"), f.e.RemoveSnapshot(ctx, "t"))
	}, "a", false},
	{"remove snapshots from outside", snapshotted, func(f *failRun) error {
		ctx := f.t.Context()
		return errors.Join(checkpoint.RemoveSnapshotOutside(ctx, f.store, zerolog.Nop(), "s"), checkpoint.RemoveSnapshotOutside(ctx, f.store, zerolog.Nop(), "t"))
	}, "a", false},
	{"collect garbage beside snapshots", snapshotted, func(f *failRun) error {
		_, err := f.e.GC(f.t.Context())
		return err
	}, "a", false},
	{"log: first open", func(*failRun) {}, func(f *failRun) error { return f.open("a") }, "a", true},
	{"log: write and flush", func(f *failRun) { f.do(f.open("a"), f.some(2)) }, func(f *failRun) error { return f.some(6) }, "a", true},
	{"log: close", func(f *failRun) { f.do(f.open("a"), f.some(2), f.write(1, 1)) }, (*failRun).close, "a", true},
	{"log: open after a crash", func(f *failRun) {
		f.do(f.open("a"), f.some(1))
		synctest.Wait()
		f.store.cut.Store(true)
		f.do(f.some(2), f.discard(2, 1), f.flush(), f.write(3, 1))
		f.crash("a")
	}, func(f *failRun) error { return f.open("a") }, "a", true},
	{"log: open in another mode", func(f *failRun) {
		f.do(f.open("a"))
		f.store.cut.Store(true)
		f.do(f.some(2))
		f.crash("a")
	}, func(f *failRun) (err error) {
		o := f.options("a")
		o.Durable = true
		f.e, err = Open(f.t.Context(), o)
		return err
	}, "a", true},
}

// TestFailNth runs every scenario with its 1st, 2nd, 3rd … store call failing,
// until all have had their turn. What was acknowledged must be there after.
func TestFailNth(t *testing.T) {
	permanent := errors.New("objtest: 403")
	for _, c := range failScenarios {
		for _, fault := range []struct {
			name    string
			err     error
			applied bool
			retry   bool // what production does: the engine sees no failure
		}{
			{"not done", objproxy.ErrTransient, false, true},
			{"answer lost", objproxy.ErrTransient, true, true},
			{"refused", permanent, false, true},
			{"not done, not retried", objproxy.ErrTransient, false, false},
			{"answer lost, not retried", objproxy.ErrTransient, true, false},
			{"refused, not retried", permanent, false, false},
		} {
			t.Run(c.name+"/"+fault.name, func(t *testing.T) {
				t.Parallel()
				root := simRoot(t)
				calls := 0
				for n, fired := 1, true; fired && !t.Failed(); n++ {
					synctest.Test(t, func(t *testing.T) {
						f := &failRun{t: t, memory: objtest.NewMemory(), root: filepath.Join(root, fmt.Sprint(n))}
						f.store = newFailStore(f.memory)
						if c.logged {
							f.disk = &simDisk{}
						}
						t.Cleanup(f.kill) // or a failed check would leave its engine in the bubble
						c.before(f)
						time.Sleep(time.Second) // until nobody uses the store
						synctest.Wait()
						nth := objtest.NewFailNth(f.memory, n, fault.err, fault.applied)
						f.store.Inner = nth
						if fault.retry {
							f.store.Inner = objproxy.NewRetry(nth, objproxy.RetryOptions{First: time.Millisecond, Max: 10 * time.Millisecond})
						}
						err := c.run(f)
						if err != nil && fault.retry {
							t.Errorf("call %d fails once, and so does all: %v", n, err)
						}
						if fired = nth.Fired(); !fired && err != nil {
							t.Errorf("it fails although no call does: %v", err)
						}
						f.kill()
						f.store.Inner = f.memory
						if !c.logged { // a check leaves another log behind
							f.check(c.host, false)
						}
						f.check(c.host, true)
					})
					calls = n - 1
				}
				if err := simUnmap(root); err != nil {
					t.Fatal(err)
				}
				if calls == 0 {
					t.Error("no call was made to fail")
				}
				t.Logf("%d calls failed in turn", calls)
			})
		}
	}
}
