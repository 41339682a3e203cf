package objproxy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// careless changes the conditions that a store is asked for, or its answers.
type careless struct {
	*objtest.Memory
	put func(m *objtest.Memory, ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error)
}

func (c careless) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	return c.put(c.Memory, ctx, name, body, cond)
}

// TestProbe checks that the probe detects a store that does not honour
// conditions, in whatever way, and that it leaves nothing behind.
func TestProbe(t *testing.T) {
	type m = *objtest.Memory
	type c = context.Context
	type b = objproxy.Body
	type cond = objproxy.Condition
	type v = objproxy.Version
	for _, tc := range []struct {
		name string
		put  func(m m, ctx c, name string, body b, cond cond) (v, error)
		says string
	}{
		{"honours", m.Put, ""},
		{"ignores all", func(m m, ctx c, name string, body b, _ cond) (v, error) {
			return m.Put(ctx, name, body, cond{})
		}, "that no object is there was accepted over one"},
		{"ignores versions", func(m m, ctx c, name string, body b, co cond) (v, error) {
			if !co.Absent() {
				co = cond{}
			}
			return m.Put(ctx, name, body, co)
		}, "of an old version was accepted"},
		{"refuses but stores", func(m m, ctx c, name string, body b, co cond) (v, error) {
			ver, err := m.Put(ctx, name, body, co)
			if errors.Is(err, objproxy.ErrExists) {
				_, _ = m.Put(ctx, name, body, cond{})
			}
			return ver, err
		}, "refused but changed"},
		{"refuses every version", func(m m, ctx c, name string, body b, co cond) (v, error) {
			if _, is := co.Version(); is {
				return "", objproxy.ErrExists
			}
			return m.Put(ctx, name, body, co)
		}, "did not replace"},
		{"accepts and drops", func(m m, ctx c, name string, body b, co cond) (v, error) {
			return "x", nil
		}, "is not there"},
		{"looks first, and puts then", func(m m, ctx c, name string, body b, co cond) (v, error) {
			_, info, err := m.Get(ctx, name, nil, 0)
			there := err == nil
			want, isVersion := co.Version()
			if co.Absent() && there || isVersion && (!there || info.Version != want) {
				return "", objproxy.ErrExists
			}
			if err := objproxy.Sleep(ctx, time.Millisecond); err != nil {
				return "", err
			}
			return m.Put(ctx, name, body, cond{})
		}, "were accepted"},
		{"accepts one of two, and stores the other", func(m m, ctx c, name string, body b, co cond) (v, error) {
			ver, err := m.Put(ctx, name, body, co)
			if len(body.Data) > 1000 && errors.Is(err, objproxy.ErrExists) {
				_, _ = m.Put(ctx, name, body, cond{})
			}
			return ver, err
		}, "another was stored"},
		{"does not know conditions", func(m m, ctx c, name string, body b, co cond) (v, error) {
			return "", errors.ErrUnsupported
		}, "unsupported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := careless{objtest.NewMemory(), tc.put}
			err := objproxy.Probe(t.Context(), store, "nonce")
			switch {
			case tc.says == "" && err != nil:
				t.Error(err)
			case tc.says != "" && (!errors.Is(err, objproxy.ErrNoConditionalPut) || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("want ErrNoConditionalPut, %q; got %v", tc.says, err)
			}
			if infos, err := store.List(t.Context(), "", "", 9); err != nil || len(infos) != 0 {
				t.Errorf("left behind: %v, %v", infos, err)
			}
		})
	}
}

// misreading changes how a store reads.
type misreading struct {
	*objtest.Memory
	get func(m *objtest.Memory, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error)
}

func (r misreading) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	return r.get(r.Memory, ctx, name, p, off)
}

// TestProbeReads checks that the probe detects a store that returns other parts
// than were requested, or has no versions.
func TestProbeReads(t *testing.T) {
	type m = *objtest.Memory
	for _, tc := range []struct {
		name string
		get  func(m m, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error)
		want error
		says string
	}{
		{"right", m.Get, nil, ""},
		{"takes a suffix for a beginning", func(m m, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
			if _, info, err := m.Get(ctx, name, nil, 0); err == nil && off < 0 && int64(len(p)) < info.Size {
				off = 0
			}
			return m.Get(ctx, name, p, off)
		}, objproxy.ErrWrongRange, "other bytes than were requested"},
		{"begins at 0", func(m m, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
			return m.Get(ctx, name, p, min(off, 0))
		}, objproxy.ErrWrongRange, "other bytes than were requested"},
		{"ends too early", func(m m, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
			if off > 0 {
				return 0, objproxy.Info{}, fmt.Errorf("%w: 4 of 3", objproxy.ErrRange)
			}
			return m.Get(ctx, name, p, off)
		}, objproxy.ErrWrongRange, "4 of 3"},
		{"no versions, begins at 0", func(m m, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
			n, info, err := m.Get(ctx, name, p, min(off, 0))
			info.Version = ""
			return n, info, err
		}, objproxy.ErrWrongRange, "other bytes than were requested"},
		{"no versions", func(m m, ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
			n, info, err := m.Get(ctx, name, p, off)
			info.Version = ""
			return n, info, err
		}, objproxy.ErrNoConditionalPut, "no version"},
	} {
		store := misreading{objtest.NewMemory(), tc.get}
		if err := objproxy.Probe(t.Context(), store, "nonce"); !errors.Is(err, tc.want) || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if infos, err := store.List(t.Context(), "", "", 9); err != nil || len(infos) != 0 {
			t.Errorf("%s: left behind: %v, %v", tc.name, infos, err)
		}
	}
}

// TestProbeCannotDelete checks that the probe ends where objects must not be
// deleted.
func TestProbeCannotDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		denied := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(_ context.Context, op objtest.Op) error {
			if op.Kind == objtest.Delete {
				return errors.New("403")
			}
			return nil
		}}
		start := time.Now()
		if err := objproxy.Probe(t.Context(), objproxy.NewRetry(denied, objproxy.RetryOptions{}), "nonce"); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestProbeFaults checks that the probe does not call a good store bad, whichever
// call fails, before or after it was done, and that it succeeds with retries.
func TestProbeFaults(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for n := 1; ; n++ {
			f := objtest.NewFailNth(objtest.NewMemory(), n, errFlaky, applied)
			err := objproxy.Probe(t.Context(), f, "nonce")
			if !f.Fired() {
				if err != nil {
					t.Error(err)
				}
				if n < 9 {
					t.Errorf("the probe made %d calls", n-1)
				}
				break
			}
			if !errors.Is(err, objproxy.ErrTransient) || errors.Is(err, objproxy.ErrNoConditionalPut) {
				t.Errorf("call %d fails, applied %v: %v", n, applied, err)
			}
			synctest.Test(t, func(t *testing.T) {
				f := objtest.NewFailNth(objtest.NewMemory(), n, errFlaky, applied)
				if err := objproxy.Probe(t.Context(), objproxy.NewRetry(f, objproxy.RetryOptions{}), "nonce"); err != nil {
					t.Errorf("call %d fails once, applied %v: %v", n, applied, err)
				}
			})
		}
	}
}
