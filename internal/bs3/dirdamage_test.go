package bs3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/volume"
)

// inDirectory returns a directory store as a daemon uses it, and the function
// that returns the file of an object.
func inDirectory(t *testing.T) (objproxy.Store, func(name string) string) {
	t.Helper()
	path := t.TempDir()
	s, err := dir.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return objproxy.NewRetry(s, objproxy.RetryOptions{}), func(name string) string {
		return filepath.Join(path, name[:2], name[2:3], strings.ReplaceAll(name, "/", "%2F"))
	}
}

// cuts are ways to damage a file of a directory store that only its size shows.
var cuts = map[string]func([]byte) []byte{
	"cut":      func(b []byte) []byte { return b[:len(b)-1] },
	"emptied":  func([]byte) []byte { return nil },
	"extended": func(b []byte) []byte { return append(b, 0) },
	"foreign":  func([]byte) []byte { return []byte("somebody else's") },
}

func change(t *testing.T, file string, f func([]byte) []byte) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = f(b)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// soon bounds what must not wait for a damaged file to mend itself.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// A read of an object whose file was cut fails, others go on, and neither
// collection nor anything else touches the file.
func TestCutObjectInDirectory(t *testing.T) {
	for name, damage := range cuts {
		t.Run(name, func(t *testing.T) {
			store, file := inDirectory(t)
			o := gcOptions(t, store)
			e := open(t, o)
			for block := range 32 { // of four objects
				if err := e.WriteAt(t.Context(), bytes.Repeat([]byte{byte(block + 1)}, blockSize), int64(block*blockSize)); err != nil {
					t.Fatal(err)
				}
			}
			shut(t, e)
			path := file(key.Key(2).Name()) // blocks 8 to 15
			hurt := change(t, path, damage)
			e = open(t, o)
			for block := range 32 {
				p := make([]byte, blockSize)
				err := e.ReadAt(soon(t), p, int64(block*blockSize))
				switch damaged := block >= 8 && block < 16; {
				case damaged && (!errors.Is(err, objproxy.ErrDamaged) || !strings.Contains(err.Error(), fmt.Sprintf("block %d of the volume", block)) || !strings.Contains(err.Error(), "fsck --data")):
					t.Errorf("block %d: %v", block, err)
				case !damaged && (err != nil || p[0] != byte(block+1)):
					t.Errorf("block %d holds %d: %v", block, p[0], err)
				}
			}
			for range 6 { // most of it is garbage now
				if err := errors.Join(e.WriteAt(t.Context(), make([]byte, 7*blockSize), 8*blockSize), e.Flush(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
			report, err := e.GC(soon(t))
			if err != nil || report.FailedReads != 1 {
				t.Errorf("a collection: %+v, %v", report, err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, hurt) {
				t.Errorf("the file has %d bytes, had %d: %v", len(b), len(hurt), err)
			}
			shut(t, e)
		})
	}
}

// With the newest checkpoint cut, an open goes on from the one before it.
func TestCutCheckpointInDirectory(t *testing.T) {
	for name, damage := range cuts {
		t.Run(name, func(t *testing.T) {
			store, file := inDirectory(t)
			o := options(t, store)
			rnd := rand.New(rand.NewPCG(1, 1))
			e := open(t, o)
			s := newShadow(e)
			for range 2 {
				s.some(t, e, rnd, 30)
				if err := checkpointed(t, e); err != nil {
					t.Fatal(err)
				}
			}
			s.some(t, e, rnd, 30)
			shut(t, e)
			names := record(t, store).Checkpoints
			change(t, file(names[len(names)-1]), damage)
			e, err := bs3.Open(soon(t), o)
			if err != nil {
				t.Fatal(err)
			}
			s.compare(t, e)
			shut(t, e)
			clean(t, store)
		})
	}
}

// What an open cannot do without is refused by name, not waited for.
func TestCutLogInDirectory(t *testing.T) {
	for name, damage := range cuts {
		t.Run(name, func(t *testing.T) {
			store, file := inDirectory(t)
			o := options(t, store)
			e := open(t, o)
			s := newShadow(e)
			s.some(t, e, rand.New(rand.NewPCG(1, 1)), 30)
			kill(t, e)
			k := key.Key(1)
			for _, name := range []string{k.Name(), "volume"} {
				change(t, file(name), damage)
				_, err := bs3.Open(soon(t), o)
				if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), name) {
					t.Errorf("with a damaged %s: %v", name, err)
				}
			}
		})
	}
}

// fsck names every file that was cut, and goes on to the next.
func TestFsckFindsCutFiles(t *testing.T) {
	for name, damage := range cuts {
		t.Run(name, func(t *testing.T) {
			store, file := inDirectory(t)
			o := options(t, store)
			e := open(t, o)
			s := newShadow(e)
			rnd := rand.New(rand.NewPCG(1, 1))
			for range 2 {
				s.some(t, e, rnd, 30)
				if err := checkpointed(t, e); err != nil {
					t.Fatal(err)
				}
			}
			shut(t, e)
			clean(t, store)
			harmed := append(record(t, store).Checkpoints, key.Key(1).Name(), key.Key(3).Name())
			for _, name := range harmed {
				change(t, file(name), damage)
			}
			report, err := fsck.Check(soon(t), store, fsck.Options{Data: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range harmed {
				found := false
				for _, f := range report.Findings {
					found = found || f.Severity == fsck.SeverityError && f.Name == name
				}
				if !found {
					t.Errorf("%s is not among %v", name, report.Findings)
				}
			}
		})
	}
}
