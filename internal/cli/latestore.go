package cli

import (
	"context"
	"io"

	"bs3/internal/bs3/objproxy"
)

// lateStore is a store that is opened by the first request to it, so that
// waiting for a store is the same whether its directory or bucket is missing or
// it does not answer.
type lateStore struct {
	open   func(context.Context) (objproxy.Store, error)
	turn   chan struct{} // holds a token while somebody opens the store
	opened chan struct{} // closed when store is set
	store  objproxy.Store
}

func newLateStore(open func(context.Context) (objproxy.Store, error)) *lateStore {
	return &lateStore{open: open, turn: make(chan struct{}, 1), opened: make(chan struct{})}
}

// there gives the store, which is opened if nobody has done that yet.
func (s *lateStore) there(ctx context.Context) (objproxy.Store, error) {
	select {
	case <-s.opened:
		return s.store, nil
	default:
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-s.opened: // by who had the turn before
		return s.store, nil
	default:
	}
	store, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	s.store = store
	close(s.opened)
	return store, nil
}

// close closes the store. No request may be under way.
func (s *lateStore) close() error {
	select {
	case <-s.opened:
	default:
		return nil
	}
	return closeStore(s.store)
}

// closeStore closes a store that has something to close.
func closeStore(s objproxy.Store) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Put implements objproxy.Store.
func (s *lateStore) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	store, err := s.there(ctx)
	if err != nil {
		return "", err
	}
	return store.Put(ctx, name, body, cond)
}

// Get implements objproxy.Store.
func (s *lateStore) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	store, err := s.there(ctx)
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	return store.Get(ctx, name, p, off)
}

// List implements objproxy.Store.
func (s *lateStore) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	store, err := s.there(ctx)
	if err != nil {
		return nil, err
	}
	return store.List(ctx, prefix, after, limit)
}

// Delete implements objproxy.Store.
func (s *lateStore) Delete(ctx context.Context, names []string) error {
	store, err := s.there(ctx)
	if err != nil {
		return err
	}
	return store.Delete(ctx, names)
}
