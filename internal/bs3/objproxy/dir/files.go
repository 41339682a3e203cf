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

// List implements objproxy.Store. It returns no versions. It passes over files
// whose names are not those of objects.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	infos, err := s.list(ctx, prefix, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list %q in %s: %w", prefix, s.path, err)
	}
	return infos, nil
}

func (s *Store) list(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	// A directory matters if names that begin like it may match.
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
					continue // it was removed meanwhile
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

// entry is a file or directory, with the object name, or the beginning of one,
// that it stands for.
type entry struct {
	fs.DirEntry
	name string
}

// entries returns the files (want 0) or directories (fs.ModeDir) in the
// directory dir, which stands for base, whose names match, in the order of the
// names that they stand for.
func (s *Store) entries(ctx context.Context, dir, base string, want fs.FileMode, matches func(name string) bool) ([]entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, err := s.readDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		// It was removed meanwhile, with the last object there, if the store itself
		// is still there.
		if err = s.absent(err); errors.Is(err, objproxy.ErrNotFound) {
			return nil, nil
		}
	}
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

// makeDirsOf creates the two directories above loc. It syncs them into their
// parents the first time, even if they exist: another process may have created
// them a moment ago. It returns the directory that it knows to be synced.
func (s *Store) makeDirsOf(loc location) (synced fs.FileInfo, err error) {
	s.mu.Lock()
	synced = s.known[loc.dir()]
	s.mu.Unlock()
	if synced != nil {
		return synced, nil
	}
	for _, d := range []string{loc.top, loc.dir()} {
		if err := s.root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return s.syncDirsOf(loc)
}

// syncDirsOf syncs the two directories above loc into their parents, and returns
// the lower one.
func (s *Store) syncDirsOf(loc location) (synced fs.FileInfo, err error) {
	if synced, err = s.root.Stat(loc.dir()); err != nil {
		return nil, err
	}
	for _, d := range []string{".", loc.top} {
		if err := s.syncDir(d); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[loc.dir()] = synced
	return synced, nil
}

// syncAgain is for who has put something into the directory of loc, which was
// synced when makeDirsOf returned. If that was removed, and made again, before
// the put, it may not be synced.
func (s *Store) syncAgain(loc location, synced fs.FileInfo) error {
	s.mu.Lock()
	same := s.known[loc.dir()] == synced // nobody of this process has removed it
	s.mu.Unlock()
	now, err := s.root.Stat(loc.dir())
	if err != nil {
		return err
	}
	if same && os.SameFile(now, synced) {
		return nil
	}
	_, err = s.syncDirsOf(loc)
	return err
}

// forget makes the next Put create the directory if it is gone.
func (s *Store) forget(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, dir)
}

func (s *Store) syncDir(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockNames waits for the lock under which objects are replaced and removed, in
// this process and in others.
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

// Another process holds the lock for one rename or removal. If that process is
// stopped meanwhile, ctx decides how long to wait.
const (
	firstLockWait = time.Millisecond
	maxLockWait   = 20 * time.Millisecond
)

// flock locks f. It polls, because a blocking flock(2) does not end with ctx.
func flock(ctx context.Context, f *os.File, how int) error {
	for wait := firstLockWait; ; wait = min(2*wait, maxLockWait) {
		err := tryFlock(f, how)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if objproxy.Sleep(ctx, wait) != nil {
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
