package objproxy_test

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

	"github.com/rs/zerolog"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

var (
	errFlaky = fmt.Errorf("store said 503: %w", objproxy.ErrTransient)
	errFull  = errors.New("no space left")
)

// failing returns a store whose calls return what next returns, and a list of
// the (virtual) times of its calls, counted from now.
func failing(next func(call int) error) (objproxy.Store, func() []time.Duration) {
	var mu sync.Mutex
	var times []time.Duration
	start := time.Now()
	s := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(context.Context, objtest.Op) error {
		mu.Lock()
		defer mu.Unlock()
		times = append(times, time.Since(start))
		return next(len(times))
	}}
	return s, func() []time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(times)
	}
}

// times returns a next that fails n calls.
func times(n int, err error) func(int) error {
	return func(call int) error {
		if call <= n {
			return err
		}
		return nil
	}
}

// options are without jitter: each wait is three quarters of the full one.
func options(log *strings.Builder) objproxy.RetryOptions {
	o := objproxy.RetryOptions{Random: func() float64 { return 0.5 }}
	if log != nil {
		o.Log = zerolog.New(zerolog.SyncWriter(log))
	}
	return o
}

func TestRetryContract(t *testing.T) {
	objtest.Suite(t, func(*testing.T) objproxy.Store {
		return objproxy.NewRetry(objtest.NewMemory(), objproxy.RetryOptions{})
	})
}

// TestRetryBackoff checks that waits double up to the longest, and that the wait
// after a permanent error is the longest at once.
func TestRetryBackoff(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name string
		err  error
		want []time.Duration // between the calls, before the factor of 3/4
	}{
		{"transient", errFlaky, []time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms}},
		{"permanent", errFull, []time.Duration{5000 * ms, 5000 * ms, 5000 * ms}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, calls := failing(times(len(c.want), c.err))
				r := objproxy.NewRetry(s, options(nil))
				if _, err := r.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfAbsent()); err != nil {
					t.Fatal(err)
				}
				got := calls()
				if len(got) != len(c.want)+1 || got[0] != 0 {
					t.Fatalf("calls at %v", got)
				}
				for i, want := range c.want {
					if wait := got[i+1] - got[i]; wait != want*3/4 {
						t.Errorf("wait %d is %v, want %v", i, wait, want*3/4)
					}
				}
			})
		})
	}
}

// TestRetryJitter checks that a wait is at least half of the full one.
func TestRetryJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, random := range []float64{0, 0.999999} {
			s, calls := failing(times(1, errFlaky))
			r := objproxy.NewRetry(s, objproxy.RetryOptions{First: time.Second, Max: time.Minute, Random: func() float64 { return random }})
			if _, err := r.List(t.Context(), "", "", 1); err != nil {
				t.Fatal(err)
			}
			want := time.Second / 2
			if random > 0 {
				want = time.Second
			}
			if wait := calls()[1]; wait < want-time.Millisecond || wait > want {
				t.Errorf("random %v: waited %v, want about %v", random, wait, want)
			}
		}
	})
}

// TestRetryDefinite checks that definite answers are returned at once.
func TestRetryDefinite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, want := range []error{objproxy.ErrNotFound, objproxy.ErrExists, objproxy.ErrDamaged, objproxy.ErrRange, errors.ErrUnsupported} {
			s, calls := failing(times(1, fmt.Errorf("wrapped: %w", want)))
			r := objproxy.NewRetry(s, options(nil))
			if _, _, err := r.Get(t.Context(), "volume", nil, 0); !errors.Is(err, want) {
				t.Errorf("want %v, got %v", want, err)
			}
			if len(calls()) != 1 {
				t.Errorf("%v: %d calls", want, len(calls()))
			}
		}
	})
}

