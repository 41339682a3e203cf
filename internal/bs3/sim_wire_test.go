package bs3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

var (
	errSimTransient = fmt.Errorf("sim: no answer: %w", objproxy.ErrTransient)
	errSimRefused   = errors.New("sim: 403")
)

// simWire is one process's way to the store. It implements objproxy.Store.
type simWire struct {
	w    *simWorld
	name string
	dead chan struct{} // closed when the process dies: it hears no more answers

	mu     sync.Mutex
	nth    map[string]uint64 // calls so far, by what they ask for
	paused time.Time         // until then the process does nothing
	outage time.Time         // until then the store answers 503
	fought map[string]bool   // names at which it found somebody else
	lies   map[string]int    // wrong answers, by name
}

func (w *simWorld) newWire(name string) *simWire {
	return &simWire{w: w, name: name, dead: make(chan struct{}), nth: make(map[string]uint64), fought: make(map[string]bool), lies: make(map[string]int)}
}

func (c *simWire) pause(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = time.Now().Add(d)
}

func (c *simWire) pausedUntil() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

// lied reports whether an object was answered wrongly so often that asking
// again did not help.
func (c *simWire) lied() bool { return c.liedAbout("") }

// liedAbout is lied for an object that is named in what.
func (c *simWire) liedAbout(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range c.lies {
		if n > 1 && (what == "" || strings.Contains(what, name)) {
			return true
		}
	}
	return false
}

func (c *simWire) breakFor(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outage = time.Now().Add(d)
}

// simFate is what becomes of one request.
type simFate struct {
	there, back, lateBy, spread            time.Duration
	fail, refuse, lost, late, half, outage bool
	outlive, bodyStaysOpen, wrong          bool
	stall                                  float64 // below the run's share: it stops
	stallFor                               time.Duration
	r                                      *rand.Rand
}

func (c *simWire) draw(op objtest.Op) simFate {
	what := simAsks(op)
	c.mu.Lock()
	c.nth[what]++
	nth := c.nth[what]
	outage := time.Now().Before(c.outage)
	c.mu.Unlock()
	c.w.mu.Lock()
	net, calm := c.w.net, c.w.calm
	c.w.mu.Unlock()

	r := c.w.random(c.name+" "+what, nth)
	upTo := func(d time.Duration) time.Duration { return 1 + time.Duration(r.Int64N(int64(d)+1)) }
	f := simFate{stall: 1, there: upTo(net.latency), back: upTo(net.latency), lateBy: upTo(net.lateBy), spread: upTo(time.Millisecond), outage: outage, r: r}
	if _, err := key.Parse(op.Name); err == nil && op.Kind == objtest.Put && r.IntN(4) == 0 {
		f.there += upTo(net.upload)
	}
	if calm {
		return f
	}
	c.odd(&f, op, net)
	dice := r.Float64()
	hit := func(share float64) bool {
		dice -= share
		return dice < 0 && dice >= -share
	}
	f.fail, f.refuse, f.lost = hit(net.fail), hit(net.refuse) || f.refuse, hit(net.lost)
	f.late = hit(net.late) && op.Changes()
	f.half = hit(net.half) && len(op.Names) > 1
	if hit(net.slow) {
		f.back = f.lateBy
	}
	f.outlive = op.Changes() && r.Float64() < net.outlive
	f.bodyStaysOpen = r.IntN(2) == 0
	f.wrong = op.Kind == objtest.Get && net.wrong > 0 && !strings.HasPrefix(op.Name, objproxy.ProbePrefix) && c.w.random("lie "+c.name+" "+what, nth).Float64() < net.wrong
	f.stall = r.Float64()
	f.stallFor = upTo([]time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second}[r.IntN(3)])
	return f
}

