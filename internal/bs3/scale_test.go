package bs3_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

func TestStoreWithoutConditionsIsRefused(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		memory := objtest.NewMemory()
		o := options(t, unconditional{memory, refuses})
		if _, err := bs3.Open(t.Context(), o); !errors.Is(err, volume.ErrRefused) || !errors.Is(err, objproxy.ErrNoConditionalPut) {
			t.Fatalf("open: %v", err)
		}
		if got := objects(t, memory); got != "[]" {
			t.Fatalf("the store was changed: %s", got)
		}
		o.UnsafeNoFencing = true
		for range 2 {
			e := open(t, o)
			if err := errors.Join(e.WriteAt(t.Context(), make([]byte, blockSize), 0), e.Flush(t.Context())); err != nil {
				t.Fatal(err)
			}
			shut(t, e)
		}
	}
}

// unconditional is a store that takes no notice of conditions, or refuses to
// have any.
type unconditional struct {
	objproxy.Store
	refuses bool
}

func (u unconditional) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if _, version := cond.Version(); u.refuses && (version || cond.Absent()) {
		return "", errors.ErrUnsupported
	}
	return u.Store.Put(ctx, name, body, objproxy.Condition{})
}

func TestUnreachableStoreIsGivenUp(t *testing.T) {
	c := newCable(objtest.NewMemory())
	c.cut.Store(true)
	o := options(t, c)
	o.OpenFor = 30 * time.Millisecond
	if _, err := bs3.Open(t.Context(), o); !errors.Is(err, volume.ErrStore) {
		t.Fatalf("open: %v", err)
	}
}

// TestUnreachableStoreIsWaitedFor: with writes in chunk memory there is no
// giving up.
func TestUnreachableStoreIsWaitedFor(t *testing.T) {
	memory := objtest.NewMemory()
	c := newCable(memory)
	o := options(t, c)
	e := open(t, o)
	c.cut.Store(true)
	var h history
	h.add(t, e, 1)
	kill(t, e)

	o.OpenFor = time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := bs3.Open(ctx, o); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, volume.ErrStore) {
		t.Fatalf("open: %v", err)
	}
	o.Store = memory
	e = open(t, o)
	if n := h.prefix(t, e); n != 1 {
		t.Fatal("the write is lost")
	}
	shut(t, e)
}