// TestRetryCancelled checks that the error is that of ctx and contains the
// store's last one, whether ctx ends during a wait or a call.
func TestRetryCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := func(r *objproxy.Retry, ctx context.Context) {
			t.Helper()
			start := time.Now()
			_, err := r.List(ctx, "volume", "", 1)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errFull) {
				t.Errorf("want the deadline and the store's error, got %v", err)
			}
			if took := time.Since(start); took != 12*time.Second {
				t.Errorf("took %v", took)
			}
			if _, _, waiting := r.Waiting(); waiting {
				t.Error("still waiting after giving up")
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		s, _ := failing(times(100, errFull))
		check(objproxy.NewRetry(s, options(nil)), ctx)

		ctx, cancel = context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		hangs := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func() func(context.Context, objtest.Op) error {
			calls := 0
			return func(ctx context.Context, _ objtest.Op) error {
				if calls++; calls == 1 {
					return errFull
				}
				<-ctx.Done()
				return ctx.Err()
			}
		}()}
		check(objproxy.NewRetry(hangs, options(nil)), ctx)

		s, calls := failing(times(0, nil))
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := objproxy.NewRetry(s, options(nil)).List(done, "", "", 1); !errors.Is(err, context.Canceled) {
			t.Errorf("want context.Canceled, got %v", err)
		}
		if len(calls()) != 0 {
			t.Error("the store was asked although ctx had ended")
		}
	})
}

// TestRetryStoreDeadline checks that a deadline of the store's own is not taken
// for the end of ctx.
func TestRetryStoreDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := failing(times(3, context.DeadlineExceeded))
		if _, err := objproxy.NewRetry(s, options(nil)).List(t.Context(), "", "", 1); err != nil {
			t.Error(err)
		}
	})
}

// TestRetryLostAnswer checks that a put that was stored but not answered ends as
// ErrExists, for the caller to judge.
func TestRetryLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := objtest.NewMemory()
		r := objproxy.NewRetry(objtest.NewFailNth(m, 1, errFlaky, true), options(nil))
		_, err := r.Put(t.Context(), "volume", objproxy.Body{Data: []byte("x")}, objproxy.IfAbsent())
		if !errors.Is(err, objproxy.ErrExists) {
			t.Errorf("want ErrExists, got %v", err)
		}
		p := make([]byte, 1)
		if _, _, err := r.Get(t.Context(), "volume", p, 0); err != nil || string(p) != "x" {
			t.Errorf("the object is %q, %v", p, err)
		}
	})
}

// TestRetryDelete checks that only the names that failed are tried again.
func TestRetryDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked [][]string
		s := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(_ context.Context, op objtest.Op) error {
			asked = append(asked, op.Names)
			switch len(asked) {
			case 1:
				return objproxy.JoinDelete([]*objproxy.DeleteError{{Name: "b", Err: errFlaky}, {Name: "c", Err: errFull}})
			case 2:
				return errFlaky // names none, so all failed
			}
			return nil
		}}
		if err := objproxy.NewRetry(s, options(nil)).Delete(t.Context(), []string{"a", "b", "c"}); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(asked); got != "[[a b c] [b c] [b c]]" {
			t.Errorf("asked for %s", got)
		}
		if err := objproxy.NewRetry(s, options(nil)).Delete(t.Context(), nil); err != nil || len(asked) != 3 {
			t.Errorf("delete of nothing: %v, %d calls", err, len(asked))
		}
	})
}

// TestRetryDeleteEnds checks that a Delete that the store does not do is given up,
// with the store's last answer.
func TestRetryDeleteEnds(t *testing.T) {
	for _, answer := range []error{errFull, errFlaky, objproxy.JoinDelete([]*objproxy.DeleteError{{Name: "b", Err: errFull}})} {
		synctest.Test(t, func(t *testing.T) {
			s, calls := failing(times(100, answer))
			r := objproxy.NewRetry(s, options(nil))
			start := time.Now()
			err := r.Delete(t.Context(), []string{"a", "b"})
			if !errors.Is(err, answer) && len(objproxy.FailedDeletes(err)) != 1 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error is %v", err)
			}
			if took := time.Since(start); took > 15*time.Second || len(calls()) < 2 {
				t.Errorf("%d tries in %v", len(calls()), took)
			}
			if _, _, waiting := r.Waiting(); waiting {
				t.Error("it is still waited for")
			}
		})
	}
}

