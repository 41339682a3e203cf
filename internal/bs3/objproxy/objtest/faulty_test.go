package objtest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

func put(ctx context.Context, s objproxy.Store, name, content string) error {
	_, err := s.Put(ctx, name, objproxy.Body{Data: []byte(content)}, objproxy.IfAbsent())
	return err
}

func has(t *testing.T, s objproxy.Store, name string) bool {
	t.Helper()
	_, _, err := s.Get(context.Background(), name, nil, 0)
	if err != nil && !errors.Is(err, objproxy.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// TestFaults checks that each fault alone does to every call what it should.
func TestFaults(t *testing.T) {
	const latency = time.Second
	for _, c := range []struct {
		name         string
		faults       objtest.Faults
		fails        bool
		stored, late bool // whether the object is there when the answer is, and a minute later
		atMost       time.Duration
	}{
		{"none", objtest.Faults{}, false, true, true, 2 * time.Nanosecond},
		{"latency", objtest.Faults{Latency: latency}, false, true, true, 2*latency + 10},
		{"fail", objtest.Faults{Latency: latency, Fail: 1}, true, false, false, 2*latency + 10},
		{"lost", objtest.Faults{Latency: latency, Lost: 1}, true, true, true, 2*latency + 10},
		{"late", objtest.Faults{Late: 1, LateBy: time.Minute}, true, false, true, 2 * time.Nanosecond},
		{"slow", objtest.Faults{Slow: 1, LateBy: time.Minute}, false, true, true, time.Minute + 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for seed := range uint64(50) {
					m := objtest.NewMemory()
					c.faults.Seed = seed
					f := objtest.NewFaulty(m, c.faults)
					start := time.Now()
					err := put(t.Context(), f, "volume", "x")
					took := time.Since(start)
					if c.fails != errors.Is(err, objproxy.ErrTransient) || c.fails != (err != nil) {
						t.Errorf("seed %d: the answer is %v", seed, err)
					}
					if took < 2 || took > c.atMost {
						t.Errorf("seed %d: it took %v", seed, took)
					}
					if has(t, m, "volume") != c.stored {
						t.Errorf("seed %d: stored at the answer: want %v", seed, c.stored)
					}
					f.Wait()
					if took := time.Since(start); took > time.Minute+10 {
						t.Errorf("seed %d: the late request took %v", seed, took)
					}
					if has(t, m, "volume") != c.late {
						t.Errorf("seed %d: stored after all: want %v", seed, c.late)
					}
				}
			})
		})
	}
}

// TestLateDelete checks that a late Delete removes what was put meanwhile, as a
// real one would.
func TestLateDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := objtest.NewMemory()
		f := objtest.NewFaulty(m, objtest.Faults{Late: 1, LateBy: time.Minute})
		if err := f.Delete(t.Context(), []string{"volume"}); !errors.Is(err, objproxy.ErrTransient) {
			t.Errorf("want ErrTransient, got %v", err)
		}
		if err := put(t.Context(), m, "volume", "x"); err != nil {
			t.Fatal(err)
		}
		f.Wait()
		if has(t, m, "volume") {
			t.Error("the late delete removed nothing")
		}
	})
}

// TestLateBody checks that a late put keeps its body open until it arrives. If
// the memory is written to meanwhile, the race detector reports it.
func TestLateBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := objtest.NewMemory()
		f := objtest.NewFaulty(m, objtest.Faults{Late: 1, LateBy: time.Minute})
		var w objtest.BodyWatch
		if _, err := f.Put(t.Context(), "volume", w.Body([]byte("data"), []byte("tail")), objproxy.IfAbsent()); err == nil {
			t.Fatal("no error")
		}
		if w.Open() != 1 {
			t.Fatalf("%d readers are open", w.Open())
		}
		f.Wait()
		if w.Open() != 0 {
			t.Errorf("%d readers are open", w.Open())
		}
		p := make([]byte, 8)
		if _, _, err := m.Get(t.Context(), "volume", p, 0); err != nil || string(p) != "datatail" {
			t.Errorf("stored %q, %v", p, err)
		}
	})
}

