package stores

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// Patient is a Store that tries a request again, for some time, while the answer is
// objproxy.ErrTransient. Any other answer is final. It is for commands that a person
// waits for; what serves a device has objproxy.Retry. A conditional Put whose answer
// was lost may return objproxy.ErrExists, as there.
type Patient struct {
	objproxy.Store
	limit time.Duration
	retry *objproxy.Retry
}

// NewPatient wraps inner. A request that was not answered properly within limit
// fails with volume.ErrStore.
func NewPatient(inner objproxy.Store, limit time.Duration) *Patient {
	return &Patient{inner, limit, objproxy.NewRetry(inner, objproxy.RetryOptions{})}
}

// Get implements objproxy.Store.
func (p *Patient) Get(ctx context.Context, name string, b []byte, off int64) (n int, info objproxy.Info, err error) {
	err = p.try(ctx, "get", name, func() (err error) {
		n, info, err = p.Store.Get(ctx, name, b, off)
		return err
	})
	return n, info, err
}

// List implements objproxy.Store.
func (p *Patient) List(ctx context.Context, prefix, after string, limit int) (infos []objproxy.Info, err error) {
	err = p.try(ctx, "list", prefix, func() (err error) {
		infos, err = p.Store.List(ctx, prefix, after, limit)
		return err
	})
	return infos, err
}

// Put implements objproxy.Store.
func (p *Patient) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (v objproxy.Version, err error) {
	err = p.try(ctx, "put", name, func() (err error) {
		v, err = p.Store.Put(ctx, name, body, cond)
		return err
	})
	return v, err
}

// Delete implements objproxy.Store.
func (p *Patient) Delete(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	return p.try(ctx, "delete", names[0], func() error { return p.Store.Delete(ctx, names) })
}

// try calls ask until its answer is final or time is up. How long an answer
// takes is not limited: a large object may take longer than all tries.
func (p *Patient) try(ctx context.Context, kind, name string, ask func() error) error {
	trying, cancel := context.WithTimeoutCause(ctx, p.limit, fmt.Errorf("%w: no proper answer for %v", volume.ErrStore, p.limit))
	defer cancel()
	var answer error
	err := p.retry.Do(trying, kind, name, func() error {
		answer = ask()
		if errors.Is(answer, objproxy.ErrTransient) {
			return answer
		}
		return nil
	})
	if err == nil {
		return answer
	}
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(trying), err)
}
