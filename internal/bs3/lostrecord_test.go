package bs3_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// recordLost returns whether there is a volume record.
func recordLost(t *testing.T, store objproxy.Store) bool {
	t.Helper()
	_, _, err := store.Get(t.Context(), layout.VolumeName, nil, -1)
	if err != nil && !errors.Is(err, objproxy.ErrNotFound) {
		t.Fatal(err)
	}
	return err != nil
}

// A volume record that is removed while a daemon writes is back soon; no flush
// waits for it, and the next open finds everything.
func TestLostRecordUnderAWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objtest.NewMemory()
		var said atomic.Int64
		o := options(t, memory)
		o.Log = zerolog.New(io.Discard).Hook(zerolog.HookFunc(func(_ *zerolog.Event, level zerolog.Level, text string) {
			if level == zerolog.WarnLevel && strings.Contains(text, "the volume record was lost, and was put back as it was") {
				said.Add(1)
			}
		}))
		rnd := rand.New(rand.NewPCG(1, 1))
		e := open(t, o)
		s := newShadow(e)
		s.some(t, e, rnd, 40)
		if err := checkpointed(t, e); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second) // between two looks
		before := record(t, memory)

		del(t, memory, layout.VolumeName)
		start := time.Now()
		s.some(t, e, rnd, 40)
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 0 || !recordLost(t, memory) {
			t.Errorf("a flush took %v; the record is there: %t", took, !recordLost(t, memory))
		}
		time.Sleep(15 * time.Second)
		after := record(t, memory)
		if after.UUID != before.UUID || after.Epoch != before.Epoch || after.Writer.Nonce != before.Writer.Nonce || after.Checkpoints[0] != before.Checkpoints[0] {
			t.Errorf("the record is %+v, was %+v", after, before)
		}
		if n := said.Load(); n != 1 {
			t.Errorf("it was said %d times", n)
		}
		clean(t, memory)

		del(t, memory, layout.VolumeName)
		s.some(t, e, rnd, 40)
		if err := e.Checkpoint(t.Context()); err != nil { // does not wait for the next look
			t.Fatal(err)
		}
		kill(t, e)
		e = open(t, o)
		s.compare(t, e)

		del(t, memory, layout.VolumeName)
		shut(t, e)
		if v := record(t, memory); !v.Writer.Released {
			t.Errorf("after a clean stop the record is %+v", v)
		}
		clean(t, memory)
		e = open(t, o)
		s.compare(t, e)
		shut(t, e)
	})
}

// A record that is removed after any request of an open that has claimed the
// volume, of a writer, or of a stop is put back by the one that holds it.
func TestRecordLostAfterNthRequest(t *testing.T) {
	memory := objtest.NewMemory()
	o := options(t, memory)
	o.Log = zerolog.Nop()
	rnd := rand.New(rand.NewPCG(2, 1))
	e := open(t, o)
	s := newShadow(e)
	s.some(t, e, rnd, 40)
	kill(t, e)
	for n := int64(1); ; n++ {
		held := record(t, memory)
		var calls atomic.Int64
		var claimed atomic.Bool
		o.Store = &objtest.Hooks{Inner: memory, After: func(_ context.Context, op objtest.Op, err error) error {
			if op.Kind == objtest.Put && op.Name == layout.VolumeName && err == nil {
				claimed.Store(true)
			}
			if calls.Add(1) == n {
				del(t, memory, layout.VolumeName)
			}
			return err
		}}
		e, err := bs3.Open(t.Context(), o)
		if !claimed.Load() { // it is not for it to say what was there
			if !errors.Is(err, volume.ErrRefused) || !recordLost(t, memory) {
				t.Fatalf("lost after request %d, before the claim: %v", n, err)
			}
			putRecord(t, memory, held)
			continue
		}
		if err != nil {
			t.Fatalf("lost after request %d: %v", n, err)
		}
		s.compare(t, e)
		s.some(t, e, rnd, 5)
		shut(t, e)
		switch last := calls.Load(); {
		case last > n && recordLost(t, memory):
			t.Fatalf("lost after request %d of %d, it was not put back", n, last)
		case last <= n:
			return
		}
		clean(t, memory)
	}
}

// TestRuleALONE: a writer that was fenced while it did not look, and finds no
// record, puts none back: what it knows is older than the volume.
func TestRuleALONE(t *testing.T) {
	for name, second := range map[string]func(t *testing.T, e *bs3.Engine, s *shadow){
		"only fenced":  func(*testing.T, *bs3.Engine, *shadow) {},
		"a checkpoint": func(t *testing.T, e *bs3.Engine, s *shadow) { s.some(t, e, rand.New(rand.NewPCG(3, 2)), 50) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := objtest.NewMemory()
				first := open(t, options(t, memory))
				s := newShadow(first)
				s.some(t, first, rand.New(rand.NewPCG(3, 1)), 50)
				if err := first.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				o := options(t, memory)
				o.Host.ID, o.Takeover = "machine-b", true
				e := open(t, o)
				second(t, e, s)
				if name == "a checkpoint" {
					if err := errors.Join(e.Checkpoint(t.Context()), e.Checkpoint(t.Context())); err != nil {
						t.Fatal(err)
					}
				}
				kill(t, e)
				held := record(t, memory)
				del(t, memory, layout.VolumeName)
				if err := first.Checkpoint(t.Context()); !errors.Is(err, volume.ErrFenced) {
					t.Errorf("a checkpoint of the fenced writer: %v", err)
				}
				if !recordLost(t, memory) {
					t.Errorf("it has put a record: %+v", record(t, memory))
				}
				kill(t, first)
				putRecord(t, memory, held)
				e = open(t, o)
				s.compare(t, e)
				shut(t, e)
			})
		})
	}
}
