package bs3_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/objproxy/s3"
	"bs3/internal/bs3/volume"
)

var changes = flag.Int("changes", 150, "how many changes the tests of changed bytes make in each place")

// changed is what holds bytes that somebody changes behind the back of bs3:
// files, or the objects of a server.
type changed struct {
	names []string
	read  func(name string) []byte
	write func(name string, b []byte)
}

// change changes one of the things, in one of the ways that bytes go wrong, and
// returns what it did, the names of what it changed, and how to undo it. other
// holds those of another volume.
func (c changed) change(rnd *rand.Rand, other changed) (what string, names []string, undo func()) {
	name := c.names[rnd.IntN(len(c.names))]
	b := c.read(name)
	names, undo = []string{name}, func() { c.write(name, b) }
	at := rnd.IntN(len(b))
	switch rnd.IntN(6) {
	case 0, 1:
		bad := slices.Clone(b)
		bad[at] ^= byte(1 + rnd.IntN(255))
		c.write(name, bad)
		return fmt.Sprintf("byte %d of %s", at, name), names, undo
	case 2:
		c.write(name, b[:at])
		return fmt.Sprintf("%s cut after %d of %d bytes", name, at, len(b)), names, undo
	case 3:
		more := make([]byte, 1+rnd.IntN(1000))
		c.write(name, append(slices.Clone(b), more...))
		return fmt.Sprintf("%s extended by %d bytes", name, len(more)), names, undo
	case 4:
		second := c.names[rnd.IntN(len(c.names))]
		b2 := c.read(second)
		c.write(name, b2)
		c.write(second, b)
		if bytes.Equal(b, b2) {
			names = nil
		}
		return fmt.Sprintf("%s and %s exchanged", name, second), append(names, second), func() {
			c.write(name, b)
			c.write(second, b2)
		}
	default:
		if !slices.Contains(other.names, name) {
			name2 := other.names[rnd.IntN(len(other.names))]
			c.write(name, other.read(name2))
			return fmt.Sprintf("%s replaced by %s of another volume", name, name2), names, undo
		}
		c.write(name, other.read(name))
		return fmt.Sprintf("%s replaced by that of another volume", name), names, undo
	}
}

// shifted is a store whose answers are of the range one block further, or one
// before, for one object.
type shifted struct {
	objproxy.Store
	name atomic.Pointer[string]
	by   atomic.Int64
}

func (s *shifted) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if n := s.name.Load(); n != nil && *n == name && off >= 0 {
		off = max(0, off+s.by.Load())
	}
	return s.Store.Get(ctx, name, p, off)
}

// TestChangedStore: whatever happens to the bytes of objects, a read returns
// what was written or an error, and fsck names what was changed.
func TestChangedStore(t *testing.T) {
	t.Run("dir", func(t *testing.T) {
		testChangedStore(t, func(t *testing.T, name string) (objproxy.Store, changed) {
			root := filepath.Join(t.TempDir(), name)
			store, err := dir.Open(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close() })
			return store, filesBelow(t, root)
		})
	})
	t.Run("versitygw", func(t *testing.T) {
		endpoint, access, secret := objtest.StartVersitygw(t)
		testChangedStore(t, func(t *testing.T, name string) (objproxy.Store, changed) {
			store, err := s3.New(t.Context(), s3.Options{Endpoint: endpoint, Region: "us-east-1", Bucket: name, AccessKey: access, SecretKey: secret, Workers: 32})
			if err != nil {
				t.Fatal(err)
			}
			if err := store.EnsureBucket(t.Context()); err != nil {
				t.Fatal(err)
			}
			return store, changed{
				read: func(name string) []byte {
					b, _, err := volume.ReadAll(context.Background(), store, name)
					if err != nil {
						t.Fatal(err)
					}
					return b
				},
				write: func(name string, b []byte) {
					if _, err := store.Put(context.Background(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
						t.Fatal(err)
					}
				},
			}
		})
	})
}

