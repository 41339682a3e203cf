package dir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"bs3/internal/bs3/objproxy"
)

// Lasting is a Store that is opened again after its directory was away: the
// server or the FUSE daemon of its file system died, or it was unmounted, and is
// back. What an open directory refers to does not come back by itself.
//
// A directory that is empty because nothing is mounted there must not be taken
// for the store, nor must another store. So a store has an identity, random
// digits in the lock file, which are compared before the directory is used again.
type Lasting struct {
	path     string
	id       string        // empty: it has none, and is not opened again
	readOnly bool          // it is opened by OpenReadOnly
	turn     chan struct{} // holds a token while the directory is looked at

	mu  sync.Mutex
	use *use
}

var _ objproxy.Store = (*Lasting)(nil)

// use is a store in use. Lasting.mu guards it.
type use struct {
	store    *Store
	requests int  // that are under way
	doubted  bool // a request has failed, so look at the directory before the next one
	left     bool // nobody uses it any more: it is closed after the last request
}

// OpenLasting is Open for a Lasting.
func OpenLasting(ctx context.Context, path string) (*Lasting, error) {
	s, err := Open(ctx, path)
	if err != nil {
		return nil, err
	}
	id, err := s.identity(ctx)
	if err != nil {
		return nil, fmt.Errorf("open directory store %s: identity: %w", path, errors.Join(err, s.Close()))
	}
	return &Lasting{path: s.path, id: id, turn: make(chan struct{}, 1), use: &use{store: s}}, nil
}

// OpenLastingReadOnly is OpenReadOnly for a Lasting. A copy of a store may lack an
// identity: then it is not opened again.
func OpenLastingReadOnly(path string) (*Lasting, error) {
	s, err := OpenReadOnly(path)
	if err != nil {
		return nil, err
	}
	id, _ := s.root.ReadFile(lockFile) // who cannot read it has the store all the same
	return &Lasting{path: s.path, id: string(id), readOnly: true, turn: make(chan struct{}, 1), use: &use{store: s}}, nil
}

// identity returns what tells s from other stores, and makes it if s has none.
func (s *Store) identity(ctx context.Context) (string, error) {
	unlock, err := s.lockNames(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	b, err := s.root.ReadFile(lockFile)
	if err != nil || len(b) > 0 {
		return string(b), err
	}
	var random [16]byte
	rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	if _, err := s.lock.WriteAt([]byte(id), 0); err != nil {
		return "", err
	}
	return id, s.lock.Sync()
}

// begin returns the store for one request. The caller must call end.
func (l *Lasting) begin(ctx context.Context) (*use, error) {
	if u := l.enter(false); u != nil {
		return u, nil
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if u := l.enter(false); u != nil { // somebody else has looked meanwhile
		return u, nil
	}
	if err := l.look(ctx); err != nil {
		return nil, fmt.Errorf("the store's directory %s is gone: %w", l.path, err)
	}
	return l.enter(true), nil
}

// enter counts one request more and returns the store for it; nil if that has to
// be looked at first. trusted says that it was.
func (l *Lasting) enter(trusted bool) *use {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.use.doubted && !trusted {
		return nil
	}
	l.use.doubted = false
	l.use.requests++
	return l.use
}

// end notes how a request has ended.
func (l *Lasting) end(ctx context.Context, u *use, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u.requests--
	if err != nil && ctx.Err() == nil {
		u.doubted = true
	}
	l.closeLeft(u)
}

// closeLeft closes u if nobody needs it any more. The caller holds l.mu. What
// that returns is of no interest: a store holds nothing that is not on disk.
func (l *Lasting) closeLeft(u *use) {
	if u.left && u.requests == 0 && u.store != nil {
		_ = u.store.Close()
		u.store = nil
	}
}

// look makes sure that l.use is a store that works, by opening it again if need
// be. The caller holds the token of l.turn.
func (l *Lasting) look(ctx context.Context) error {
	l.mu.Lock()
	u, store := l.use, l.use.store
	l.mu.Unlock()
	if store != nil {
		err := store.here()
		l.mu.Lock()
		// As long as it is open, the file system cannot be unmounted.
		u.left = err != nil
		l.closeLeft(u)
		works := err == nil && u.store != nil
		l.mu.Unlock()
		if works {
			return nil // something else was wrong
		}
	}
	if l.id == "" {
		return errors.New("it has no identity by which it could be found again")
	}
	// Open would make a store of an empty directory.
	id, err := os.ReadFile(filepath.Join(l.path, lockFile))
	if err != nil {
		return err
	}
	if string(id) != l.id {
		return errors.New("another store is there")
	}
	s, err := l.open(ctx)
	if err != nil {
		return err
	}
	now, err := s.root.ReadFile(lockFile)
	if err == nil && string(now) != l.id {
		err = errors.New("another store is there")
	}
	if err != nil {
		return errors.Join(err, s.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.use = &use{store: s, doubted: true}
	return nil
}

// open opens the store again.
func (l *Lasting) open(ctx context.Context) (*Store, error) {
	if l.readOnly {
		return OpenReadOnly(l.path)
	}
	return Open(ctx, l.path)
}

// Put implements objproxy.Store.
func (l *Lasting) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	u, err := l.begin(ctx)
	if err != nil {
		return "", fmt.Errorf("put %s: %w", name, err)
	}
	v, err := u.store.Put(ctx, name, body, cond)
	l.end(ctx, u, doubtful(err))
	return v, err
}

// Get implements objproxy.Store.
func (l *Lasting) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	u, err := l.begin(ctx)
	if err != nil {
		return 0, objproxy.Info{}, fmt.Errorf("get %s: %w", name, err)
	}
	n, info, err := u.store.Get(ctx, name, p, off)
	l.end(ctx, u, doubtful(err))
	return n, info, err
}

// List implements objproxy.Store.
func (l *Lasting) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	u, err := l.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	infos, err := u.store.List(ctx, prefix, after, limit)
	l.end(ctx, u, doubtful(err))
	return infos, err
}

// Delete implements objproxy.Store.
func (l *Lasting) Delete(ctx context.Context, names []string) error {
	u, err := l.begin(ctx)
	if err != nil {
		return fmt.Errorf("delete %d objects: %w", len(names), err)
	}
	err = u.store.Delete(ctx, names)
	l.end(ctx, u, doubtful(err))
	return err
}

// doubtful returns err unless it is an answer that only a store that works gives.
func doubtful(err error) error {
	for _, answer := range []error{objproxy.ErrNotFound, objproxy.ErrExists, objproxy.ErrDamaged, objproxy.ErrRange} {
		if errors.Is(err, answer) {
			return nil
		}
	}
	return err
}

// Close closes the store. No method may be running, or be called later, except
// Close, which then has no effect.
func (l *Lasting) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.use.store
	if s == nil {
		return nil
	}
	l.use.store = nil
	return s.Close()
}