// history runs some concurrent calls and returns how they ended, and when.
func history(t *testing.T, seed uint64, names int) []string {
	var mu sync.Mutex
	var lines []string
	m := objtest.NewMemory()
	f := objtest.NewFaulty(m, objtest.Faults{
		Seed: seed, Latency: time.Millisecond, LateBy: 20 * time.Millisecond, Fail: .1, Lost: .1, Late: .1, Slow: .1,
	})
	start := time.Now()
	var wg sync.WaitGroup
	for i := range names {
		wg.Go(func() {
			name := fmt.Sprint("object", i)
			for try := range 6 {
				var what string
				var err error
				switch try % 3 {
				case 0:
					what, err = "put", put(t.Context(), f, name, fmt.Sprint(try))
				case 1:
					_, _, err = f.Get(t.Context(), name, nil, 0)
					what = "get"
				case 2:
					what, err = "delete", f.Delete(t.Context(), []string{name})
				}
				mu.Lock()
				lines = append(lines, fmt.Sprint(time.Since(start), " ", what, " ", name, " ", err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	f.Wait()
	infos, err := m.List(t.Context(), "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		lines = append(lines, fmt.Sprint("left: ", info.Name, info.Size))
	}
	return lines
}

// TestSeed checks that one seed is one history, to the nanosecond, and another
// seed is another history.
func TestSeed(t *testing.T) {
	run := func(seed uint64) (lines []string) {
		synctest.Test(t, func(t *testing.T) { lines = history(t, seed, 40) })
		return lines
	}
	seen := make(map[string]bool)
	for seed := range uint64(5) {
		first := run(seed)
		for range 10 {
			if again := run(seed); !slices.Equal(again, first) {
				t.Fatalf("seed %d gave two histories:\n%s\n\n%s", seed, strings.Join(first, "\n"), strings.Join(again, "\n"))
			}
		}
		all := strings.Join(first, "\n")
		if seen[all] {
			t.Errorf("seed %d gave the history of another", seed)
		}
		seen[all] = true
		for _, want := range []string{"request failed", "answer lost", "request delayed"} {
			if !strings.Contains(all, want) {
				t.Errorf("seed %d: no %q in %d calls", seed, want, len(first))
			}
		}
	}
}

// TestOneAtATime checks that no two steps fall on the same instant.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := objtest.NewMemory()
		var mu sync.Mutex
		seen := make(map[time.Time]int)
		note := func() {
			mu.Lock()
			defer mu.Unlock()
			seen[time.Now()]++
		}
		f := objtest.NewFaulty(&objtest.Hooks{Inner: m, Before: func(context.Context, objtest.Op) error {
			note()
			return nil
		}}, objtest.Faults{Latency: 20})
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := put(t.Context(), f, fmt.Sprint(i), ""); err != nil {
					t.Error(err)
				}
				note()
			})
		}
		wg.Wait()
		if len(seen) != 200 {
			t.Errorf("200 steps fall on %d instants", len(seen))
		}
	})
}

// TestTryAgain checks that what happened to a call does not happen to every
// repetition of it.
func TestTryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := objtest.NewFaulty(objtest.NewMemory(), objtest.Faults{Fail: 0.5})
		failed := 0
		for range 100 {
			if _, err := f.List(t.Context(), "", "", 1); err != nil {
				failed++
			}
		}
		if failed < 30 || failed > 70 {
			t.Errorf("%d of 100 calls failed", failed)
		}
	})
}

