package bs3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
	"bs3/internal/device"
)

var (
	_ device.Volume    = (*bs3.SnapshotVolume)(nil)
	_ device.Fast      = (*bs3.SnapshotVolume)(nil)
	_ device.Allocator = (*bs3.SnapshotVolume)(nil)
)

// readOnly returns a way to store on which every change is an error of the test.
func readOnly(t *testing.T, store objproxy.Store) objproxy.Store {
	return &objtest.Hooks{Inner: store, Before: func(_ context.Context, op objtest.Op) error {
		if op.Kind == objtest.Put || op.Kind == objtest.Delete {
			t.Errorf("a reader of a snapshot does %v", op)
		}
		return nil
	}}
}

// openSnapshot opens a snapshot with nothing but a way to read the store.
func openSnapshot(t *testing.T, store objproxy.Store, name string, change ...func(*bs3.Options)) *bs3.SnapshotVolume {
	t.Helper()
	o := bs3.Options{Store: readOnly(t, store), Log: zerolog.Nop()}
	for _, c := range change {
		c(&o)
	}
	v, err := bs3.OpenSnapshot(t.Context(), o, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return v
}

// cached gives a reader a cache in memory, and reads ahead.
func cached(o *bs3.Options) {
	o.ReadCache, o.Readahead, o.Downloaders, o.WholeObjects = 1<<20, 256<<10, 4, true
}

// differs reads all of v, in pieces of n blocks, and says what is not as in want.
func differs(ctx context.Context, v *bs3.SnapshotVolume, want []byte, n int) error {
	for off := 0; off < len(want); off += n * blockSize {
		p := bytes.Repeat([]byte{0xEE}, min(n*blockSize, len(want)-off))
		if !v.TryReadAt(p, int64(off)) {
			if err := v.ReadAt(ctx, p, int64(off)); err != nil {
				return err
			}
		}
		if !bytes.Equal(p, want[off:off+len(p)]) {
			return fmt.Errorf("%d bytes at %d are not those of the snapshot", len(p), off)
		}
	}
	return nil
}

// replace overwrites all of e, and has everything deleted that may be.
func replace(t *testing.T, e *bs3.Engine, s *shadow, rnd *rand.Rand) {
	t.Helper()
	for block := 0; block < 1000; block += 20 {
		s.write(t, e, rnd, block, 20)
	}
	for range layout.MaxCheckpoints + 1 {
		s.write(t, e, rnd, rnd.IntN(1000), 1)
		if err := checkpointed(t, e); err != nil {
			t.Fatal(err)
		}
		if _, err := e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A snapshot reads as the volume was, whoever made it, while its writer overwrites
// everything and deletes what is dead.
func TestSnapshotReadsAsItWas(t *testing.T) {
	directory, err := dir.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = directory.Close() }()
	for name, store := range map[string]objproxy.Store{"memory": objtest.NewMemory(), "directory": directory} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			e := open(t, options(t, store))
			defer shut(t, e)
			s := newShadow(e)
			was := make(map[string][]byte)
			snapshot := func(name string, make func(name string) error) {
				t.Helper()
				if err := make(name); err != nil {
					t.Fatal(err)
				}
				was[name] = bytes.Clone(s.bytes)
			}
			byWriter := func(name string) error {
				_, err := e.Snapshot(t.Context(), name)
				return err
			}
			byOther := func(name string) error {
				if err := e.Flush(t.Context()); err != nil {
					return err
				}
				_, err := checkpoint.SnapshotOutside(t.Context(), store, zerolog.Nop(), name)
				return err
			}
			snapshot("empty", byWriter)
			s.some(t, e, rnd, 100)
			snapshot("first", byWriter)
			s.some(t, e, rnd, 50)
			snapshot("second", byOther)
			early := openSnapshot(t, store, "first")
			aside := openSnapshot(t, store, "second", cached)
			first, second := was["first"], was["second"]
			var reading sync.WaitGroup
			reading.Go(func() {
				for n := range 5 {
					if err := errors.Join(differs(t.Context(), early, first, 10+n), differs(t.Context(), aside, second, 10+n)); err != nil {
						t.Error(err)
					}
				}
			})
			for range 3 {
				replace(t, e, s, rnd)
			}
			reading.Wait()
			for name, held := range was {
				for _, how := range [][]func(*bs3.Options){nil, {cached}} {
					v := openSnapshot(t, store, name, how...)
					if g := v.Geometry(); g.Size != e.Geometry().Size || g.BlockSize != blockSize || !g.ReadOnly || v.UUID() != e.UUID() || v.Snapshot().Name != name {
						t.Errorf("snapshot %s: %+v", name, g)
					}
					for _, n := range []int{7, 1000} {
						if err := differs(t.Context(), v, held, n); err != nil {
							t.Errorf("snapshot %s: %v", name, err)
						}
					}
				}
			}
			s.compare(t, e)
			holes, err := openSnapshot(t, store, "empty").Allocation(t.Context(), 0, 1000*blockSize)
			if err != nil || len(holes) != 1 || !holes[0].Hole {
				t.Errorf("the empty volume has %+v, %v", holes, err)
			}
		})
	}
}

