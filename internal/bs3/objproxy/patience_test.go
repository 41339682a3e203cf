package objproxy_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// TestPatience checks that every definite answer of a store shows that it
// answers, and no other does.
func TestPatience(t *testing.T) {
	const limit = time.Minute
	gone := errors.New("no answer")
	for _, c := range []struct {
		answer error
		proper bool
	}{
		{nil, true}, {objproxy.ErrNotFound, true}, {objproxy.ErrExists, true}, {objproxy.ErrDamaged, true}, {objproxy.ErrRange, true},
		{objproxy.ErrTransient, false}, {errors.New("forbidden"), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			hooks := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(context.Context, objtest.Op) error { return c.answer }}
			if _, err := hooks.Inner.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{}); err != nil {
				t.Fatal(err)
			}
			ctx, s, release := objproxy.Patience(t.Context(), hooks, limit, gone)
			defer release()
			for range 3 {
				time.Sleep(limit - time.Second)
				_, _, _ = s.Get(ctx, "volume", nil, -1)
			}
			if ended := context.Cause(ctx) != nil; ended == c.proper {
				t.Errorf("after answers of %v: %v", c.answer, context.Cause(ctx))
			}
		})
	}
}
