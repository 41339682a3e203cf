package objproxy

import (
	"context"
	"errors"
)

// Unfenced returns store, but repeats without its condition each put whose
// condition store refuses although it holds, by what store shows: some stores
// support no conditions, some contradict themselves. Nothing keeps two writers
// apart then.
func Unfenced(store Store) Store { return unfenced{store} }

type unfenced struct{ Store }

func (u unfenced) Put(ctx context.Context, name string, body Body, cond Condition) (Version, error) {
	v, err := u.Store.Put(ctx, name, body, cond)
	switch {
	case errors.Is(err, ErrExists):
		if holds, e := u.holds(ctx, name, cond); e != nil || !holds {
			return "", errors.Join(err, e)
		}
	case !errors.Is(err, errors.ErrUnsupported):
		return v, err
	}
	return u.Store.Put(ctx, name, body, Condition{})
}

// holds reports whether cond holds by what the store shows.
func (u unfenced) holds(ctx context.Context, name string, cond Condition) (bool, error) {
	_, there, err := u.Get(ctx, name, nil, 0)
	want, isVersion := cond.Version()
	switch {
	case errors.Is(err, ErrNotFound):
		return cond.Absent(), nil
	case err != nil:
		return false, err
	}
	return isVersion && there.Version == want, nil
}
