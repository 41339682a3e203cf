package bs3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// The tests in rule_*_test.go are one scenario each for the rules that keep
// data: the run of events in which leaving the rule out would lose something. TestLeftOut makes sure that it would.

// ruleWorld is one store, and the daemons that use it.
type ruleWorld struct {
	t       *testing.T
	memory  *objtest.Memory
	root    string
	writers []*ruleWriter
	disks   map[string]*simDisk // of local logs, by host
}

// inRuleWorld runs a scenario in a bubble.
func inRuleWorld(t *testing.T, scenario func(t *testing.T, w *ruleWorld)) {
	t.Helper()
	root := simRoot(t)
	synctest.Test(t, func(t *testing.T) {
		w := &ruleWorld{t: t, memory: objtest.NewMemory(), root: root}
		t.Cleanup(func() {
			for _, x := range w.writers {
				x.kill()
			}
		})
		scenario(t, w)
	})
	if err := simUnmap(root); err != nil {
		t.Fatal(err)
	}
}

// ruleWriter is a daemon, and its way to the store.
type ruleWriter struct {
	w    *ruleWorld
	e    *Engine
	way  *ruleWay
	opts Options
	task chan error // of its open
	stop context.CancelFunc
	gone bool
}

// ruleWay holds up those requests that a test asks for, before they are done
// or after.
type ruleWay struct {
	objtest.Hooks
	cut chan struct{}

	mu   sync.Mutex
	held []*ruleHold
}

// ruleHold is a request that is held, or will be.
type ruleHold struct {
	match   func(objtest.Op) bool
	after   bool          // it is done, and its answer held
	arrived chan struct{} // closed when it has come
	release chan struct{}
	taken   bool
}

func newRuleWay(inner objproxy.Store) *ruleWay {
	y := &ruleWay{cut: make(chan struct{})}
	y.Hooks = objtest.Hooks{
		Inner:  inner,
		Before: func(ctx context.Context, op objtest.Op) error { return y.wait(ctx, op, false) },
		After: func(ctx context.Context, op objtest.Op, err error) error {
			if e := y.wait(ctx, op, true); e != nil {
				return e
			}
			return err
		},
	}
	return y
}

