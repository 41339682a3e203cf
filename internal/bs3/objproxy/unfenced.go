package objproxy

import (
	"context"
	"errors"
)

// Unfenced returns store, but repeats without its condition each put whose
// condition store does not support: some stores refuse conditions instead of
// ignoring them. Nothing keeps two writers apart then.
func Unfenced(store Store) Store { return unfenced{store} }

type unfenced struct{ Store }

func (u unfenced) Put(ctx context.Context, name string, body Body, cond Condition) (Version, error) {
	v, err := u.Store.Put(ctx, name, body, cond)
	if errors.Is(err, errors.ErrUnsupported) {
		return u.Store.Put(ctx, name, body, Condition{})
	}
	return v, err
}
