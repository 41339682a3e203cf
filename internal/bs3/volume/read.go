package volume

import (
	"context"
	"fmt"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// MaxRead bounds what ReadAll takes, in bytes, and so a checkpoint: a store may
// take no more in one put.
const MaxRead = 5 << 30

// ReadAll reads a whole object whose size is not known, and its version.
// Errors: objproxy.ErrNotFound, layout.ErrDamaged (larger than MaxRead, or the
// answer is not as long as it says), those of the store.
func ReadAll(ctx context.Context, store objproxy.Store, name string) ([]byte, objproxy.Version, error) {
	b := make([]byte, 64<<10)
	for {
		n, info, err := store.Get(ctx, name, b, -1)
		if err != nil {
			return nil, "", fmt.Errorf("read %s: %w", name, err)
		}
		switch {
		case info.Size == int64(n):
			return b[:n], info.Version, nil
		case info.Size > MaxRead:
			return nil, "", fmt.Errorf("read %s: %w: it has %d bytes", name, layout.ErrDamaged, info.Size)
		case info.Size <= int64(len(b)):
			return nil, "", fmt.Errorf("read %s: %w: %d of %d bytes came", name, layout.ErrDamaged, n, info.Size)
		}
		b = make([]byte, info.Size) // all of it next time, unless it is replaced by a larger one
	}
}

// List calls f with all objects whose names begin with prefix, a page at a
// time. It stops at the first error, of f or of the store, and returns it.
func List(ctx context.Context, store objproxy.Store, prefix string, f func(page []objproxy.Info) error) error {
	const most = 1000
	for after := ""; ; {
		page, err := store.List(ctx, prefix, after, most)
		if err != nil {
			return fmt.Errorf("list %q: %w", prefix, err)
		}
		if err := f(page); err != nil {
			return err
		}
		if len(page) < most {
			return nil
		}
		after = page[len(page)-1].Name
	}
}

// untorn calls read again, twice at most, when what it read does not verify: one
// answer may be cut, or another object's, and while an object is being replaced
// a store may answer with parts of two versions.
func untorn(ctx context.Context, read func() error) error {
	err := read()
	for range 2 {
		if !IsUnreadable(err) || objproxy.Sleep(ctx, 20*time.Millisecond) != nil {
			break
		}
		err = read()
	}
	return err
}
