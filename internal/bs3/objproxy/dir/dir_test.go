package dir_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/objtest"
)

// The test binary runs itself as a second process with this variable set to
// what the process should do, and the store's path as its argument.
const childEnv = "BS3_DIR_TEST_CHILD"

func TestMain(m *testing.M) {
	switch do := os.Getenv(childEnv); do {
	case "":
		os.Exit(m.Run())
	case "count":
		child(count)
	case "put":
		child(putForEver)
	default:
		fmt.Fprintln(os.Stderr, "unknown", childEnv, do)
		os.Exit(1)
	}
}

func child(do func(context.Context, objproxy.Store, io.Writer) error) {
	ctx := context.Background()
	s, err := dir.Open(ctx, os.Args[1])
	if err == nil {
		err = do(ctx, s, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childCommand(t *testing.T, do, path string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, path)
	cmd.Env = append(os.Environ(), childEnv+"="+do)
	cmd.Stderr = os.Stderr
	return cmd
}

// mustOpen returns a store that the caller must close.
func mustOpen(t *testing.T, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T, path string) *dir.Store {
	t.Helper()
	s := mustOpen(t, path)
	t.Cleanup(func() {
		for range 2 { // the second one has no effect
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func put(t *testing.T, s objproxy.Store, name, content string) objproxy.Version {
	t.Helper()
	v, err := s.Put(t.Context(), name, objproxy.Body{Data: []byte(content)}, objproxy.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestContract(t *testing.T) {
	objtest.Suite(t, func(t *testing.T) objproxy.Store { return open(t, t.TempDir()) })
	objtest.Damaged(t, func(t *testing.T) (objproxy.Store, func(string) string) {
		path := t.TempDir()
		return open(t, path), func(name string) string {
			return filepath.Join(path, name[:2], name[2:3], strings.ReplaceAll(name, "/", "%2F"))
		}
	})
}

const (
	countTo   = 200 // successes of each process
	claimable = 200 // names that both try to take
)

// count makes countTo conditional increments of one object, and tries to take
// every claimable name; it prints how many it got.
func count(ctx context.Context, s objproxy.Store, out io.Writer) error {
	for done := 0; done < countTo; {
		var p [8]byte
		cond := objproxy.IfAbsent()
		_, info, err := s.Get(ctx, "volume", p[:], 0)
		switch {
		case err == nil:
			cond = objproxy.IfVersion(info.Version)
		case !errors.Is(err, objproxy.ErrNotFound):
			return err
		}
		next := binary.LittleEndian.AppendUint64(nil, binary.LittleEndian.Uint64(p[:])+1)
		_, err = s.Put(ctx, "volume", objproxy.Body{Data: next}, cond)
		switch {
		case err == nil:
			done++
		case !errors.Is(err, objproxy.ErrExists):
			return err
		}
	}
	taken := 0
	for i := range claimable {
		_, err := s.Put(ctx, fmt.Sprintf("%08x/00000000", i), objproxy.Body{}, objproxy.IfAbsent())
		switch {
		case err == nil:
			taken++
		case !errors.Is(err, objproxy.ErrExists):
			return err
		}
	}
	_, err := fmt.Fprintln(out, taken)
	return err
}

// TestTwoProcesses checks that between two processes (and two stores in this
// one) no conditional put is lost and no name is taken twice.
func TestTwoProcesses(t *testing.T) {
	path := t.TempDir()
	var outs []io.Reader
	var wait []func() error
	for range 2 {
		cmd := childCommand(t, "count", path)
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wait = append(wait, func() error {
			err := cmd.Wait()
			outs = append(outs, strings.NewReader(out.String()))
			return err
		})
	}
	for range 2 {
		s := open(t, path)
		var out strings.Builder
		errc := make(chan error, 1)
		go func() { errc <- count(t.Context(), s, &out) }()
		wait = append(wait, func() error {
			err := <-errc
			outs = append(outs, strings.NewReader(out.String()))
			return err
		})
	}
	for _, w := range wait {
		if err := w(); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for _, out := range outs {
		var taken int
		if _, err := fmt.Fscan(out, &taken); err != nil {
			t.Fatal(err)
		}
		total += taken
	}
	if total != claimable {
		t.Errorf("%d names were taken %d times", claimable, total)
	}
	var p [8]byte
	if _, _, err := open(t, path).Get(t.Context(), "volume", p[:], 0); err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(p[:]); got != 4*countTo {
		t.Errorf("the count is %d after %d increments", got, 4*countTo)
	}
}

// putForEver puts and replaces objects, and prints the name of each that was
// acknowledged.
func putForEver(ctx context.Context, s objproxy.Store, out io.Writer) error {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%08x/00000000", i)
		body := objproxy.Body{Data: []byte(name), Tail: make([]byte, 1<<20)}
		if _, err := s.Put(ctx, name, body, objproxy.IfAbsent()); err != nil {
			return err
		}
		if _, err := s.Put(ctx, "volume", body, objproxy.Condition{}); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, name); err != nil {
			return err
		}
	}
}

// TestKilled checks that a process that is killed while it puts leaves whole
// objects, all that were acknowledged, and no temporary files after the next
// Open.
func TestKilled(t *testing.T) {
	path := t.TempDir()
	for round := range 5 {
		cmd := childCommand(t, "put", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		acknowledged := ""
		for range 3 + 2*round {
			if !lines.Scan() {
				t.Fatal("the child ended by itself")
			}
			acknowledged = lines.Text()
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child was not killed")
		}
		s := mustOpen(t, path)
		infos, err := s.List(t.Context(), "", "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			p := make([]byte, info.Size)
			if _, _, err := s.Get(t.Context(), info.Name, p, 0); err != nil {
				t.Error(err)
			}
			if info.Name != "volume" && string(p[:17]) != info.Name {
				t.Errorf("%s holds something else", info.Name)
			}
		}
		if _, _, err := s.Get(t.Context(), acknowledged, nil, 0); err != nil {
			t.Errorf("acknowledged before the kill: %v", err)
		}
		if temps := temporaries(t, path); len(temps) != 0 {
			t.Errorf("temporary files are left: %v", temps)
		}
		for _, info := range infos {
			if err := s.Delete(t.Context(), []string{info.Name}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func temporaries(t *testing.T, path string) []string {
	t.Helper()
	temps, err := filepath.Glob(filepath.Join(path, ".bs3", "tmp-*"))
	if err != nil {
		t.Fatal(err)
	}
	return temps
}

// TestLeftovers checks that Open leaves a temporary file alone whose process may
// be alive.
func TestLeftovers(t *testing.T) {
	path := t.TempDir()
	other := mustOpen(t, path)
	left := filepath.Join(path, ".bs3", "tmp-0123")
	if err := os.WriteFile(left, []byte("half an obj"), 0o600); err != nil {
		t.Fatal(err)
	}
	second := mustOpen(t, path)
	if _, err := os.Stat(left); err != nil {
		t.Errorf("removed although another process has the store open: %v", err)
	}
	infos, err := second.List(t.Context(), "", "", 10)
	if err != nil || len(infos) != 0 {
		t.Errorf("List returns %v, %v", infos, err)
	}
	if err := errors.Join(other.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not removed by the only user: %v", err)
	}
}

// TestVersionNeverReturns checks that equal bytes put again get another version.
func TestVersionNeverReturns(t *testing.T) {
	s := open(t, t.TempDir())
	a := put(t, s, "volume", "A")
	put(t, s, "volume", "B")
	if again := put(t, s, "volume", "A"); again == a {
		t.Errorf("version %s returned", a)
	}
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion(a)); !errors.Is(err, objproxy.ErrExists) {
		t.Errorf("put over the first version: want ErrExists, got %v", err)
	}
}

// TestLockHeld checks that, while another process holds the lock, reads and
// IfAbsent go on, and other requests wait until their ctx ends.
func TestLockHeld(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	v := put(t, s, "volume", "A")
	f, err := os.OpenFile(filepath.Join(path, ".bs3", "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Put(ctx, "volume", objproxy.Body{}, objproxy.IfVersion(v)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put under a held lock: want DeadlineExceeded, got %v", err)
	}
	p := make([]byte, 1)
	if _, info, err := s.Get(t.Context(), "volume", p, 0); err != nil || string(p) != "A" || info.Version != v {
		t.Errorf("get under a held lock: %q, %v", p, err)
	}
	if infos, err := s.List(t.Context(), "", "", 9); err != nil || len(infos) != 1 {
		t.Errorf("list under a held lock: %v, %v", infos, err)
	}
	if _, err := s.Put(t.Context(), "40000000/00000000", objproxy.Body{}, objproxy.IfAbsent()); err != nil {
		t.Errorf("put of a new object under a held lock: %v", err)
	}
	if temps := temporaries(t, path); len(temps) != 0 {
		t.Errorf("temporary files are left: %v", temps)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion(v)); err != nil {
		t.Error(err)
	}
}

// TestRootGone checks that objects do not count as not found after the store's
// directory vanished.
func TestRootGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	s := open(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the directory was made as %v, %v", info, err)
	}
	v := put(t, s, "volume", "A")
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	_, _, getErr := s.Get(t.Context(), "volume", make([]byte, 1), 0)
	_, putErr := s.Put(t.Context(), "new", objproxy.Body{}, objproxy.IfAbsent())
	_, replaceErr := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion(v))
	_, listErr := s.List(t.Context(), "", "", 1)
	for what, err := range map[string]error{
		"get": getErr, "put": putErr, "replace": replaceErr, "list": listErr,
		"delete": s.Delete(t.Context(), []string{"volume"}),
	} {
		if err == nil || errors.Is(err, objproxy.ErrNotFound) || errors.Is(err, objproxy.ErrExists) {
			t.Errorf("%s: %v", what, err)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the error does not name %s: %v", what, path, err)
		}
	}
}

// TestReadOnly checks that a store that is open for reading leaves no trace,
// whatever the directory is, and returns the same as another one.
func TestReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := mustOpen(t, path)
	put(t, s, "volume", "A")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(path, ".bs3", "tmp-0123")
	if err := os.WriteFile(left, []byte("half an obj"), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(filepath.Dir(path), "foreign")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	look := func(path string) *dir.Store {
		s, err := dir.OpenReadOnly(path)
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
	s = look(path)
	p := make([]byte, 1)
	if n, _, err := s.Get(t.Context(), "volume", p, 0); err != nil || n != 1 || p[0] != 'A' {
		t.Errorf("get: %q, %v", p[:n], err)
	}
	if infos, err := s.List(t.Context(), "", "", 10); err != nil || len(infos) != 1 {
		t.Errorf("List returns %v, %v", infos, err)
	}
	_, putErr := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.Condition{})
	for what, err := range map[string]error{"put": putErr, "delete": s.Delete(t.Context(), []string{"volume"})} {
		if err == nil || !strings.Contains(err.Error(), "reading only") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("a temporary file: %v", err)
	}
	if _, _, err := look(foreign).Get(t.Context(), "volume", p, 0); !errors.Is(err, objproxy.ErrNotFound) {
		t.Errorf("get from what is no store: %v", err)
	}
	if entries, err := os.ReadDir(foreign); err != nil || len(entries) != 0 {
		t.Errorf("something was made there: %v, %v", entries, err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "volume", p, 0); err == nil || errors.Is(err, objproxy.ErrNotFound) {
		t.Errorf("get from a directory that is gone: %v", err)
	}
	if _, err := dir.OpenReadOnly(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open a directory that is gone: %v", err)
	}
}

// TestDamage checks that the error for a file that is not a whole object names
// it.
func TestDamage(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	v := put(t, s, "volume", "some bytes")
	file := filepath.Join(path, "vo", "l", "volume")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	newer := slices.Clone(whole)
	newer[7]++
	for _, c := range []struct {
		content []byte
		says    string
	}{
		{nil, "is not an object of bs3"},
		{[]byte("hello"), "is not an object of bs3"},
		{newer, "has format version 2"},
		{whole[:32], "is damaged"},
		{whole[:len(whole)-1], "is damaged"},
		{append(slices.Clone(whole), 0), "is damaged"},
	} {
		if err := os.WriteFile(file, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := s.Get(t.Context(), "volume", make([]byte, 4), 0)
		if !errors.Is(err, objproxy.ErrDamaged) || !strings.Contains(err.Error(), c.says) || errors.Is(err, objproxy.ErrNotFound) {
			t.Errorf("get: want %q, got %v", c.says, err)
		}
		_, err = s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion(v))
		if err == nil || errors.Is(err, objproxy.ErrExists) {
			t.Errorf("a damaged object was replaced or judged: %v", err)
		}
	}
}

// TestNoFile checks that what is no file, in the place of an object, is damage:
// it is neither missing nor waited for.
func TestNoFile(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	v := put(t, s, "volume", "some bytes")
	file := filepath.Join(path, "vo", "l", "volume")
	for what, instead := range map[string]func() error{
		"a directory":       func() error { return os.Mkdir(file, 0o700) },
		"a named pipe":      func() error { return syscall.Mkfifo(file, 0o600) },
		"a link to nowhere": func() error { return os.Symlink("nowhere", file) },
		"a link to outside": func() error { return os.Symlink("/etc/passwd", file) },
	} {
		if err := errors.Join(os.RemoveAll(file), os.MkdirAll(filepath.Dir(file), 0o700), instead()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Get(t.Context(), "volume", make([]byte, 4), 0); !errors.Is(err, objproxy.ErrDamaged) {
			t.Errorf("get of %s: %v", what, err)
		}
		if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion(v)); !errors.Is(err, objproxy.ErrDamaged) {
			t.Errorf("put over %s: %v", what, err)
		}
		if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfAbsent()); !errors.Is(err, objproxy.ErrExists) {
			t.Errorf("put if absent where %s is: %v", what, err)
		}
		if err := s.Delete(t.Context(), []string{"volume"}); err != nil {
			t.Errorf("delete of %s: %v", what, err)
		}
	}
}

// TestForeignFiles checks that files that somebody else put into the directory
// are no objects.
func TestForeignFiles(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	put(t, s, "volume", "A")
	for _, d := range []string{"lost+found", "vo/x", "zz", "vo/l/dir"} {
		if err := os.MkdirAll(filepath.Join(path, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"README", "vo/l/README.txt", "vo/l/map%2F1-1", "vo/x/volume", "vo/l/vol%75me"} {
		if err := os.WriteFile(filepath.Join(path, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := s.List(t.Context(), "", "", 10)
	if err != nil || len(infos) != 1 || infos[0].Name != "volume" {
		t.Errorf("List returns %v, %v", infos, err)
	}
}

// TestDiskFull checks that a full disk is an error that says so and leaves
// nothing behind, and that the store goes on when there is space again.
func TestDiskFull(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mounting a small file system needs root: %v", err)
	}
	s, err := dir.Open(t.Context(), mount)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), syscall.Unmount(mount, 0)); err != nil {
			t.Error(err)
		}
	})
	put(t, s, "volume", "A")
	for range 3 {
		_, err = s.Put(t.Context(), "40000000/00000000", objproxy.Body{Data: make([]byte, 4<<20)}, objproxy.IfAbsent())
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, objproxy.ErrTransient) || !strings.Contains(err.Error(), mount) {
			t.Fatalf("want no space left on %s, got %v", mount, err)
		}
	}
	if temps := temporaries(t, mount); len(temps) != 0 {
		t.Errorf("temporary files are left: %v", temps)
	}
	if _, _, err := s.Get(t.Context(), "40000000/00000000", nil, 0); !errors.Is(err, objproxy.ErrNotFound) {
		t.Errorf("the refused object: %v", err)
	}
	if _, err := s.Put(t.Context(), "40000000/00000000", objproxy.Body{Data: make([]byte, 1<<20)}, objproxy.IfAbsent()); err != nil {
		t.Error(err)
	}
}

// directories lists the directories of a store, but for its own.
func directories(t *testing.T, path string) (dirs []string) {
	t.Helper()
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.Name() == ".bs3":
			return fs.SkipDir
		case e.IsDir() && p != path:
			dirs = append(dirs, strings.TrimPrefix(p, path+"/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// TestEmptyDirectories checks that a directory goes with its last object, and
// that the store goes on there.
func TestEmptyDirectories(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	for range 2 {
		for _, name := range []string{"40000000/00000000", "40000000/00000001", "40800000/00000000", "volume"} {
			put(t, s, name, "A")
		}
		for _, step := range []struct {
			remove []string
			left   string
		}{
			{[]string{"40000000/00000001"}, "[40 40/0 40/8 vo vo/l]"},
			{[]string{"40000000/00000000"}, "[40 40/8 vo vo/l]"},
			{[]string{"40000000/00000000"}, "[40 40/8 vo vo/l]"}, // again
			{[]string{"40800000/00000000", "volume", "never"}, "[]"},
		} {
			if err := s.Delete(t.Context(), step.remove); err != nil {
				t.Error(err)
			}
			if got := fmt.Sprint(directories(t, path)); got != step.left {
				t.Errorf("without %v there are %s, not %s", step.remove, got, step.left)
			}
		}
	}
	if list, err := s.List(t.Context(), "", "", 10); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := s.Put(t.Context(), "volume", objproxy.Body{}, objproxy.IfVersion("1")); !errors.Is(err, objproxy.ErrExists) {
		t.Errorf("replace what is gone: %v", err)
	}
}

// TestDirectoriesComeAndGo checks that objects are put, replaced, read and listed
// while their directories are removed and made again, by other users of the store
// as well.
func TestDirectoriesComeAndGo(t *testing.T) {
	path := t.TempDir()
	var wg sync.WaitGroup
	for user := range 2 {
		s := open(t, path)
		for w := range 4 {
			wg.Go(func() {
				name := fmt.Sprintf("40000000/%08x", 10*user+w) // all in one directory
				for i := range 100 {
					v, err := s.Put(t.Context(), name, objproxy.Body{Data: []byte{byte(i)}}, objproxy.IfAbsent())
					if err != nil {
						t.Errorf("put: %v", err)
						return
					}
					if _, err := s.Put(t.Context(), name, objproxy.Body{Data: []byte{byte(i)}}, objproxy.IfVersion(v)); err != nil {
						t.Errorf("replace: %v", err)
						return
					}
					var p [1]byte
					if _, _, err := s.Get(t.Context(), name, p[:], 0); err != nil || p[0] != byte(i) {
						t.Errorf("get: %v, %v", p, err)
						return
					}
					list, err := s.List(t.Context(), name, "", 10)
					if err != nil || len(list) != 1 {
						t.Errorf("list: %v, %v", list, err)
						return
					}
					if err := s.Delete(t.Context(), []string{name}); err != nil {
						t.Errorf("delete: %v", err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	if left := directories(t, path); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
