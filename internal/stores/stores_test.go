package stores

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/config"
)

// Package config lists the same names as the table of stores.
func TestEveryStoreCanBeOpened(t *testing.T) {
	names := config.Stores()
	for name := range kinds() {
		if !slices.Contains(names, name) {
			t.Errorf("the configuration does not know the store %s", name)
		}
	}
	for _, name := range names {
		c := config.Default()
		c.Store, c.Dir.Path = name, t.TempDir()
		s, err := OpenToServe(t.Context(), c, zerolog.Nop())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if other, err := OpenToChange(t.Context(), c, 0); err != nil || other.Where != s.Where {
			t.Errorf("%s: to change it: %v", name, err)
		} else if err := other.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		if s.Where == "" || s.Uploaders < 2 || s.Downloaders < 2 {
			t.Errorf("%s: %+v", name, s)
		}
		if _, _, waiting := s.Waiting(); waiting {
			t.Errorf("%s: somebody waits for it", name)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
		}
	}
}

// Serving makes a directory, with the first request; asking does not.
func TestOpenDirectory(t *testing.T) {
	c := config.Default()
	c.Store, c.Dir.Path = config.StoreDir, filepath.Join(t.TempDir(), "store")
	if _, err := OpenToAsk(t.Context(), c, 0); !errors.Is(err, volume.ErrNoVolume) || errors.Is(err, volume.ErrStore) {
		t.Errorf("a missing directory: %v", err)
	}
	s, err := OpenToServe(t.Context(), c, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a request: %v", err)
	}
	if _, err := s.Put(t.Context(), "x", objproxy.Body{}, objproxy.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = OpenToAsk(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(c.Dir.Path+"2", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Dir.Path += "2"
	if _, err := OpenToAsk(t.Context(), c, 0); !errors.Is(err, volume.ErrStore) {
		t.Errorf("a file: %v", err)
	}
}

// Who reads makes no directory, and nothing in it.
func TestOpenToRead(t *testing.T) {
	c := config.Default()
	c.Store, c.Dir.Path = config.StoreDir, filepath.Join(t.TempDir(), "store")
	if _, err := OpenToRead(t.Context(), c, zerolog.Nop()); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("a missing directory: %v", err)
	}
	if err := os.Mkdir(c.Dir.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := OpenToRead(t.Context(), c, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "x", nil, 0); !errors.Is(err, objproxy.ErrNotFound) {
		t.Error(err)
	}
	if _, _, waiting := s.Waiting(); waiting || s.Downloaders < 2 {
		t.Errorf("%+v", s)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(c.Dir.Path); err != nil || len(names) != 0 {
		t.Errorf("it made %v, %v", names, err)
	}
}

// Who changes a volume needs one that is there.
func TestOpenToChange(t *testing.T) {
	c := config.Default()
	c.Store, c.Dir.Path = config.StoreDir, filepath.Join(t.TempDir(), "store")
	if _, err := OpenToChange(t.Context(), c, 0); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("a missing directory: %v", err)
	}
	if _, err := os.Stat(c.Dir.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
	if err := os.Mkdir(c.Dir.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := OpenToChange(t.Context(), c, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "x", objproxy.Body{Data: []byte("y")}, objproxy.IfAbsent()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Dir.Path = file
	if _, err := OpenToChange(t.Context(), c, 0); !errors.Is(err, volume.ErrStore) {
		t.Errorf("a file: %v", err)
	}
}

// A file in the place of the directory is refused, not waited for.
func TestDirectoryIsAFile(t *testing.T) {
	c := config.Default()
	c.Store, c.Dir.Path = config.StoreDir, filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(c.Dir.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var refused *config.Error
	for _, open := range []func(context.Context, config.Config, zerolog.Logger) (*Store, error){OpenToServe, OpenToRead} {
		if _, err := open(t.Context(), c, zerolog.Nop()); !errors.As(err, &refused) {
			t.Error(err)
		}
	}
}
