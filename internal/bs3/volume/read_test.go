package volume_test

import (
	"context"
	"errors"
	"testing"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// liar is a store that says of each answer that there is more.
type liar struct{ objproxy.Store }

func (s liar) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := s.Store.Get(ctx, name, p, off)
	info.Size++
	return n, info, err
}

// TestReadAllComesToAnEnd: an answer that is never as long as it says is damage,
// and no reason to go on asking.
func TestReadAllComesToAnEnd(t *testing.T) {
	store := objtest.NewMemory()
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 100 << 10} {
		if _, err := store.Put(t.Context(), "x", objproxy.Body{Data: make([]byte, size)}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
		if b, _, err := volume.ReadAll(t.Context(), store, "x"); err != nil || len(b) != size {
			t.Fatalf("%d of %d bytes: %v", len(b), size, err)
		}
		if _, _, err := volume.ReadAll(t.Context(), liar{store}, "x"); !errors.Is(err, layout.ErrDamaged) {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
}
