// Package dir is a store in a directory of a local (or mounted) file system.
//
// An object is a file (path.go describes its name):
//
//	 0  8  magic "bs3 dir" and the format version, 1
//	 8 16  version of the object: random, new with every Put
//	24  8  length of the content in bytes, little-endian
//	32     the content
//
// Files never change. A Put writes a temporary file, syncs it, links it to the
// object's name in one step, and syncs the directory before it returns. IfAbsent
// is link(2), which fails if the name is taken. An object is replaced or removed
// under a lock that all processes share, so that nothing comes between checking
// a version and replacing it. Readers take no lock: an open file is all of one
// object.
//
// Directories come with the first object in them and go with the last. So a
// directory may be gone between two steps of a Put, which then makes it anew, or
// may be another one than the Put has synced into its parent, which it then does
// again.
//
// All other files lie in .bs3: the lock, with the store's identity in it (see
// Lasting), a file that every process holds locked while it has the store open,
// and temporary files. A temporary file is removed only after the directory was
// synced. So if Open finds one, a process may have died before its object was
// durable, and Open syncs the file system. It removes such files when no other
// process has the store open.
package dir

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/objproxy"
)

const (
	ownDir     = ".bs3"
	lockFile   = ownDir + "/lock"
	usersFile  = ownDir + "/users"
	tempPrefix = "tmp-"

	headerSize    = 32
	formatVersion = 1
	// writePiece is how many bytes are written between two checks of ctx.
	writePiece = 1 << 20
)

var magic = [8]byte{'b', 's', '3', ' ', 'd', 'i', 'r', formatVersion}

// Store is an objproxy.Store in a directory. All its errors but ErrNotFound,
// ErrExists, ErrDamaged and ErrRange are permanent in the sense of objproxy: a
// full disk, a directory that is gone, a file that may not be read.
type Store struct {
	path     string
	root     *os.Root
	readOnly bool          // the fields below are unset then
	users    *os.File      // locked, shared, while the store is open
	lock     *os.File      // locked, exclusively, to replace or remove
	held     chan struct{} // one token: its holder may lock the file

	mu    sync.Mutex
	known map[string]fs.FileInfo // directories that this process made, or found, and synced into their parents
}

var _ objproxy.Store = (*Store)(nil)

// Open opens the store in the directory path, which it creates if it is missing
// (mode 0700). Several processes may have the same store open.
func Open(ctx context.Context, path string) (*Store, error) {
	s, err := open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open directory store %s: %w", path, err)
	}
	return s, nil
}

func open(ctx context.Context, path string) (_ *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := makeDirs(path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, root: root, held: make(chan struct{}, 1), known: make(map[string]fs.FileInfo)}
	s.held <- struct{}{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := root.Mkdir(ownDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if s.lock, err = root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if s.users, err = root.OpenFile(usersFile, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := s.syncDir(ownDir); err != nil {
		return nil, err
	}
	if err := s.syncDir("."); err != nil {
		return nil, err
	}
	if err := s.removeLeftovers(); err != nil {
		return nil, err
	}
	// A process that has the lock exclusively only removes temporary files, so
	// this wait is short.
	if err := flock(ctx, s.users, unix.LOCK_SH); err != nil {
		return nil, err
	}
	return s, nil
}

// OpenReadOnly opens the store in the directory path for reading. It creates and
// removes nothing there, so the directory need not be writable, or a store. Put
// and Delete fail.
func OpenReadOnly(path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open directory store %s: %w", path, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open directory store %s: %w", abs, err)
	}
	return &Store{path: abs, root: root, readOnly: true}, nil
}

// errReadOnly is the error of changes to a store that OpenReadOnly opened.
var errReadOnly = errors.New("the store is open for reading only")

// makeDirs is os.MkdirAll, but syncs each directory that it creates into its
// parent.
func makeDirs(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeDirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeLeftovers makes durable what processes that died may have stored, and
// removes their temporary files.
func (s *Store) removeLeftovers() error {
	entries, err := s.readDir(ownDir)
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !strings.HasPrefix(e.Name(), tempPrefix) })
	if len(entries) == 0 {
		return nil
	}
	if err := unix.Syncfs(int(s.lock.Fd())); err != nil {
		return fmt.Errorf("sync the file system: %w", err)
	}
	switch err := tryFlock(s.users, unix.LOCK_EX); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil // some of them may belong to another process that is alive
	case err != nil:
		return err
	}
	for _, e := range entries {
		if err := s.root.Remove(ownDir + "/" + e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close closes the store. No method may be running, or be called later, except
// Close, which then has no effect.
func (s *Store) Close() error {
	err := s.root.Close()
	for _, f := range []*os.File{s.lock, s.users} {
		if f == nil {
			continue
		}
		if e := f.Close(); !errors.Is(e, fs.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Put implements objproxy.Store.
func (s *Store) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	v, err := s.put(ctx, name, body, cond)
	if err != nil {
		return "", fmt.Errorf("put %s in %s: %w", name, s.path, err)
	}
	return v, nil
}

func (s *Store) put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if s.readOnly {
		return "", errReadOnly
	}
	loc, err := locate(name)
	if err != nil {
		return "", err
	}
	temp, v, err := s.writeTemp(ctx, body)
	if err != nil {
		return "", err
	}
	defer s.root.Remove(temp) // after a rename there is none; what stays behind, a later Open removes
	for range mostRemakes {
		if err = s.place(ctx, temp, loc, cond); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		s.forget(loc.dir()) // somebody has removed it, with the last object there
	}
	if err != nil {
		return "", err
	}
	return v, nil
}

// mostRemakes is how often a Put makes directories that are removed meanwhile.
const mostRemakes = 100

// place gives temp the name of loc if cond holds. An error that is fs.ErrNotExist
// says that a directory is missing.
func (s *Store) place(ctx context.Context, temp string, loc location, cond objproxy.Condition) error {
	synced, err := s.makeDirsOf(loc)
	if err != nil {
		return err
	}
	if cond.Absent() {
		err = s.link(temp, loc)
	} else {
		err = s.replace(ctx, temp, loc, cond)
	}
	if err != nil && !errors.Is(err, objproxy.ErrExists) {
		return err
	}
	// What is there must be as durable as its name, also if it is not ours.
	if e := s.syncAgain(loc, synced); e != nil {
		return e
	}
	return err
}

// writeTemp writes and syncs a temporary file, in .bs3.
func (s *Store) writeTemp(ctx context.Context, body objproxy.Body) (temp string, _ objproxy.Version, err error) {
	var header [headerSize]byte
	copy(header[:], magic[:])
	rand.Read(header[8:24]) // never fails
	binary.LittleEndian.PutUint64(header[24:], uint64(body.Size()))
	v := version(header)
	path := ownDir + "/" + tempPrefix + string(v)
	f, err := s.root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, s.root.Remove(path))
		}
	}()
	// The body is written from where it lies; the reader only tells its owner that
	// it is in use.
	r := body.Open()
	defer r.Close()
	for _, part := range [][]byte{header[:], body.Data, body.Tail} {
		for piece := range slices.Chunk(part, writePiece) {
			if err := ctx.Err(); err != nil {
				return "", "", err
			}
			if _, err := f.Write(piece); err != nil {
				return "", "", err
			}
		}
	}
	return path, v, f.Sync()
}