// TestKill checks that a dead process gets no answers, but that its requests may
// arrive.
func TestKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrived, vanished := 0, 0
		for seed := range uint64(60) {
			m := objtest.NewMemory()
			f := objtest.NewFaulty(m, objtest.Faults{Seed: seed, Latency: time.Second, LateBy: time.Second})
			answer := make(chan error, 1)
			go func() { answer <- put(t.Context(), f, "volume", "x") }()
			synctest.Wait()
			f.Kill()
			f.Kill()
			if err := <-answer; !errors.Is(err, objtest.ErrKilled) {
				t.Errorf("the call under way: %v", err)
			}
			if _, err := f.List(t.Context(), "", "", 1); !errors.Is(err, objtest.ErrKilled) {
				t.Errorf("a call after death: %v", err)
			}
			if has(t, m, "volume") {
				t.Error("it arrived at once")
			}
			f.Wait()
			if has(t, m, "volume") {
				arrived++
			} else {
				vanished++
			}
		}
		if arrived < 10 || vanished < 10 {
			t.Errorf("%d requests of dead processes arrived, %d vanished", arrived, vanished)
		}
	})
}

// TestGiveUp checks that a call ends with its ctx, wherever the request is.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := objtest.NewFaulty(objtest.NewMemory(), objtest.Faults{Latency: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := put(ctx, f, "volume", "x"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// TestClone checks that a store and its clone do not affect each other, and that
// no version occurs twice.
func TestClone(t *testing.T) {
	m := objtest.NewMemory()
	if err := put(t.Context(), m, "a", "1"); err != nil {
		t.Fatal(err)
	}
	c := m.Clone()
	_, before, err := c.Get(t.Context(), "a", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.Put(t.Context(), "a", objproxy.Body{}, objproxy.Condition{}); err != nil || v == before.Version {
		t.Errorf("version %s again, %v", v, err)
	}
	if err := errors.Join(put(t.Context(), m, "b", "2"), m.Delete(t.Context(), []string{"a"}), put(t.Context(), c, "c", "3")); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][2]bool{"a": {false, true}, "b": {true, false}, "c": {false, true}} {
		if has(t, m, name) != in[0] || has(t, c, name) != in[1] {
			t.Errorf("%s: in the store %v, in the clone %v", name, has(t, m, name), has(t, c, name))
		}
	}
}

// TestRecorder checks that every call is recorded with its outcome.
func TestRecorder(t *testing.T) {
	r := objtest.NewRecorder(objtest.NewMemory())
	ctx := t.Context()
	_, _ = r.Put(ctx, "volume", objproxy.Body{Data: []byte("abc")}, objproxy.IfAbsent())
	_, _ = r.Put(ctx, "volume", objproxy.Body{Tail: []byte("d")}, objproxy.IfVersion("v9"))
	_, _, _ = r.Get(ctx, "nothing", make([]byte, 7), -1)
	_, _ = r.List(ctx, "map/", "", 5)
	_ = r.Delete(ctx, []string{"x", "y"})
	var got []string
	for _, c := range r.Calls() {
		got = append(got, fmt.Sprint(c.Op, ": ", c.Err == nil))
	}
	want := []string{
		"put volume 3 bytes if absent: true",
		"put volume 1 bytes if version v9: false",
		"get nothing 7 bytes at -1: false",
		"list map/: true",
		"delete x (2 names): true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if r.Count(objtest.Put) != 2 || r.Count(objtest.Delete) != 1 {
		t.Error("wrong counts")
	}
	r.Reset()
	if len(r.Calls()) != 0 {
		t.Error("not forgotten")
	}
}

// TestFailNth checks that exactly the nth call fails, done or not.
func TestFailNth(t *testing.T) {
	boom := errors.New("boom")
	for _, applied := range []bool{false, true} {
		m := objtest.NewMemory()
		f := objtest.NewFailNth(m, 2, boom, applied)
		for i := 1; i <= 3; i++ {
			if f.Fired() != (i > 2) {
				t.Errorf("before call %d: Fired is %v", i, f.Fired())
			}
			name := fmt.Sprint(i)
			if err := put(t.Context(), f, name, ""); errors.Is(err, boom) != (i == 2) {
				t.Errorf("call %d: %v", i, err)
			}
			if want := i != 2 || applied; has(t, m, name) != want {
				t.Errorf("call %d, applied %v: stored is %v", i, applied, !want)
			}
		}
	}
}
