package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/objproxy"
)

// List implements objproxy.Store. It gives no versions. Files whose names are
// not those of objects are passed over.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	infos, err := s.list(ctx, prefix, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list %q in %s: %w", prefix, s.path, err)
	}
	return infos, nil
}

func (s *Store) list(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	// A directory counts if names that begin as it does may be asked for.
	dirMatches := func(start string) bool {
		return (strings.HasPrefix(start, prefix) || strings.HasPrefix(prefix, start)) &&
			(start > after || strings.HasPrefix(after, start))
	}
	fileMatches := func(name string) bool { return strings.HasPrefix(name, prefix) && name > after }

	var infos []objproxy.Info
	tops, err := s.entries(ctx, ".", "", fs.ModeDir, dirMatches)
	if err != nil {
		return nil, err
	}
	for _, top := range tops {
		subs, err := s.entries(ctx, top.Name(), top.name, fs.ModeDir, dirMatches)
		if err != nil {
			return nil, err
		}
		for _, sub := range subs {
			files, err := s.entries(ctx, top.Name()+"/"+sub.Name(), "", 0, fileMatches)
			if err != nil {
				return nil, err
			}
			for _, file := range files {
				if loc, err := locate(file.name); err != nil || loc != (location{top.Name(), sub.Name(), file.Name()}) {
					continue
				}
				info, err := file.Info()
				if errors.Is(err, fs.ErrNotExist) {
					continue // removed while we look
				}
				if err != nil {
					return nil, err
				}
				infos = append(infos, objproxy.Info{
					Name:     file.name,
					Size:     max(0, info.Size()-headerSize),
					Modified: info.ModTime(),
				})
				if len(infos) == limit {
					return infos, nil
				}
			}
		}
	}
	return infos, nil
}

// entry is a file or directory, and the (beginning of the) object name that
// it stands for.
type entry struct {
	fs.DirEntry
	name string
}

// entries gives the files (want 0) or directories (fs.ModeDir) that lie in
// the directory dir, which stands for base, and that match, in the order of
// the names they stand for.
func (s *Store) entries(ctx context.Context, dir, base string, want fs.FileMode, matches func(name string) bool) ([]entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, err := s.readDir(dir)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, e := range all {
		if e.Type() != want {
			continue
		}
		if name, ok := unescape(e.Name()); ok && matches(base+name) {
			entries = append(entries, entry{e, base + name})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

func (s *Store) readDir(dir string) ([]fs.DirEntry, error) {
	d, err := s.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

// makeDirsOf makes the two directories above loc. Those that this process has
// not yet made sure of are synced into their parents: another process may
// have made them a moment ago.
func (s *Store) makeDirsOf(loc location) error {
	s.mu.Lock()
	known := s.known[loc.dir()]
	s.mu.Unlock()
	if known {
		return nil
	}
	for _, d := range []string{loc.top, loc.dir()} {
		if err := s.root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, d := range []string{".", loc.top} {
		if err := s.syncDir(d); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[loc.dir()] = true
	return nil
}

// forget makes the next Put look whether the directories are there.
func (s *Store) forget(loc location) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, loc.dir())
}

func (s *Store) syncDir(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockNames waits for the lock that all who replace or remove objects share,
// in this process and others.
func (s *Store) lockNames(ctx context.Context) (unlock func(), err error) {
	select {
	case <-s.held:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := flock(ctx, s.lock, unix.LOCK_EX); err != nil {
		s.held <- struct{}{}
		return nil, err
	}
	return func() {
		// Unlocking an open file cannot fail.
		_ = unix.Flock(int(s.lock.Fd()), unix.LOCK_UN)
		s.held <- struct{}{}
	}, nil
}

// Another process holds the lock for one rename or removal; if it was stopped
// meanwhile, ctx decides how long to wait.
const (
	firstLockWait = time.Millisecond
	maxLockWait   = 20 * time.Millisecond
)

// flock locks f. It asks again and again, because a blocking flock(2) does
// not end with ctx.
func flock(ctx context.Context, f *os.File, how int) error {
	for wait := firstLockWait; ; wait = min(2*wait, maxLockWait) {
		err := tryFlock(f, how)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("wait for the lock %s: %w", f.Name(), ctx.Err())
		}
	}
}

func tryFlock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("flock %s: %w", f.Name(), err)
		}
		return nil
	}
}
