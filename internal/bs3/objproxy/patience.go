package objproxy

import (
	"context"
	"time"
)

// Patience returns store, and a ctx that ends because of cause when none of its
// requests has been answered properly for limit. The definite answers of Retry
// are proper ones. The caller must call release when it is done with both.
func Patience(ctx context.Context, store Store, limit time.Duration, cause error) (limited context.Context, _ Store, release func()) {
	limited, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() { cancel(cause) })
	return limited, patient{store, func() { timer.Reset(limit) }}, func() {
		timer.Stop()
		cancel(nil)
	}
}

// patient is a store that notes when it was last answered properly.
type patient struct {
	Store
	answered func()
}

func (p patient) note(err error) {
	if definite(err) {
		p.answered()
	}
}

func (p patient) Put(ctx context.Context, name string, body Body, cond Condition) (Version, error) {
	v, err := p.Store.Put(ctx, name, body, cond)
	p.note(err)
	return v, err
}

func (p patient) Get(ctx context.Context, name string, b []byte, off int64) (int, Info, error) {
	n, info, err := p.Store.Get(ctx, name, b, off)
	p.note(err)
	return n, info, err
}

func (p patient) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	list, err := p.Store.List(ctx, prefix, after, limit)
	p.note(err)
	return list, err
}