func (y *ruleWay) wait(ctx context.Context, op objtest.Op, after bool) error {
	y.mu.Lock()
	var hold *ruleHold
	for _, h := range y.held {
		if h.after == after && !h.taken && h.match(op) {
			h.taken = true
			hold = h
			break
		}
	}
	y.mu.Unlock()
	if hold == nil {
		select {
		case <-y.cut:
			<-ctx.Done()
			return ctx.Err()
		default:
			return nil
		}
	}
	close(hold.arrived)
	select {
	case <-hold.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hold holds the next request that matches, before it is done.
func (x *ruleWriter) hold(match func(objtest.Op) bool) *ruleHold { return x.way.add(match, false) }

// holdAnswer lets the next request that matches be done, and holds its answer.
func (x *ruleWriter) holdAnswer(match func(objtest.Op) bool) *ruleHold { return x.way.add(match, true) }

func (y *ruleWay) add(match func(objtest.Op) bool, after bool) *ruleHold {
	y.mu.Lock()
	defer y.mu.Unlock()
	h := &ruleHold{match: match, after: after, arrived: make(chan struct{}), release: make(chan struct{})}
	y.held = append(y.held, h)
	return h
}

func (h *ruleHold) wait(t *testing.T) {
	t.Helper()
	select {
	case <-h.arrived:
	case <-time.After(time.Hour):
		t.Fatal("a request that was to be held never came")
	}
}

func (h *ruleHold) letGo() { close(h.release) }

// on matches requests of one kind for one name.
func on(kind objtest.Kind, name string) func(objtest.Op) bool {
	return func(op objtest.Op) bool { return op.Kind == kind && op.Name == name }
}

// start begins to open the volume on a host.
func (w *ruleWorld) start(host string, change ...func(*Options)) *ruleWriter {
	x := &ruleWriter{w: w, way: newRuleWay(w.memory), task: make(chan error, 1)}
	x.opts = Options{
		Store: objproxy.NewRetry(x.way, objproxy.RetryOptions{First: time.Millisecond, Max: 10 * time.Millisecond}), Log: zerolog.Nop(),
		Host: Host{ID: host, Name: host, Boot: [16]byte{1}}, StatePath: filepath.Join(w.root, host), Takeover: true,
		Size: 2 * 4096 * simBlockSize, BlockSize: simBlockSize, ChunkSize: 2 * simBlockSize,
		Durable: true, Memory: 4 * 2 * simBlockSize, Uploaders: 3,
		GC: gc.Options{Step: 64, LiveData: 0.9},
	}
	for _, c := range change {
		c(&x.opts)
	}
	w.writers = append(w.writers, x)
	return x
}

// launch opens, in the background; opened waits for it.
func (x *ruleWriter) launch() *ruleWriter {
	var ctx context.Context
	ctx, x.stop = context.WithCancel(x.w.t.Context())
	go func() {
		var err error
		x.e, err = Open(ctx, x.opts)
		x.task <- err
	}()
	return x
}

func (x *ruleWriter) opened() error {
	select {
	case err := <-x.task:
		x.task <- err
		return err
	case <-time.After(time.Hour):
		x.w.t.Error("the open does not end")
		x.stop()
		return <-x.task
	}
}

// open opens the volume on a host, which must succeed.
func (w *ruleWorld) open(host string, change ...func(*Options)) *ruleWriter {
	w.t.Helper()
	x := w.start(host, change...).launch()
	if err := x.opened(); err != nil {
		w.t.Fatalf("open on %s: %v", host, err)
	}
	return x
}

// kill ends the daemon as the death of its process would.
func (x *ruleWriter) kill() {
	if x.gone {
		return
	}
	x.gone = true
	if x.stop == nil {
		return
	}
	synctest.Wait()
	close(x.way.cut)
	x.stop()
	x.w.t.Log("killed: ", <-x.task)
	if x.e != nil {
		ctx, cancel := context.WithCancel(x.w.t.Context())
		cancel()
		_ = x.e.Close(ctx)
	}
}

// close ends the daemon in an orderly way.
func (x *ruleWriter) close() error {
	x.gone = true
	return x.e.Close(x.w.t.Context())
}

// write writes stamp into some blocks.
func (x *ruleWriter) write(stamp uint64, blocks ...uint64) {
	x.w.t.Helper()
	for _, b := range blocks {
		if err := x.e.WriteAt(x.w.t.Context(), simRec{b, 1, stamp}.data(), int64(b)*simBlockSize); err != nil {
			x.w.t.Fatalf("write: %v", err)
		}
	}
}

func (x *ruleWriter) flush() {
	x.w.t.Helper()
	if err := x.e.Flush(x.w.t.Context()); err != nil {
		x.w.t.Fatalf("flush: %v", err)
	}
}

// flushing flushes in the background.
func (x *ruleWriter) flushing() <-chan error {
	done := make(chan error, 1)
	go func() { done <- x.e.Flush(x.w.t.Context()) }()
	synctest.Wait()
	return done
}

func (x *ruleWriter) checkpoint() {
	x.w.t.Helper()
	if err := x.e.Checkpoint(x.w.t.Context()); err != nil {
		x.w.t.Fatalf("checkpoint: %v", err)
	}
}

// holds demands that block carries stamp.
func (x *ruleWriter) holds(stamp, block uint64) {
	x.w.t.Helper()
	p := make([]byte, simBlockSize)
	if err := x.e.ReadAt(x.w.t.Context(), p, int64(block)*simBlockSize); err != nil {
		x.w.t.Fatalf("read of block %d: %v", block, err)
	}
	if got, err := simRead(p, block); err != nil || got != stamp {
		x.w.t.Fatalf("block %d holds write %d, not %d (%v)", block, got, stamp, err)
	}
}

// fenced demands that err says so.
func (w *ruleWorld) fenced(err error) {
	w.t.Helper()
	if !errors.Is(err, volume.ErrFenced) {
		w.t.Fatalf("not fenced, but: %v", err)
	}
}

// intact demands that everything in the store is as it should be.
func (w *ruleWorld) intact() {
	w.t.Helper()
	report, err := fsck.Check(w.t.Context(), w.memory, fsck.Options{Data: true})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Severity == fsck.SeverityError {
			w.t.Errorf("%v", f)
		}
	}
	v, _, err := volume.ReadRecord(w.t.Context(), w.memory)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range v.Checkpoints {
		if _, _, err := volume.ReadAll(w.t.Context(), w.memory, name); err != nil {
			w.t.Errorf("a checkpoint that the record names: %v", err)
		}
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// object reads the tail of an object of the log; nil if it is not there.
func (w *ruleWorld) object(k key.Key) *layout.Object {
	w.t.Helper()
	b, _, err := volume.ReadAll(w.t.Context(), w.memory, k.Name())
	if errors.Is(err, objproxy.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	o, err := layout.DecodeTail(b, int64(len(b)))
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// names lists what there is below a prefix.
func (w *ruleWorld) names(prefix string) []string {
	w.t.Helper()
	list, err := w.memory.List(w.t.Context(), prefix, "", 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	names := make([]string, len(list))
	for i, o := range list {
		names[i] = o.Name
	}
	return names
}

// wipe loses the state directory of a host.
func (w *ruleWorld) wipe(host string) {
	w.t.Helper()
	if err := os.RemoveAll(filepath.Join(w.root, host)); err != nil {
		w.t.Fatal(err)
	}
}

// versions lists what the store holds, with its versions.
func (w *ruleWorld) versions() string {
	w.t.Helper()
	list, err := w.memory.List(w.t.Context(), "", "", 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprint(list)
}

// clearSlot empties the slot of the chunk of key k in the chunk memory of a host
// on which no daemon runs.
func (w *ruleWorld) clearSlot(host string, k key.Key) {
	w.t.Helper()
	w.inMemory(host, func(s *wlog.Slot) bool {
		h, err := s.Header()
		if err != nil || h.Key != k || s.Count() == 0 {
			return false
		}
		s.Clear()
		return true
	})
}

// inMemory calls f for the slots of the chunk memory of a host on which no daemon
// runs, until it returns true.
func (w *ruleWorld) inMemory(host string, f func(*wlog.Slot) bool) {
	w.t.Helper()
	dir, err := wlog.LockDir(filepath.Join(w.root, host))
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := dir.OpenMemory()
	if err != nil {
		w.t.Fatal(err)
	}
	found := slices.ContainsFunc(m.Slots(), f)
	if err := errors.Join(m.Close(), dir.Close()); err != nil || !found {
		w.t.Fatalf("found %v, %v", found, err)
	}
}

// leftover makes a volume whose writer on host a died with object 1 missing
// and object 2 stored: whoever takes over puts its fence at 1, and 2 is a
// leftover. The write in object 2 was never in the volume.
func (w *ruleWorld) leftover() {
	w.t.Helper()
	a := w.open("a")
	first := a.hold(on(objtest.Put, key.Key(1).Name()))
	a.write(1, 0, 1) // object 1
	a.write(2, 2, 3) // object 2
	first.wait(w.t)
	synctest.Wait()
	if w.object(2) == nil {
		w.t.Fatal("object 2 is not stored")
	}
	a.kill()
}

func isVolumePut(op objtest.Op) bool { return op.Kind == objtest.Put && op.Name == layout.VolumeName }

func isObjectPut(op objtest.Op) bool {
	_, err := key.Parse(op.Name)
	return err == nil && op.Kind == objtest.Put
}

func isFetch(k key.Key) func(objtest.Op) bool { return on(objtest.Get, k.Name()) }

func below(prefix string, kinds ...objtest.Kind) func(objtest.Op) bool {
	return func(op objtest.Op) bool { return slices.Contains(kinds, op.Kind) && strings.HasPrefix(op.Name, prefix) }
}
