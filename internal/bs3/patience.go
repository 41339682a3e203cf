package bs3

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bs3/internal/bs3/objproxy"
)

// patient is a store that notes when it was last answered properly.
type patient struct {
	objproxy.Store
	answered func()
}

func (p patient) note(err error) {
	if err == nil || errors.Is(err, objproxy.ErrNotFound) || errors.Is(err, objproxy.ErrExists) {
		p.answered()
	}
}

func (p patient) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	v, err := p.Store.Put(ctx, name, body, cond)
	p.note(err)
	return v, err
}

func (p patient) Get(ctx context.Context, name string, b []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := p.Store.Get(ctx, name, b, off)
	p.note(err)
	return n, info, err
}

func (p patient) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	list, err := p.Store.List(ctx, prefix, after, limit)
	p.note(err)
	return list, err
}

// limitPatience gives a ctx that ends with ErrStore when the store has not
// answered any request properly for openFor. A log that takes longer to read
// than that is no reason to give up. end must be called, by the goroutine that
// opens, before others use the engine's store.
func (e *Engine) limitPatience(ctx context.Context) (limited context.Context, end func()) {
	limit := openFor
	if e.opts.OpenFor > 0 {
		limit = e.opts.OpenFor
	}
	limited, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() { cancel(fmt.Errorf("%w: no proper answer for %v", ErrStore, limit)) })
	e.store = patient{e.opts.Store, func() { timer.Reset(limit) }}
	return limited, func() {
		timer.Stop()
		e.store = e.opts.Store
		cancel(nil)
	}
}
