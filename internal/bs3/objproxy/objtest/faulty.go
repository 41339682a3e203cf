package objtest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"bs3/internal/bs3/objproxy"
)

// Faults are what goes wrong between a process and a store. Shares are between 0
// and 1; the zero value is a perfect network.
type Faults struct {
	Seed uint64
	// Latency is the longest time that a request, and its answer, usually
	// travels; each takes from 1 ns up to that.
	Latency time.Duration
	Fail    float64 // share of calls that never arrive and end with ErrTransient
	Lost    float64 // share of calls that are done, but end with ErrTransient
	// Late is the share of Puts and Deletes that end with ErrTransient and are
	// done afterwards, up to LateBy later. A Put keeps its body open until then,
	// as net/http may.
	Late float64
	// Slow is the share of calls whose answer takes up to LateBy.
	Slow   float64
	LateBy time.Duration
}

// ErrKilled is the error of every call of a process that was killed.
var ErrKilled = errors.New("objtest: the calling process is dead")

// Faulty is one process's unreliable connection to a store. What happens to a
// call depends on the seed, on the request and on how often it was made before,
// but not on what other calls are in progress; and no two steps of the calls
// through one Faulty fall on the same nanosecond. So in a synctest bubble, each
// run with one seed is the same, if the caller is as careful.
type Faulty struct {
	inner  objproxy.Store
	faults Faults
	killed chan struct{}
	kill   sync.Once
	late   sync.WaitGroup

	mu   sync.Mutex
	nth  map[string]uint64  // calls so far, by request
	busy map[int64]struct{} // nanoseconds at which a step is due
}

// NewFaulty returns a Faulty around inner.
func NewFaulty(inner objproxy.Store, faults Faults) *Faulty {
	return &Faulty{
		inner:  inner,
		faults: faults,
		killed: make(chan struct{}),
		nth:    make(map[string]uint64),
		busy:   make(map[int64]struct{}),
	}
}

// Kill makes every call from now on, and those waiting, end with ErrKilled.
// Requests on their way may still arrive.
func (f *Faulty) Kill() { f.kill.Do(func() { close(f.killed) }) }

// Wait returns when no late request is travelling any more.
func (f *Faulty) Wait() { f.late.Wait() }

// fate is what happens to one call.
type fate struct {
	there, back, lateBy            time.Duration
	fail, lost, late, outlivesCall bool
}

func (f *Faulty) draw(op Op) fate {
	what := op.String()
	f.mu.Lock()
	f.nth[what]++
	nth := f.nth[what]
	f.mu.Unlock()
	h := fnv.New64a()
	_, _ = io.WriteString(h, what) // never fails
	r := rand.New(rand.NewPCG(f.faults.Seed, h.Sum64()+nth))
	upTo := func(d time.Duration) time.Duration { return 1 + time.Duration(r.Int64N(int64(d)+1)) }
	ft := fate{there: upTo(f.faults.Latency), back: upTo(f.faults.Latency), lateBy: upTo(f.faults.LateBy)}
	dice := r.Float64()
	hit := func(share float64) bool {
		dice -= share
		return dice < 0 && dice >= -share
	}
	ft.fail = hit(f.faults.Fail)
	ft.lost = hit(f.faults.Lost)
	ft.late = hit(f.faults.Late) && op.Changes()
	if hit(f.faults.Slow) {
		ft.back = ft.lateBy
	}
	// Of the requests whose ctx ends while they travel, half arrive.
	ft.outlivesCall = f.faults.LateBy > 0 && op.Changes() && r.Float64() < 0.5
	return ft
}

// reserve returns a timer for d from now, or a few nanoseconds more.
func (f *Faulty) reserve(d time.Duration) (t *time.Timer, release func()) {
	now := time.Now()
	due := now.Add(d).UnixNano()
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if _, taken := f.busy[due]; !taken {
			break
		}
		due++
	}
	f.busy[due] = struct{}{}
	t = time.NewTimer(time.Duration(due - now.UnixNano()))
	return t, func() {
		t.Stop()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.busy, due)
	}
}

// travel waits for about d.
func (f *Faulty) travel(ctx context.Context, d time.Duration) error {
	t, release := f.reserve(d)
	defer release()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-f.killed:
		return ErrKilled
	}
}

// call calls apply, or does not, or makes the request late. later is set for
// calls that change the store: it prepares a late request at once and returns
// what to do when it arrives.
func (f *Faulty) call(ctx context.Context, op Op, apply func() error, later func() func()) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	select {
	case <-f.killed:
		return fmt.Errorf("%s: %w", op, ErrKilled)
	default:
	}
	ft := f.draw(op)
	if err := f.travel(ctx, ft.there); err != nil {
		if ft.outlivesCall {
			f.arriveLater(ft.lateBy, later())
		}
		return fmt.Errorf("%s: %w", op, err)
	}
	var err error
	switch {
	case ft.fail:
		err = fmt.Errorf("objtest: request failed: %w", objproxy.ErrTransient)
	case ft.late:
		f.arriveLater(ft.lateBy, later())
		err = fmt.Errorf("objtest: request delayed: %w", objproxy.ErrTransient)
	default:
		err = apply()
		if ft.lost {
			err = fmt.Errorf("objtest: answer lost: %w", objproxy.ErrTransient)
		}
	}
	if e := f.travel(ctx, ft.back); e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (f *Faulty) arriveLater(after time.Duration, arrive func()) {
	f.late.Go(func() {
		t, release := f.reserve(after)
		defer release()
		<-t.C
		arrive()
	})
}

// Put implements objproxy.Store.
func (f *Faulty) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	var v objproxy.Version
	err := f.call(ctx, Op{Kind: Put, Name: name, Bytes: body.Size(), Cond: cond},
		func() (err error) {
			v, err = f.inner.Put(ctx, name, body, cond)
			return err
		},
		func() func() {
			r := body.Open()
			return func() {
				data, err := io.ReadAll(r)
				r.Close()
				if err == nil {
					// Nobody learns how it ended.
					_, _ = f.inner.Put(context.WithoutCancel(ctx), name, objproxy.Body{Data: data}, cond)
				}
			}
		})
	if err != nil {
		return "", err
	}
	return v, nil
}

// Get implements objproxy.Store.
func (f *Faulty) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	var n int
	var info objproxy.Info
	err := f.call(ctx, Op{Kind: Get, Name: name, Bytes: int64(len(p)), Off: off}, func() (err error) {
		n, info, err = f.inner.Get(ctx, name, p, off)
		return err
	}, nil)
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	return n, info, nil
}

// List implements objproxy.Store.
func (f *Faulty) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	var infos []objproxy.Info
	err := f.call(ctx, Op{Kind: List, Name: prefix}, func() (err error) {
		infos, err = f.inner.List(ctx, prefix, after, limit)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// Delete implements objproxy.Store.
func (f *Faulty) Delete(ctx context.Context, names []string) error {
	return f.call(ctx, deleteOp(names),
		func() error { return f.inner.Delete(ctx, names) },
		func() func() {
			names := append([]string(nil), names...)
			return func() { _ = f.inner.Delete(context.WithoutCancel(ctx), names) }
		})
}