func TestSnapshotCannotBeWritten(t *testing.T) {
	store := objtest.NewMemory()
	e := open(t, options(t, store))
	defer shut(t, e)
	if _, err := e.Snapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	v, ctx, p := openSnapshot(t, store, "s"), t.Context(), make([]byte, blockSize)
	for name, err := range map[string]error{"write": v.WriteAt(ctx, p, 0), "discard": v.Discard(ctx, 0, blockSize), "zero": v.WriteZeroes(ctx, 0, blockSize)} {
		if err == nil {
			t.Errorf("%s succeeds", name)
		}
	}
	if v.TryWriteAt(p, 0) {
		t.Error("a fast write succeeds")
	}
	if err := v.Flush(ctx); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{1, -blockSize, 1000 * blockSize} {
		if _, err := v.Allocation(ctx, off, blockSize); err == nil || v.ReadAt(ctx, p, off) == nil || v.TryReadAt(p, off) {
			t.Errorf("a block is read at %d", off)
		}
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if err := v.ReadAt(ctx, p, 0); !errors.Is(err, device.ErrStopped) {
		t.Errorf("a read after the end: %v", err)
	}
}

// What is gone with a snapshot is an error that says so, and never zeros.
func TestSnapshotRemovedUnderItsReader(t *testing.T) {
	for name, how := range map[string][]func(*bs3.Options){"no cache": nil, "cache": {cached}} {
		t.Run(name, func(t *testing.T) {
			store := objtest.NewMemory()
			rnd := rand.New(rand.NewPCG(3, 4))
			e := open(t, options(t, store))
			defer shut(t, e)
			s := newShadow(e)
			replace(t, e, s, rnd)
			if _, err := e.Snapshot(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			v := openSnapshot(t, store, "s", append(how, func(o *bs3.Options) { o.Log = zerolog.New(zerolog.SyncWriter(&said)) })...)
			was := bytes.Clone(s.bytes)
			p := make([]byte, blockSize)
			if err := v.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, was[:blockSize]) {
				t.Fatalf("before it is removed: %v", err)
			}
			if err := e.RemoveSnapshot(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				replace(t, e, s, rnd)
			}
			missed := 0
			for block := range 1000 {
				err := v.ReadAt(t.Context(), p, int64(block*blockSize))
				switch {
				case err == nil && !bytes.Equal(p, was[block*blockSize:][:blockSize]):
					t.Fatalf("block %d reads as something else", block)
				case err == nil:
				case !errors.Is(err, checkpoint.ErrNoSnapshot) || !strings.Contains(err.Error(), "snapshot s was removed"):
					t.Fatalf("block %d: %v", block, err)
				default:
					missed++
				}
			}
			if missed < 900 {
				t.Errorf("only %d blocks are gone", missed)
			}
			if err := v.Close(); err != nil { // and nothing more is said
				t.Error(err)
			}
			if n := strings.Count(said.String(), "snapshot s was removed: reads fail"); n != 1 || strings.Contains(said.String(), "that the map needs") {
				t.Errorf("the log says %d times that it was removed: %.300s", n, said.String())
			}
		})
	}
}

// Data that is gone although the snapshot is there is an error that says so; so is
// data that is gone when the record is.
func TestSnapshotWithoutItsData(t *testing.T) {
	store := objtest.NewMemory()
	rnd := rand.New(rand.NewPCG(5, 6))
	e := open(t, options(t, store))
	s := newShadow(e)
	s.write(t, e, rnd, 0, 1)
	if _, err := e.Snapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	shut(t, e)
	v := openSnapshot(t, store, "s")
	p := make([]byte, blockSize)
	for _, step := range []struct{ remove, want string }{
		{key.Key(1).Name(), "snapshot s was not removed, but its data is gone"},
		{layout.VolumeName, "snapshot s was removed, or its data is gone"},
	} {
		if err := store.Delete(t.Context(), []string{step.remove}); err != nil {
			t.Fatal(err)
		}
		if err := v.ReadAt(t.Context(), p, 0); !errors.Is(err, objproxy.ErrNotFound) || !strings.Contains(err.Error(), step.want) {
			t.Errorf("without %s: %v", step.remove, err)
		}
	}
}

// A bit that has changed in the store is an error, also where it is read ahead.
func TestSnapshotIsVerified(t *testing.T) {
	store := objtest.NewMemory()
	rnd := rand.New(rand.NewPCG(7, 8))
	e := open(t, options(t, store))
	s := newShadow(e)
	for block := 0; block < 1000; block += 8 {
		s.write(t, e, rnd, block, 8)
	}
	if _, err := e.Snapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	shut(t, e)
	name := key.Key(1).Name()
	b, _, err := volume.ReadAll(t.Context(), store, name)
	if err != nil {
		t.Fatal(err)
	}
	b[3*layout.Stride(blockSize)] ^= 4
	if _, err := store.Put(t.Context(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		t.Fatal(err)
	}
	for _, how := range [][]func(*bs3.Options){nil, {cached}} {
		v := openSnapshot(t, store, "s", how...)
		p, wrong := make([]byte, blockSize), 0
		for block := range 1000 {
			err := v.ReadAt(t.Context(), p, int64(block*blockSize))
			switch {
			case errors.Is(err, layout.ErrDamaged):
				wrong++
			case err != nil || !bytes.Equal(p, s.bytes[block*blockSize:][:blockSize]):
				t.Fatalf("block %d: %v", block, err)
			}
		}
		if wrong != 1 {
			t.Errorf("%d blocks are damaged", wrong)
		}
	}
}

func TestSnapshotIsNotOpened(t *testing.T) {
	store := objtest.NewMemory()
	tryOpen := func(name string) error {
		_, err := bs3.OpenSnapshot(t.Context(), bs3.Options{Store: readOnly(t, store), Log: zerolog.Nop()}, name)
		return err
	}
	if err := tryOpen("s"); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("no volume: %v", err)
	}
	e := open(t, options(t, store))
	defer shut(t, e)
	missing := func(name, want string) {
		t.Helper()
		if err := tryOpen(name); !errors.Is(err, volume.ErrRefused) || !errors.Is(err, checkpoint.ErrNoSnapshot) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	missing("s", `"s"; the volume has no snapshots`)
	for i := range 12 {
		if _, err := e.Snapshot(t.Context(), fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	missing("s", "the volume has s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 2 more")
	missing("", "s9 and 2 more")
	if err := e.WriteAt(t.Context(), make([]byte, blockSize), 0); err != nil {
		t.Fatal(err)
	}
	s, err := e.Snapshot(t.Context(), "broken")
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := volume.ReadAll(t.Context(), store, s.Directory)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if _, err := store.Put(t.Context(), s.Directory, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen("broken"); !errors.Is(err, volume.ErrRefused) || errors.Is(err, checkpoint.ErrNoSnapshot) || !strings.Contains(err.Error(), "broken does not verify") {
		t.Errorf("a directory that is damaged: %v", err)
	}
}

// A snapshot that is removed while it is opened is not there; a store that does not
// answer is given up.
func TestSnapshotOpenEnds(t *testing.T) {
	store := objtest.NewMemory()
	e := open(t, options(t, store))
	defer shut(t, e)
	if err := e.WriteAt(t.Context(), make([]byte, blockSize), 0); err != nil {
		t.Fatal(err)
	}
	s, err := e.Snapshot(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	silent := &objtest.Hooks{Inner: store, Before: func(ctx context.Context, _ objtest.Op) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	o := bs3.Options{Store: silent, Log: zerolog.Nop(), OpenFor: 1}
	if _, err := bs3.OpenSnapshot(t.Context(), o, "s"); !errors.Is(err, volume.ErrStore) {
		t.Errorf("a silent store: %v", err)
	}
	o = bs3.Options{Log: zerolog.Nop(), Store: &objtest.Hooks{Inner: store, Before: func(_ context.Context, op objtest.Op) error {
		if op.Name == s.Directory {
			if err := e.RemoveSnapshot(t.Context(), "s"); err != nil && !errors.Is(err, checkpoint.ErrNoSnapshot) {
				t.Error(err)
			}
			return objproxy.ErrNotFound
		}
		return nil
	}}}
	if _, err := bs3.OpenSnapshot(t.Context(), o, "s"); !errors.Is(err, checkpoint.ErrNoSnapshot) || !strings.Contains(err.Error(), "while it was opened") {
		t.Errorf("removed while it is opened: %v", err)
	}
}