// link links temp to the name of loc, unless that is taken.
func (s *Store) link(temp string, loc location) error {
	err := s.root.Link(temp, loc.path())
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// What is there must be durable before anybody learns of it, even if it is not
	// ours: another process may have linked it and died at this point.
	if err := s.syncDir(loc.dir()); err != nil {
		return err
	}
	if err != nil {
		return objproxy.ErrExists
	}
	return nil
}

// replace renames temp to loc if cond holds. A second link to temp stays until
// the directory is synced, as the package comment promises.
func (s *Store) replace(ctx context.Context, temp string, loc location, cond objproxy.Condition) error {
	unlock, err := s.lockNames(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if want, ok := cond.Version(); ok {
		if err := s.checkVersion(loc, want); err != nil {
			return err
		}
	}
	second := temp + "-2"
	if err := s.root.Link(temp, second); err != nil {
		return err
	}
	defer s.root.Remove(second)
	if err := s.root.Rename(temp, loc.path()); err != nil {
		return err
	}
	return s.syncDir(loc.dir())
}

// checkVersion returns ErrExists unless the object has version want.
func (s *Store) checkVersion(loc location, want objproxy.Version) error {
	f, h, err := s.openObject(loc)
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		return fmt.Errorf("%w: there is no object, instead of version %q", objproxy.ErrExists, want)
	case err != nil:
		return err
	}
	f.Close()
	if h.version == want {
		return nil
	}
	if err := s.syncDir(loc.dir()); err != nil { // as in link
		return err
	}
	return fmt.Errorf("%w: it has version %s instead of %q", objproxy.ErrExists, h.version, want)
}

// Get implements objproxy.Store.
func (s *Store) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := s.get(ctx, name, p, off)
	if err != nil {
		return 0, objproxy.Info{}, fmt.Errorf("get %s from %s: %w", name, s.path, err)
	}
	return n, info, nil
}

func (s *Store) get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if err := ctx.Err(); err != nil {
		return 0, objproxy.Info{}, err
	}
	loc, err := locate(name)
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	f, h, err := s.openObject(loc)
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	defer f.Close()
	if off < 0 {
		off = max(0, h.size-int64(len(p)))
		p = p[:h.size-off]
	}
	if off > h.size || int64(len(p)) > h.size-off {
		return 0, objproxy.Info{}, fmt.Errorf("%w: %d bytes at %d of %d", objproxy.ErrRange, len(p), off, h.size)
	}
	switch _, err := f.ReadAt(p, headerSize+off); {
	case errors.Is(err, io.EOF): // files never change: it was cut off meanwhile
		return 0, objproxy.Info{}, damaged(loc, "ends before %d bytes at %d", len(p), off)
	case err != nil:
		return 0, objproxy.Info{}, err
	}
	return len(p), objproxy.Info{Name: name, Size: h.size, Version: h.version, Modified: h.modified.ModTime()}, nil
}

