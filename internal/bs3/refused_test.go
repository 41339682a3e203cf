package bs3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// TestNoRoomForMemory: where chunk memory does not fit, no volume is made, and
// none is claimed.
func TestNoRoomForMemory(t *testing.T) {
	root := simRoot(t)
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks == 0 {
		t.Skip("needs a tmpfs that says how large it is: on a disk the space would be taken for a moment")
	}
	o := tinyOptions(t)
	o.StatePath = filepath.Join(root, "state")
	large := o
	large.ChunkSize = 16 << 20
	large.Memory = int64(st.Blocks)*st.Bsize + 2*int64(large.ChunkSize) // more than all of it
	if large.slots() > layout.MaxSlots {
		t.Skipf("a tmpfs of %d GiB", large.Memory>>30)
	}
	store := o.Store.(*objtest.Memory)
	fails := func() {
		t.Helper()
		list, err := store.List(t.Context(), "", "", 100)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), large)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "write.memory") || errors.Is(err, volume.ErrRefused) {
			t.Fatal("opened: ", err)
		}
		t.Log(err)
		now, err := store.List(t.Context(), "", "", 100)
		if err != nil || !slices.Equal(now, list) {
			t.Errorf("the store was changed: %v, was %v (%v)", now, list, err)
		}
	}
	names := func() (names []string) {
		files, err := os.ReadDir(o.StatePath)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			names = append(names, f.Name())
		}
		return names
	}
	fails()
	if got := names(); !slices.Equal(got, []string{"lock"}) {
		t.Errorf("a refused open has left %v", got)
	}
	small := large
	small.Memory = 2 * int64(large.ChunkSize)
	e, err := Open(t.Context(), small)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := names()
	fails()
	if got := names(); !slices.Equal(got, before) {
		t.Errorf("a refused open has left %v, there was %v", got, before)
	}
}

// TestRefusedInTheRace: an open that has lost the race for a claim, and is refused
// then, leaves no intent.
func TestRefusedInTheRace(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		if err := w.open("a").close(); err != nil {
			t.Fatal(err)
		}
		b := w.start("b", func(o *Options) { o.Takeover = false })
		claim := b.hold(isVolumePut)
		b.launch()
		claim.wait(t)
		w.open("a")
		claim.letGo()
		err := b.opened()
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "was not released") {
			t.Fatal("opened: ", err)
		}
		if _, err := os.Stat(filepath.Join(w.root, "b", "intents")); !errors.Is(err, os.ErrNotExist) {
			t.Error("a refused open has left an intent: ", err)
		}
	})
}

// TestFencedInTheRace: an open whose claim was made, and the answer lost, is not
// refused when another writer has taken over meanwhile: it has changed something.
func TestFencedInTheRace(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		if err := w.open("a").close(); err != nil {
			t.Fatal(err)
		}
		b := w.start("b", func(o *Options) { o.Takeover = false })
		made, release := make(chan struct{}), make(chan struct{})
		lost := false
		b.way.After = func(_ context.Context, op objtest.Op, err error) error {
			if !isVolumePut(op) || err != nil || lost {
				return err
			}
			lost = true
			close(made)
			<-release
			return errSimTransient
		}
		b.launch()
		<-made
		w.open("c")
		close(release)
		err := b.opened()
		if !errors.Is(err, volume.ErrFenced) || errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "was not released") {
			t.Fatal("opened, or refused: ", err)
		}
		t.Log(err)
	})
}

// TestNotRefusedAfterTheClaim: what damages the volume behind an open that has
// claimed it is no refusal: the claim has changed something. The next open is
// refused, and changes nothing.
func TestNotRefusedAfterTheClaim(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.open("a").kill()
		b := w.start("a")
		claimed := b.holdAnswer(isVolumePut)
		b.launch()
		claimed.wait(t)
		if _, err := w.memory.Put(t.Context(), key.Key(1).Name(), objproxy.Body{Data: []byte("no object")}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
		claimed.letGo()
		err := b.opened()
		if err == nil || errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), key.Key(1).Name()) {
			t.Fatal("refused, or opened: ", err)
		}
		t.Log(err)
		before := w.versions()
		if err := w.start("a").launch().opened(); !errors.Is(err, volume.ErrRefused) {
			t.Fatal("opened: ", err)
		}
		if w.versions() != before {
			t.Error("a refused open has changed the store")
		}
	})
}