// TestRetryStatus checks that Waiting and the log report trouble at once, then
// once a minute, and once when it is over.
func TestRetryStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const outage = 150 * time.Second
		start := time.Now()
		s, _ := failing(func(int) error {
			if time.Since(start) < outage {
				return errFlaky
			}
			return nil
		})
		var log strings.Builder
		r := objproxy.NewRetry(s, options(&log))
		if _, _, waiting := r.Waiting(); waiting {
			t.Error("waiting before there was trouble")
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if _, err := r.Put(t.Context(), fmt.Sprint(i), objproxy.Body{}, objproxy.IfAbsent()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "503") {
			t.Errorf("log after the first failures:\n%s", &log)
		}
		wg.Go(func() {
			time.Sleep(20 * time.Second)
			if _, _, err := r.Get(t.Context(), "0", nil, 0); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { // a later one does not hide since when
			time.Sleep(20 * time.Second)
			if _, err := r.Put(t.Context(), "later", objproxy.Body{}, objproxy.IfAbsent()); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		since, lastErr, waiting := r.Waiting()
		if !waiting || !since.Equal(start) || !errors.Is(lastErr, objproxy.ErrTransient) {
			t.Errorf("Waiting returns %v, %v, %v", since, lastErr, waiting)
		}
		wg.Wait()
		if _, _, waiting := r.Waiting(); waiting {
			t.Error("waiting after the store works again")
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		count := func(parts ...string) int {
			n := 0
			for _, line := range lines {
				all := true
				for _, part := range parts {
					all = all && strings.Contains(line, part)
				}
				if all {
					n++
				}
			}
			return n
		}
		for _, c := range []struct {
			kind, message string
			want          int
		}{
			{"put", "does not answer", 3}, {"put", "answers again", 1},
			{"get", "does not answer", 3}, {"get", "answers again", 1},
		} {
			if got := count(`"request":"`+c.kind+`"`, c.message); got != c.want {
				t.Errorf("%s: %d lines say %q, want %d:\n%s", c.kind, got, c.message, c.want, &log)
			}
		}
		if len(lines) != 8 {
			t.Errorf("%d lines:\n%s", len(lines), &log)
		}
	})
}

// TestRetryFlapping checks that a store that fails every other call does not fill
// the log.
func TestRetryFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, calls := failing(func(call int) error {
			if call%2 == 1 {
				return errFlaky
			}
			return nil
		})
		var log strings.Builder
		r := objproxy.NewRetry(s, options(&log))
		start := time.Now()
		for time.Since(start) < 2*time.Minute+time.Second {
			if _, err := r.List(t.Context(), "", "", 1); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 6 {
			t.Errorf("%d lines about %d calls in two minutes, want 3 failures and 3 ends:\n%s", n, len(calls()), &log)
		}
	})
}

// TestOldest checks that the oldest request is known until it has ended, through
// all its tries.
func TestOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := map[string]chan error{"a": make(chan error), "b": make(chan error)}
		r := objproxy.NewRetry(objtest.NewMemory(), objproxy.RetryOptions{})
		oldest := func(want time.Duration, wantAny bool) {
			t.Helper()
			synctest.Wait()
			since, underWay := r.Oldest()
			if underWay != wantAny || wantAny && time.Since(since) != want {
				t.Errorf("the oldest is %v old, %v; want %v, %v", time.Since(since), underWay, want, wantAny)
			}
		}
		oldest(0, false)
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			wg.Go(func() { _ = r.Do(t.Context(), "get", name, func() error { return <-release[name] }) })
			time.Sleep(time.Minute)
		}
		oldest(2*time.Minute, true)
		release["a"] <- objproxy.ErrTransient // it is tried again
		time.Sleep(time.Minute)
		oldest(3*time.Minute, true)
		release["a"] <- nil
		oldest(2*time.Minute, true)
		release["b"] <- nil
		oldest(0, false)
		wg.Wait()
	})
}
