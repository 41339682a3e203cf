package stores

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// answers is a store that gives its answers in turn, and then always that there is no
// such object.
type answers struct {
	objproxy.Store
	errs  []error
	tries int
}

func (a *answers) next() error {
	a.tries++
	if len(a.errs) == 0 {
		return objproxy.ErrNotFound
	}
	err := a.errs[0]
	a.errs = a.errs[1:]
	return err
}

func (a *answers) Get(context.Context, string, []byte, int64) (int, objproxy.Info, error) {
	return 0, objproxy.Info{}, a.next()
}

func (a *answers) List(context.Context, string, string, int) ([]objproxy.Info, error) {
	return nil, a.next()
}

func (a *answers) Put(context.Context, string, objproxy.Body, objproxy.Condition) (objproxy.Version, error) {
	return "", a.next()
}

func (a *answers) Delete(context.Context, []string) error { return a.next() }

func TestPatient(t *testing.T) {
	const limit = 2 * time.Minute
	busy, forbidden := fmt.Errorf("503: %w", objproxy.ErrTransient), errors.New("403")
	for name, test := range map[string]struct {
		answers         []error
		want            []error
		atLeast, atMost time.Duration
		minTry, maxTry  int
	}{
		"an answer":       {nil, []error{objproxy.ErrNotFound}, 0, 0, 1, 1},
		"busy twice":      {[]error{busy, busy}, []error{objproxy.ErrNotFound}, 10 * time.Millisecond, time.Second, 3, 3},
		"forbidden":       {[]error{forbidden}, []error{forbidden}, 0, 0, 1, 1},
		"forbidden later": {[]error{busy, forbidden}, []error{forbidden}, 10 * time.Millisecond, time.Second, 2, 2},
		"does not answer": {slices.Repeat([]error{busy}, 1000), []error{volume.ErrStore, busy}, limit, limit, 24, 60},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, request := range map[string]func(context.Context, objproxy.Store) error{
				"get":  func(ctx context.Context, s objproxy.Store) error { _, _, err := s.Get(ctx, "x", nil, 0); return err },
				"list": func(ctx context.Context, s objproxy.Store) error { _, err := s.List(ctx, "x", "", 1); return err },
				"put": func(ctx context.Context, s objproxy.Store) error {
					_, err := s.Put(ctx, "x", objproxy.Body{}, objproxy.Condition{})
					return err
				},
				"delete": func(ctx context.Context, s objproxy.Store) error { return s.Delete(ctx, []string{"x"}) },
			} {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					inner := &answers{errs: slices.Clone(test.answers)}
					err := request(t.Context(), NewPatient(inner, limit))
					for _, want := range test.want {
						if !errors.Is(err, want) {
							t.Errorf("%s: the error is %v, not %v", kind, err, want)
						}
					}
					if took := time.Since(start); took < test.atLeast || took > test.atMost {
						t.Errorf("%s: it took %v", kind, took)
					}
					if inner.tries < test.minTry || inner.tries > test.maxTry {
						t.Errorf("%s: %d tries", kind, inner.tries)
					}
				})
			}
		})
	}
}

// The caller's ctx ends the tries, and nobody takes that for the store's fault.
func TestPatientIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		s := NewPatient(&answers{errs: slices.Repeat([]error{objproxy.ErrTransient}, 1000)}, time.Minute)
		if _, _, err := s.Get(ctx, "x", nil, 0); !errors.Is(err, context.Canceled) || errors.Is(err, volume.ErrStore) {
			t.Error(err)
		}
	})
}