// TestRecordChangesAllTheTime: a store that shows another version of the record
// each time is not asked without a pause.
func TestRecordChangesAllTheTime(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.open("a").kill()
		var asked atomic.Int64
		b := w.start("b")
		b.opts.Store = &otherVersions{b.opts.Store, &asked}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Open(ctx, b.opts); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("opened: ", err)
		}
		if n := asked.Load(); n < 10 || n > 100 {
			t.Errorf("it was asked %d times in a minute", n)
		}
	})
}

// otherVersions is a store whose record has another version with each answer.
type otherVersions struct {
	objproxy.Store
	asked *atomic.Int64
}

func (s *otherVersions) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := s.Store.Get(ctx, name, p, off)
	if name == layout.VolumeName {
		info.Version += objproxy.Version(fmt.Sprint(s.asked.Add(1)))
	}
	return n, info, err
}

// TestRefusedAsItWas: a refusal counts only for a record that is still there,
// however often it was judged: what a living writer has removed meanwhile would be
// taken for damage.
func TestRefusedAsItWas(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		a.kill()
		var asked atomic.Int64
		b := w.start("b")
		b.opts.Store = &fastWriter{b.opts.Store, &otherVersions{b.opts.Store, &asked}}
		b.launch()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		b.holds(1, 0)
		if n := asked.Load(); n < fastFor {
			t.Errorf("the record was read %d times", n)
		}
	})
}

// fastFor is how many answers of a fastWriter show another record each.
const fastFor = 2*volume.MostRestarts + 10

// fastWriter is a store in which a writer replaces the record, and all packs, faster
// than they can be read, for a while.
type fastWriter struct {
	objproxy.Store
	moving *otherVersions
}

func (s *fastWriter) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	switch moves := s.moving.asked.Load() < fastFor; {
	case moves && strings.HasPrefix(name, layout.MapPrefix):
		return 0, objproxy.Info{}, objproxy.ErrNotFound
	case moves:
		return s.moving.Get(ctx, name, p, off)
	}
	return s.Store.Get(ctx, name, p, off)
}

// TestRecordLostWithMemory: where the record alone is lost, and chunk memory holds
// what is not stored, nobody is told to move that away.
func TestRecordLostWithMemory(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.behind("")
		if err := w.memory.Delete(t.Context(), []string{layout.VolumeName}); err != nil {
			t.Fatal(err)
		}
		err := w.start("a").launch().opened()
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "--rebuild-record") || strings.Contains(err.Error(), "move the file away") {
			t.Fatal("opened: ", err)
		}
	})
}

// TestOneMapAtATime: an open that has to begin again with a newer checkpoint gives
// up the map that it has made: together they may be more than there is memory.
func TestOneMapAtATime(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a, b := w.open("a"), w.start("b")
		o := &opening{opts: b.opts, log: b.opts.Log, store: b.opts.Store}
		read := func() {
			t.Helper()
			v, _, err := volume.ReadRecord(t.Context(), w.memory)
			if err == nil {
				err = o.readLog(t.Context(), v)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		read()
		for i := range uint64(3) {
			a.write(1+i, 0)
			a.checkpoint()
		}
		packs := 0
		b.way.Before = func(_ context.Context, op objtest.Op) error {
			if strings.HasPrefix(op.Name, layout.MapPrefix) {
				packs++
				if o.found != nil {
					t.Error("there is a map already")
				}
			}
			return nil
		}
		read()
		if packs == 0 {
			t.Error("no leaf was loaded")
		}
	})
}

// TestLogIsReadOnce: what was read of the log to judge it is not read again when
// the volume was claimed.
func TestLogIsReadOnce(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(20) {
			a.write(1+i, i)
			a.flush()
		}
		a.kill()
		b := w.start("b")
		var mu sync.Mutex
		claims := 0
		gets := make(map[key.Key]int)
		b.way.After = func(_ context.Context, op objtest.Op, err error) error {
			mu.Lock()
			defer mu.Unlock()
			k, notObject := key.Parse(op.Name)
			switch {
			case isVolumePut(op):
				claims++
			case op.Kind == objtest.Get && notObject == nil && err == nil:
				gets[k]++
				if claims > 0 {
					t.Errorf("object %d is read behind the claim", k)
				}
			}
			return err
		}
		b.launch()
		if err := b.opened(); err != nil {
			t.Fatal(err)
		}
		for k := range key.Key(21) {
			if gets[k] != 1 {
				t.Errorf("object %d was read %d times", k, gets[k])
			}
		}
	})
}
