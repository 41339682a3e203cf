package dir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/objtest"
)

func openLasting(t *testing.T, path string) *dir.Lasting {
	t.Helper()
	s, err := dir.OpenLasting(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestLasting(t *testing.T) {
	objtest.Suite(t, func(t *testing.T) objproxy.Store { return openLasting(t, t.TempDir()) })
}

// TestDirectoryComesBack checks that a store goes on when its directory is back,
// that it never takes another directory for it, and makes nothing there.
func TestDirectoryComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := openLasting(t, path)
	put(t, s, "volume", "A")
	other := filepath.Join(t.TempDir(), "other")
	put(t, openLasting(t, other), "volume", "of another store")
	requests := func() []error {
		_, putErr := s.Put(t.Context(), "map/1", objproxy.Body{}, objproxy.Condition{})
		_, _, getErr := s.Get(t.Context(), "volume", make([]byte, 1), 0)
		_, _, noneErr := s.Get(t.Context(), "map/2", nil, 0)
		if errors.Is(noneErr, objproxy.ErrNotFound) {
			noneErr = nil
		}
		_, listErr := s.List(t.Context(), "", "", 10)
		return []error{putErr, getErr, noneErr, listErr, s.Delete(t.Context(), []string{"map/1"})}
	}
	must := func(when string, work bool) {
		t.Helper()
		for i, err := range requests() {
			if (err == nil) != work {
				t.Errorf("%s: request %d: %v", when, i, err)
			}
			for _, answer := range []error{objproxy.ErrNotFound, objproxy.ErrExists, objproxy.ErrDamaged, objproxy.ErrRange} {
				if errors.Is(err, answer) {
					t.Errorf("%s: request %d has an answer: %v", when, i, err)
				}
			}
		}
	}
	must("at first", true)
	away := path + "-away"
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		move(path, away)
		dir.BreakOpen(s) // as when the server of a network file system dies
		requests()       // the first ones find that out
		must("while it is away", false)
		if err := os.Mkdir(path, 0o700); err != nil { // where nothing is mounted
			t.Fatal(err)
		}
		must("while an empty directory is there", false)
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
			t.Errorf("%v was made in the empty directory, %v", entries, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		move(other, path)
		must("while another store is there", false)
		move(path, other)
		move(away, path)
		must("when it is back", true)
	}
	if _, _, err := s.Get(t.Context(), "volume", make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
	// Something else that goes wrong changes nothing.
	if _, err := s.Put(t.Context(), "", objproxy.Body{}, objproxy.Condition{}); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a bad name: %v", err)
	}
	must("after a bad name", true)
}

// TestReadOnlyDirectoryComesBack checks the same for who only reads.
func TestReadOnlyDirectoryComesBack(t *testing.T) {
	openReadOnly := func(path string) *dir.Lasting {
		t.Helper()
		s, err := dir.OpenLastingReadOnly(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	path := filepath.Join(t.TempDir(), "store")
	put(t, openLasting(t, path), "volume", "A")
	s, away := openReadOnly(path), path+"-away"
	get := func() error {
		_, _, err := s.Get(t.Context(), "volume", make([]byte, 1), 0)
		return err
	}
	must := func(when string, work bool) {
		t.Helper()
		for range 2 { // the first one may find something out
			if err := get(); (err == nil) != work || errors.Is(err, objproxy.ErrNotFound) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	must("at first", true)
	if _, err := s.Put(t.Context(), "map/1", objproxy.Body{}, objproxy.Condition{}); err == nil {
		t.Error("it was written")
	}
	must("after a put", true)
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(path, away)
	dir.BreakOpen(s)
	must("while it is away", false)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	must("while an empty directory is there", false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	move(away, path)
	must("when it is back", true)

	// A copy without an identity works for as long as it is there.
	if err := os.RemoveAll(filepath.Join(path, ".bs3")); err != nil {
		t.Fatal(err)
	}
	s = openReadOnly(path)
	must("without an identity", true)
	dir.BreakOpen(s)
	must("when it was away without an identity", false)
	if _, err := dir.OpenLastingReadOnly(away); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is missing: %v", err)
	}
}

// TestIdentity checks that a store keeps its identity, and has one of its own.
func TestIdentity(t *testing.T) {
	id := func(path string) string {
		t.Helper()
		if err := openLasting(t, path).Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(path, ".bs3", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	a, b := t.TempDir(), t.TempDir()
	first := id(a)
	if first == "" || id(a) != first || id(b) == first {
		t.Errorf("%q, then %q; another store has %q", first, id(a), id(b))
	}
}