// header is what an object has besides its content.
type header struct {
	size     int64
	version  objproxy.Version
	modified fs.FileInfo
}

func version(h [headerSize]byte) objproxy.Version {
	return objproxy.Version(hex.EncodeToString(h[8:24]))
}

// damaged returns the error for the file of loc, which is as the text says.
func damaged(loc location, format string, args ...any) error {
	return fmt.Errorf("%w: file %s %s", objproxy.ErrDamaged, loc.path(), fmt.Sprintf(format, args...))
}

// openObject opens an object and checks its header and length.
func (s *Store) openObject(loc location) (_ *os.File, h header, err error) {
	// O_NONBLOCK: a named pipe in the place of the file must not be waited for.
	f, err := s.root.OpenFile(loc.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, header{}, s.notOpened(loc, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, header{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, header{}, damaged(loc, "is no file, but %s", info.Mode())
	}
	var b [headerSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, header{}, err
	}
	switch size := int64(binary.LittleEndian.Uint64(b[24:])); {
	case !bytes.Equal(b[:7], magic[:7]):
		return nil, header{}, damaged(loc, "is not an object of bs3")
	case b[7] != formatVersion:
		return nil, header{}, damaged(loc, "has format version %d; this bs3 knows %d", b[7], formatVersion)
	case info.Size() != headerSize+size:
		return nil, header{}, damaged(loc, "is damaged: it should hold %d bytes and has %d", headerSize+size, info.Size())
	default:
		return f, header{size: size, version: version(b), modified: info}, nil
	}
}

// notOpened returns the error for the file of loc, which could not be opened.
func (s *Store) notOpened(loc location, err error) error {
	// A link to nowhere takes the name, so it is not a missing file.
	if info, e := s.root.Lstat(loc.path()); e == nil && !info.Mode().IsRegular() {
		return damaged(loc, "is no file, but %s: %v", info.Mode(), err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return s.absent(err)
	}
	return err
}

// absent returns the error for a missing file: ErrNotFound, but only if the
// store is still there.
func (s *Store) absent(missing error) error {
	if err := s.here(); err != nil {
		return fmt.Errorf("the store's directory is gone (%w): %w", err, missing)
	}
	return objproxy.ErrNotFound
}

// here returns an error if the store's directory is gone. A directory that was
// removed has neither its files nor its name any more, though root is still open.
func (s *Store) here() error {
	if !s.readOnly {
		_, err := s.root.Stat(lockFile)
		return err
	}
	// A copy of a store may lack what is in .bs3.
	opened, err := s.root.Stat(".")
	if err != nil {
		return err
	}
	named, err := os.Stat(s.path)
	if err == nil && !os.SameFile(opened, named) {
		err = fmt.Errorf("another directory is at %s: %w", s.path, fs.ErrNotExist)
	}
	return err
}

// Delete implements objproxy.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %d objects in %s: %w", len(names), s.path, err)
	}
	var failed []*objproxy.DeleteError
	fail := func(name string, err error) {
		failed = append(failed, &objproxy.DeleteError{Name: name, Err: fmt.Errorf("in %s: %w", s.path, err)})
	}
	removed := make(map[location][]string) // by directory
	for _, name := range names {
		loc, err := s.remove(ctx, name)
		if err != nil {
			fail(name, err)
			continue
		}
		loc.file = ""
		removed[loc] = append(removed[loc], name)
	}
	for loc, names := range removed {
		// A missing name may have been removed by a process that died before it
		// could sync.
		if err := s.syncRemoved(loc); err != nil {
			for _, name := range names {
				fail(name, err)
			}
		}
	}
	return objproxy.JoinDelete(failed)
}

// syncRemoved makes it durable that objects are gone from the directory of loc,
// and removes that if nothing is left there.
func (s *Store) syncRemoved(loc location) error {
	changed := loc.dir()
	for _, d := range []struct{ path, parent string }{{loc.dir(), loc.top}, {loc.top, "."}} {
		s.forget(d.path)
		if err := s.root.Remove(d.path); err != nil {
			break // it is in use, or gone
		}
		changed = d.parent
	}
	for _, path := range []string{changed, loc.top, "."} {
		// Whoever removed a directory meanwhile may not have synced that yet.
		if err := s.syncDir(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.here()
}

func (s *Store) remove(ctx context.Context, name string) (location, error) {
	if s.readOnly {
		return location{}, errReadOnly
	}
	loc, err := locate(name)
	if err != nil {
		return location{}, err
	}
	unlock, err := s.lockNames(ctx)
	if err != nil {
		return location{}, err
	}
	defer unlock()
	err = s.root.Remove(loc.path())
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.absent(err); errors.Is(err, objproxy.ErrNotFound) {
			err = nil
		}
	}
	return loc, err
}
