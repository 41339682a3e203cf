package bs3

import (
	"context"
	"errors"
	"testing"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// contrary denies every condition on a version, also those that hold.
type contrary struct{ objproxy.Store }

func (c contrary) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if _, is := cond.Version(); is {
		return "", objproxy.ErrExists
	}
	return c.Store.Put(ctx, name, body, cond)
}

// fromStart takes a request for the end of an object for one for its beginning.
type fromStart struct{ objproxy.Store }

func (f fromStart) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if _, info, err := f.Store.Get(ctx, name, nil, 0); err == nil && off < 0 && int64(len(p)) < info.Size {
		off = 0
	}
	return f.Store.Get(ctx, name, p, off)
}

// A volume in a store that contradicts itself works where the user wants that, and
// an open of it ends in any case.
func TestStoreThatContradictsItself(t *testing.T) {
	o := tinyOptions(t)
	o.Store = contrary{o.Store}
	if _, err := Open(t.Context(), o); !errors.Is(err, volume.ErrRefused) {
		t.Fatalf("opened: %v", err)
	}
	o.UnsafeNoFencing = true
	for range 2 {
		e, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(e.WriteAt(t.Context(), make([]byte, 512), 0), e.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// A store that returns the wrong parts of objects holds no volume, fenced or not.
func TestStoreThatReadsWrongly(t *testing.T) {
	for _, unsafe := range []bool{false, true} {
		o := tinyOptions(t)
		o.Store, o.UnsafeNoFencing = fromStart{o.Store}, unsafe
		if _, err := Open(t.Context(), o); !errors.Is(err, volume.ErrRefused) || !errors.Is(err, objproxy.ErrWrongRange) {
			t.Errorf("opened: %v", err)
		}
	}
}