// filesBelow are the files of a directory store, by the names of their objects.
func filesBelow(t *testing.T, root string) changed {
	paths := sync.OnceValue(func() map[string]string {
		found := make(map[string]string)
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || strings.Contains(path, "/.bs3/") {
				return err
			}
			name, err := url.PathUnescape(e.Name())
			found[name] = path
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	})
	return changed{
		read: func(name string) []byte {
			b, err := os.ReadFile(paths()[name])
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		write: func(name string, b []byte) {
			if err := os.WriteFile(paths()[name], b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// build fills a volume and returns it, at rest, with what it holds.
func build(t *testing.T, o bs3.Options, seed uint64) (*bs3.Engine, *shadow) {
	t.Helper()
	e := open(t, o)
	s, rnd := newShadow(e), rand.New(rand.NewPCG(seed, 1))
	for range 3 {
		for range 12 {
			s.write(t, e, rnd, rnd.IntN(56), 1+rnd.IntN(8))
		}
		if err := checkpointed(t, e); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 {
		s.write(t, e, rnd, rnd.IntN(56), 1+rnd.IntN(8))
	}
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e, s
}

func testChangedStore(t *testing.T, newStore func(t *testing.T, name string) (objproxy.Store, changed)) {
	quiet := func(store objproxy.Store) bs3.Options {
		o := options(t, objproxy.NewRetry(store, objproxy.RetryOptions{}))
		o.Size, o.Log, o.SkipCheckpoint = 64*blockSize, zerolog.Nop(), false
		return o
	}
	theirs, other := newStore(t, "other")
	e2, _ := build(t, quiet(theirs), 2)
	shut(t, e2)
	inner, ours := newStore(t, "volume")
	store := &shifted{Store: inner}
	e, want := build(t, quiet(store), 1)
	for _, x := range []struct {
		c     *changed
		store objproxy.Store
	}{{&other, theirs}, {&ours, inner}} {
		list, err := x.store.List(t.Context(), "", "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			if !strings.HasPrefix(i.Name, objproxy.ProbePrefix) {
				x.c.names = append(x.c.names, i.Name)
			}
		}
	}
	look := func() (failed int, wrong bool) {
		for block := range int64(64) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			p := bytes.Repeat([]byte{0xEE}, blockSize)
			err := e.ReadAt(ctx, p, block*blockSize)
			cancel()
			switch {
			case errors.Is(err, context.DeadlineExceeded):
				t.Fatalf("a read hangs: %v", err)
			case err != nil:
				failed++
			case !bytes.Equal(p, want.bytes[block*blockSize:][:blockSize]):
				wrong = true
			}
		}
		return failed, wrong
	}
	check := func(names []string) (named, clean bool) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		report, err := fsck.Check(ctx, inner, fsck.Options{Data: true})
		if err != nil {
			return strings.Contains(err.Error(), "volume record"), false
		}
		for _, f := range report.Findings {
			named = named || slices.Contains(names, f.Name)
		}
		return named, report.Err() == nil
	}
	content := make(map[string][]byte)
	same := func(names []string) bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			b, _, err := volume.ReadAll(t.Context(), inner, name)
			return err != nil || !bytes.Equal(b, content[name])
		})
	}
	for _, name := range ours.names {
		b, _, err := volume.ReadAll(t.Context(), inner, name)
		if err != nil {
			t.Fatal(err)
		}
		content[name] = b
	}
	if failed, wrong := look(); failed > 0 || wrong {
		t.Fatalf("before any change: %d reads failed, wrong: %t", failed, wrong)
	}
	if _, clean := check(nil); !clean {
		t.Fatal("before any change: fsck finds damage")
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	failing, found, silent := 0, 0, 0
	for range *changes {
		var what string
		var names []string
		var undo func()
		if rnd.IntN(8) == 0 {
			name := ours.names[rnd.IntN(len(ours.names))]
			what = "another range of " + name
			store.by.Store(int64(1-2*rnd.IntN(2)) * int64(layout.Stride(blockSize)))
			store.name.Store(&name)
			undo = func() { store.name.Store(nil) }
		} else {
			what, names, undo = ours.change(rnd, other)
		}
		failed, wrong := look()
		if wrong {
			t.Errorf("%s: a read returned other bytes than were written", what)
		}
		if failed > 0 {
			failing++
		}
		if names != nil {
			named, clean := check(names)
			switch {
			case named, what == "volume replaced by that of another volume" && !clean: // all else is of another volume then
				found++
			case same(names): // the version of a file in a directory
			case failed > 0 || !clean || !dataOf(names):
				t.Errorf("%s: fsck does not name it; %d reads failed", what, failed)
			default:
				silent++ // data that nothing needs
			}
		}
		undo()
		if t.Failed() {
			break
		}
	}
	t.Logf("%d changes: %d made reads fail, fsck named %d, %d were in data that nothing needs", *changes, failing, found, silent)
	if failing == 0 || found == 0 {
		t.Error("nothing was noticed")
	}
	if failed, wrong := look(); failed > 0 || wrong {
		t.Fatalf("after all was undone: %d reads failed, wrong: %t", failed, wrong)
	}
	shut(t, e)
}

// dataOf reports whether all names are of objects of the log.
func dataOf(names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { _, err := key.Parse(n); return err != nil })
}