// odd refuses what a store that keeps what it has, or is full, refuses.
func (c *simWire) odd(f *simFate, op objtest.Op, net simNetwork) {
	spell := func(what string, d time.Duration) float64 { // the same number for so long
		return c.w.random(what, uint64(time.Since(c.w.start)/d)).Float64()
	}
	switch {
	case op.Kind == objtest.Delete && net.deny > 0 && !strings.HasPrefix(op.Name, objproxy.ProbePrefix):
		f.refuse = spell("deny "+op.Name, time.Minute) < net.deny
	case op.Kind == objtest.Put && net.full > 0:
		f.refuse = spell("full", 100*time.Millisecond) < net.full
	}
	if f.refuse {
		c.w.add(string(op.Kind)+"s refused", 1)
	}
}

// fights reports whether the process has found somebody else at a name.
func (c *simWire) fights(name string, exists bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if exists {
		c.fought[name] = true
	}
	return c.fought[name]
}

// travel waits for about d; an error if the process died or gave up before.
func (c *simWire) travel(ctx context.Context, d time.Duration) error {
	t := c.w.due(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.dead:
		return c.death(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// death is the answer to a dead process: none, until it ends itself.
func (c *simWire) death(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// resume waits until the process is not paused. Those that waited go on one
// after the other.
func (c *simWire) resume(ctx context.Context, spread time.Duration) error {
	for until := c.pausedUntil(); time.Now().Before(until); until = c.pausedUntil() {
		if err := c.travel(ctx, time.Until(until)+spread); err != nil {
			return err
		}
	}
	return nil
}

// call lets apply happen to the store, or not, or later. later prepares a late
// request at once and returns what is to happen when it arrives, or is dropped.
func (c *simWire) call(ctx context.Context, op objtest.Op, apply func(f simFate) error, later func(open bool) func(arrives bool)) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	select {
	case <-c.dead:
		return c.death(ctx)
	default:
	}
	if err := c.w.inTurn(ctx, c, simAsks(op)); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	f := c.draw(op)
	postpone := func() { c.w.arriveLater(f.lateBy, later(f.bodyStaysOpen)) }
	if err := c.resume(ctx, f.spread); err != nil {
		return fmt.Errorf("%s: %w", op, err) // it was never sent
	}
	t := c.w.due(f.there)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.dead:
		if f.outlive {
			postpone()
		}
		return c.death(ctx)
	case <-ctx.Done():
		if f.outlive {
			postpone()
		}
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	var err error
	switch {
	case f.fail || f.outage:
		err = errSimTransient
	case f.refuse:
		err = errSimRefused
	case f.late:
		postpone()
		err = errSimTransient
	default:
		if err = apply(f); f.lost {
			err = errSimTransient
		}
	}
	if err == nil || !errors.Is(err, errSimTransient) && !errors.Is(err, errSimRefused) {
		c.w.add("answers", 1)
	} else {
		c.w.add("no answer", 1)
	}
	if e := c.travel(ctx, f.back); e != nil {
		return fmt.Errorf("%s: %w", op, e)
	}
	// A process that stops where another one just was, or where it is about to
	// replace something, is the most dangerous one.
	share := c.w.net.stall
	if c.fights(op.Name, errors.Is(err, objproxy.ErrExists)) || op.Name == layout.VolumeName {
		share *= 8
	}
	if f.stall < share {
		c.w.log("%s stops for %v", c.name, f.stallFor)
		c.pause(f.stallFor)
	}
	if e := c.resume(ctx, f.spread); e != nil {
		return fmt.Errorf("%s: %w", op, e)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// simTurn is a request that was made in an instant in which others may have
// been made too.
type simTurn struct {
	what  string
	start chan *time.Timer
}

// inTurn returns each of the requests made in one instant a later one of its
// own, in an order that does not depend on which goroutine ran first: when the
// clock moves on, all of them are there. What the same instant ends is not
// sent.
func (w *simWorld) inTurn(ctx context.Context, c *simWire, what string) error {
	turn := &simTurn{what: c.name + " " + what, start: make(chan *time.Timer, 1)}
	w.mu.Lock()
	w.turns = append(w.turns, turn)
	first := len(w.turns) == 1
	w.mu.Unlock()
	if first {
		time.AfterFunc(1, w.giveTurns)
	}
	var t *time.Timer
	select {
	case t = <-turn.start:
		defer t.Stop()
	case <-c.dead:
		return c.death(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-t.C:
		return nil
	case <-c.dead:
		return c.death(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *simWorld) giveTurns() {
	w.mu.Lock()
	turns := w.turns
	w.turns = nil
	w.mu.Unlock()
	slices.SortFunc(turns, func(a, b *simTurn) int { return strings.Compare(a.what, b.what) })
	for _, turn := range turns {
		r := w.random(turn.what, uint64(time.Now().UnixNano()))
		turn.start <- w.due(1 + time.Duration(r.Int64N(1+int64(w.net.latency)/4)))
	}
}

// arriveLater lets a request arrive that nobody waits for any more.
func (w *simWorld) arriveLater(after time.Duration, arrive func(arrives bool)) {
	w.late.Go(func() {
		t := w.due(after)
		defer t.Stop()
		select {
		case <-t.C:
			arrive(true)
		case <-w.over:
			arrive(false)
		}
	})
}

// Put implements objproxy.Store.
func (c *simWire) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	var v objproxy.Version
	err := c.call(ctx, objtest.Op{Kind: objtest.Put, Name: name, Bytes: body.Size(), Cond: cond}, func(simFate) (err error) {
		r := body.Open()
		data, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil {
			return err
		}
		v, err = c.put(name, data, cond, "")
		return err
	}, func(open bool) func(bool) {
		// net/http may go on reading the body for a while, or have sent it long ago.
		r := body.Open()
		var data []byte
		if !open {
			data, _ = io.ReadAll(r)
			_ = r.Close()
		}
		return func(arrives bool) {
			if open {
				data, _ = io.ReadAll(r)
				_ = r.Close()
			}
			if arrives {
				c.w.add("late puts", 1)
				_, _ = c.put(name, data, cond, " LATE") // nobody hears how it ended
			}
		}
	})
	if err != nil {
		return "", err
	}
	return v, nil
}

// put is the moment when a put happens.
func (c *simWire) put(name string, data []byte, cond objproxy.Condition, late string) (objproxy.Version, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.requests++
	v, err := c.w.store.Put(context.Background(), name, objproxy.Body{Data: data}, cond)
	how := ""
	if cond.Absent() {
		how = " if absent"
	} else if _, ok := cond.Version(); ok {
		how = " if version"
	}
	outcome := "ok"
	if err != nil {
		outcome = "EXISTS"
	}
	c.w.logLocked("%s put %s%s: %s%s", c.name, simName(name), how, outcome, late)
	if err == nil {
		c.w.observePut(c.name, name, data)
	}
	return v, err
}

// Get implements objproxy.Store.
func (c *simWire) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	var n int
	var info objproxy.Info
	err := c.call(ctx, objtest.Op{Kind: objtest.Get, Name: name, Bytes: int64(len(p)), Off: off}, func(f simFate) (err error) {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		c.w.requests++
		n, info, err = c.w.store.Get(context.Background(), name, p, off)
		c.w.logLocked("%s get %s: %t", c.name, simName(name), err == nil)
		if err == nil && f.wrong {
			n, info, err = c.lie(f.r, name, p[:n], off, info)
		}
		return err
	}, nil)
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	return n, info, nil
}

// lie makes the right answer to a get, p with info, a wrong one. Under the
// world's mutex.
func (c *simWire) lie(r *rand.Rand, name string, p []byte, off int64, info objproxy.Info) (int, objproxy.Info, error) {
	c.mu.Lock()
	c.lies[name]++
	c.mu.Unlock()
	c.w.count["wrong answers"]++
	ctx := context.Background()
	what := [...]string{"a flipped bit", "another range", "another object", "cut"}[r.IntN(4)]
	c.w.logLocked("%s is answered wrongly: %s", c.name, what)
	right, n := slices.Clone(p), len(p)
	switch what {
	case "another range":
		_, _, _ = c.w.store.Get(ctx, name, p, max(0, off+int64(r.IntN(3)-1)*int64(layout.Stride(simBlockSize)))) // as far as it is there
	case "another object":
		others, _ := c.w.store.List(ctx, "", "", 1000) // it never fails
		other := others[r.IntN(len(others))]
		m, itself, err := c.w.store.Get(ctx, other.Name, p, off)
		if err == nil && off < 0 {
			n = m
		}
		if r.IntN(2) == 0 {
			info = itself
		}
	case "cut":
		if off >= 0 {
			return 0, objproxy.Info{}, objproxy.ErrRange
		}
		n = r.IntN(n + 1)
		info.Size -= int64(len(p) - n)
	}
	if n == len(p) && bytes.Equal(p, right) && n > 0 {
		p[r.IntN(n)] ^= 1 << r.IntN(8)
	}
	return n, info, nil
}

// List implements objproxy.Store.
func (c *simWire) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	var infos []objproxy.Info
	err := c.call(ctx, objtest.Op{Kind: objtest.List, Name: prefix}, func(simFate) (err error) {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		c.w.requests++
		infos, err = c.w.store.List(context.Background(), prefix, after, limit)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// Delete implements objproxy.Store.
func (c *simWire) Delete(ctx context.Context, names []string) error {
	op := objtest.Op{Kind: objtest.Delete, Names: names}
	if len(names) > 0 {
		op.Name = names[0]
	}
	return c.call(ctx, op, func(f simFate) error {
		var failed []*objproxy.DeleteError
		for _, n := range names {
			if f.half && f.r.IntN(2) == 0 {
				failed = append(failed, &objproxy.DeleteError{Name: n, Err: errSimTransient})
				continue
			}
			c.remove(n, "")
		}
		return objproxy.JoinDelete(failed)
	}, func(bool) func(bool) {
		names := slices.Clone(names)
		return func(arrives bool) {
			for _, n := range names {
				if arrives {
					c.w.add("late deletes", 1)
					c.remove(n, " LATE")
				}
			}
		}
	})
}

func (c *simWire) remove(name, late string) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.requests++
	_ = c.w.store.Delete(context.Background(), []string{name}) // it never fails
	c.w.logLocked("%s delete %s%s", c.name, simName(name), late)
	c.w.count["deletes"]++
	if k, err := key.Parse(name); err == nil {
		c.w.deleted[k] = true
		c.w.count["objects deleted"]++
	}
}

// simAsks says what a request asks for, the same in each run.
func simAsks(op objtest.Op) string {
	if op.Kind == objtest.Get {
		return fmt.Sprintf("%s %s %d %d", op.Kind, simName(op.Name), op.Off, op.Bytes)
	}
	return string(op.Kind) + " " + simName(op.Name)
}

// simName makes the name of an object readable.
func simName(name string) string {
	if k, err := key.Parse(name); err == nil {
		return fmt.Sprintf("object %d", k)
	}
	if k, epoch, counter, err := layout.ParseCheckpointName(name); err == nil {
		return fmt.Sprintf("checkpoint %d-e%d-%d", k, epoch, counter)
	}
	if epoch, counter, err := layout.ParsePackName(name); err == nil {
		return fmt.Sprintf("pack e%d-%d", epoch, counter)
	}
	if k, _, err := layout.ParseSnapshotName(name); err == nil {
		return fmt.Sprintf("snapshot at %d", k)
	}
	if _, counter, err := layout.ParseSnapshotPackName(name); err == nil {
		return fmt.Sprintf("pack %d of a snapshot", counter)
	}
	if strings.HasPrefix(name, layout.SnapshotPrefix) {
		return "packs of a snapshot" // a nonce follows
	}
	if strings.HasPrefix(name, objproxy.ProbePrefix) {
		return objproxy.ProbePrefix // a nonce follows
	}
	return name
}