// onFile is a file that is changed.
func onFile(t *testing.T, path string) changed {
	return changed{
		names: []string{path},
		read: func(string) []byte {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		write: func(_ string, b []byte) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// scramble changes a file: as change does, or by exchanging two of its parts.
func scramble(t *testing.T, rnd *rand.Rand, file, other changed) (what string) {
	t.Helper()
	name := file.names[0]
	b := file.read(name)
	const part = 128
	from, to := rnd.IntN(len(b)/part)*part, rnd.IntN(len(b)/part)*part
	switch rnd.IntN(3) {
	case 0:
		x := slices.Clone(b[from:][:part])
		copy(b[from:][:part], b[to:][:part])
		copy(b[to:][:part], x)
		file.write(name, b)
		return fmt.Sprintf("%d bytes at %d and %d exchanged", part, from, to)
	case 1:
		foreign := other.read(other.names[0])
		if from+part <= len(foreign) {
			copy(b[from:], foreign[from:][:part])
		}
		file.write(name, b)
		return fmt.Sprintf("%d bytes at %d are another volume's", part, from)
	}
	what, _, _ = file.change(rnd, changed{names: other.names, read: other.read})
	return what
}

// TestChangedDiskCache: whatever happens to the file of the disk cache, every
// read returns what was written: the store has it.
func TestChangedDiskCache(t *testing.T) {
	setup := func(seed uint64) (bs3.Options, *shadow, changed) {
		o := options(t, objtest.NewMemory())
		head := layout.CacheHeader{BlockSize: blockSize}
		o.Size, o.Log, o.CachePath = 64*blockSize, zerolog.Nop(), t.TempDir()
		o.DiskCache = layout.CacheHeaderSize + 2*head.SetSize()
		e, want := build(t, o, seed)
		want.compare(t, e)
		shut(t, e)
		return o, want, onFile(t, filepath.Join(o.CachePath, "cache"))
	}
	_, _, other := setup(2)
	o, want, file := setup(1)
	rnd, damaged := rand.New(rand.NewPCG(7, 8)), uint64(0)
	whole := file.read("")
	for range *changes {
		file.write("", whole)
		what := scramble(t, rnd, file, other)
		e := open(t, o)
		for range 2 { // also what took the place of what was damaged
			p := bytes.Repeat([]byte{0xEE}, len(want.bytes))
			if err := e.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, want.bytes) {
				t.Fatalf("%s: %v, right bytes: %t", what, err, bytes.Equal(p, want.bytes))
			}
		}
		damaged += e.Status().DiskCache.Damaged
		shut(t, e)
	}
	if t.Logf("%d blocks were found damaged", damaged); damaged == 0 {
		t.Error("no damage was noticed")
	}
}

// TestRuleVAGAIN: a read that is answered wrongly once returns what was written;
// one that is answered wrongly again fails, and names the block.
func TestRuleVAGAIN(t *testing.T) {
	var lies atomic.Int64 // answers to come that are wrong
	o := options(t, &lying{objtest.NewMemory(), &lies})
	o.Log = zerolog.Nop()
	e := open(t, o)
	want := newShadow(e)
	want.write(t, e, rand.New(rand.NewPCG(1, 1)), 0, 8)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := func() ([]byte, error) {
		p := make([]byte, blockSize)
		return p, e.ReadAt(t.Context(), p, 3*blockSize)
	}
	lies.Store(1)
	if p, err := read(); err != nil || !bytes.Equal(p, want.bytes[3*blockSize:][:blockSize]) || e.Status().WrongAnswers != 1 {
		t.Errorf("after one wrong answer: %v, %d counted", err, e.Status().WrongAnswers)
	}
	lies.Store(2)
	if _, err := read(); !errors.Is(err, layout.ErrDamaged) || !strings.Contains(err.Error(), "block 3 of the volume") || e.Status().WrongAnswers != 3 {
		t.Errorf("after two: %v, %d counted", err, e.Status().WrongAnswers)
	}
	if _, err := read(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	shut(t, e)
}

// lying is a store that flips a bit in the next answers to gets of a range.
type lying struct {
	objproxy.Store
	left *atomic.Int64
}

func (l *lying) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := l.Store.Get(ctx, name, p, off)
	if err == nil && off >= 0 && l.left.Load() > 0 {
		l.left.Add(-1)
		p[n/2] ^= 8
	}
	return n, info, err
}

// leftBehind are writes that a daemon acknowledged, one flush each, and that are
// only in its files, since the store did not answer any more.
type leftBehind struct {
	history
	o      bs3.Options
	memory *objtest.Memory
}

func leaveBehind(t *testing.T, writes int, change func(*bs3.Options)) *leftBehind {
	t.Helper()
	l := &leftBehind{memory: objtest.NewMemory(), o: options(t, nil)}
	l.o.Log, l.o.Durable = zerolog.Nop(), false
	change(&l.o)
	c := newCable(l.memory)
	l.o.Store = c
	e := open(t, l.o)
	c.cut.Store(true)
	for i := range writes {
		l.add(t, e, i%20)
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	kill(t, e)
	return l
}

// reopen returns how many of the writes are there after an open; refused says
// that it was refused.
func (l *leftBehind) reopen(t *testing.T, what string) (n int, refused bool) {
	t.Helper()
	l.o.Store = l.memory.Clone()
	e, err := bs3.Open(t.Context(), l.o)
	switch {
	case errors.Is(err, volume.ErrRefused):
		return 0, true
	case err != nil:
		t.Fatalf("%s: %v", what, err)
	}
	n = l.prefix(t, e)
	kill(t, e)
	return n, false
}

// TestChangedChunkMemory: whatever happens to chunk memory while the machine
// runs, an open finds all that was acknowledged, or is refused.
func TestChangedChunkMemory(t *testing.T) {
	const writes = 30
	other := leaveBehind(t, writes, func(*bs3.Options) {})
	l := leaveBehind(t, writes, func(*bs3.Options) {})
	theirs := onFile(t, filepath.Join(other.o.StatePath, "memory"))
	file := onFile(t, filepath.Join(l.o.StatePath, "memory"))
	whole, refusals := file.read(""), 0
	rnd := rand.New(rand.NewPCG(7, 9))
	for range *changes {
		if err := errors.Join(os.RemoveAll(l.o.StatePath), os.Mkdir(l.o.StatePath, 0o700)); err != nil {
			t.Fatal(err)
		}
		file.write("", whole)
		what := scramble(t, rnd, file, theirs)
		n, refused := l.reopen(t, what)
		if refused {
			refusals++
		} else if n != writes {
			t.Fatalf("%s: %d of %d acknowledged writes are there, and nobody was told", what, n, writes)
		}
	}
	if t.Logf("%d opens were refused", refusals); refusals == 0 {
		t.Error("nothing was noticed")
	}
}

// TestChangedLocalLog: whatever happens to the local log, an open after the loss
// of the machine finds all that was flushed, or is refused. Only the last flush
// cannot be told from one that the machine did not finish.
func TestChangedLocalLog(t *testing.T) {
	const writes = 30
	withLog := func(o *bs3.Options) { o.CachePath, o.LogSize = t.TempDir(), 64*layout.LogAlign }
	other := leaveBehind(t, writes, withLog)
	l := leaveBehind(t, writes, withLog)
	theirs := onFile(t, filepath.Join(other.o.CachePath, "log"))
	file := onFile(t, filepath.Join(l.o.CachePath, "log"))
	whole, refusals := file.read(""), 0
	// Each flush has written a page: a frame of one block.
	lastFrom, lastTo := layout.LogHeaderSize+(writes-1)*layout.LogAlign, layout.LogHeaderSize+writes*layout.LogAlign
	l.o.Host.Boot = bootB
	rnd := rand.New(rand.NewPCG(7, 10))
	for range *changes {
		for _, d := range []string{l.o.StatePath, l.o.CachePath} {
			if err := errors.Join(os.RemoveAll(d), os.Mkdir(d, 0o700)); err != nil {
				t.Fatal(err)
			}
		}
		file.write("", whole)
		what := scramble(t, rnd, file, theirs)
		now := file.read("")
		last := len(now) >= lastTo && !bytes.Equal(now[lastFrom:lastTo], whole[lastFrom:lastTo])
		n, refused := l.reopen(t, what)
		switch {
		case refused:
			refusals++
		case n == writes || n == writes-1 && last:
		default:
			t.Fatalf("%s: %d of %d flushed writes are there, and nobody was told", what, n, writes)
		}
	}
	if t.Logf("%d opens were refused", refusals); refusals == 0 {
		t.Error("nothing was noticed")
	}
}
