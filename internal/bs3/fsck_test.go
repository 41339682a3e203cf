package bs3_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

func fsck(t *testing.T, store objproxy.Store) *bs3.FsckReport {
	t.Helper()
	r, err := bs3.Fsck(t.Context(), store, bs3.FsckOptions{Data: true})
	if err != nil {
		t.Fatalf("fsck: %v", err)
	}
	return r
}

// clean checks that there is no damage.
func clean(t *testing.T, store objproxy.Store) *bs3.FsckReport {
	t.Helper()
	r := fsck(t, store)
	if err := r.Err(); err != nil {
		for _, f := range r.Findings {
			t.Log(f)
		}
		t.Fatal(err)
	}
	return r
}

// TestFsckCleanHistories: whatever a volume goes through, as long as the store
// keeps what it is given, there is nothing to be found.
func TestFsckCleanHistories(t *testing.T) {
	fromStart, gone, gaps := 0, 0, 0
	for seed := range 25 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 21))
		memory := objtest.NewMemory()
		o := gcOptions(t, memory)
		o.Durable = rnd.IntN(2) == 0
		o.SkipCheckpoint = rnd.IntN(10) == 0
		for range 6 {
			calls := objtest.NewRecorder(memory)
			c := newCable(calls)
			var stuck atomic.Bool // puts of some objects do not arrive
			c.holds = func(op objtest.Op) bool {
				k, err := key.Parse(op.Name)
				return stuck.Load() && err == nil && k%3 == 0 && op.Kind == objtest.Put
			}
			o.Store = c
			e := open(t, o)
			s := &shadow{make([]byte, e.Geometry().Size)}
			for range 1 + rnd.IntN(4) {
				s.some(t, e, rnd, rnd.IntN(200))
				switch rnd.IntN(5) {
				case 0:
					s.discard(t, e, 0, 1000)
				case 1:
					if o.SkipCheckpoint {
						break
					}
					if _, err := e.GC(t.Context()); err != nil {
						t.Fatal(err)
					}
				case 2:
					if o.SkipCheckpoint {
						break
					}
					if err := e.Checkpoint(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				clean(t, memory)
			}
			switch rnd.IntN(3) {
			case 0:
				shut(t, e)
			case 1:
				kill(t, e)
			default:
				stuck.Store(true)
				for range 8 {
					p := make([]byte, 8*blockSize)
					if e.TryWriteAt(p, int64(8*rnd.IntN(100)*blockSize)) {
						s.bytes = nil // it may be lost
					}
				}
				eventuallyIdle(t, calls)
				c.crash(t, e)
				if rnd.IntN(2) == 0 {
					if err := os.RemoveAll(o.StatePath); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := clean(t, memory)
			if r.FromStart {
				fromStart++
			} else {
				gone++
			}
			gaps += r.Warnings
		}
	}
	t.Logf("the whole log was there %d times, not %d times; %d objects behind gaps", fromStart, gone, gaps)
	if fromStart == 0 || gone == 0 || gaps == 0 {
		t.Fatal("the histories do not show all that they should")
	}
}

// eventuallyIdle waits until no more calls arrive.
func eventuallyIdle(t *testing.T, calls *objtest.Recorder) {
	t.Helper()
	for n := -1; n != len(calls.Calls()); time.Sleep(2 * time.Millisecond) {
		n = len(calls.Calls())
	}
}

// damaged is a volume with two checkpoints, packs, objects between and above
// them, some deleted, some dead.
type damaged struct {
	*objtest.Memory
	volume    *layout.Volume
	older     *layout.Checkpoint
	newer     *layout.Checkpoint
	last      key.Key
	unchecked *objtest.Memory
}

func get(t *testing.T, store objproxy.Store, name string) []byte {
	t.Helper()
	b := make([]byte, 1<<20)
	n, _, err := store.Get(t.Context(), name, b, -1)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func put(t *testing.T, store objproxy.Store, name string, b []byte) {
	t.Helper()
	if _, err := store.Put(t.Context(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		t.Fatal(err)
	}
}

func del(t *testing.T, store objproxy.Store, name string) {
	t.Helper()
	if err := store.Delete(t.Context(), []string{name}); err != nil {
		t.Fatal(err)
	}
}

func tailOf(t *testing.T, store objproxy.Store, k key.Key) *layout.Object {
	t.Helper()
	b := get(t, store, k.Name())
	o, err := layout.DecodeTail(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// putTail replaces the tail of an object by that of o, the data stay.
func putTail(t *testing.T, store objproxy.Store, k key.Key, o *layout.Object) {
	t.Helper()
	b := get(t, store, k.Name())
	data := b[:len(tailOf(t, store, k).CRCs)*blockSize]
	put(t, store, k.Name(), layout.AppendTail(slices.Clone(data[:len(o.CRCs)*blockSize]), o))
}

func checkpointOf(t *testing.T, store objproxy.Store, name string) *layout.Checkpoint {
	t.Helper()
	c, err := layout.DecodeCheckpoint(get(t, store, name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func record(t *testing.T, store objproxy.Store) *layout.Volume {
	t.Helper()
	v, err := layout.DecodeVolume(get(t, store, layout.VolumeName))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func putRecord(t *testing.T, store objproxy.Store, v *layout.Volume) {
	t.Helper()
	b, err := layout.EncodeVolume(v)
	if err != nil {
		t.Fatal(err)
	}
	put(t, store, layout.VolumeName, b)
}

// sample makes a volume whose writer has died with two checkpoints and a log
// above them; with gc, part of the log is given back.
func sample(t *testing.T, gc bool) *damaged {
	t.Helper()
	memory := objtest.NewMemory()
	o := gcOptions(t, memory)
	rnd := rand.New(rand.NewPCG(9, 9))
	e := open(t, o)
	s := newShadow(e)
	s.some(t, e, rnd, 60)
	if gc {
		if _, err := e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
	} else if err := e.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(t, e)
	e = open(t, o)
	s.some(t, e, rnd, 15)
	if err := e.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.some(t, e, rnd, 12)
	if err := e.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.some(t, e, rnd, 15)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(t, e)
	d := &damaged{Memory: memory, volume: record(t, memory)}
	d.older = checkpointOf(t, memory, d.volume.Checkpoints[0])
	d.newer = checkpointOf(t, memory, d.volume.Checkpoints[1])
	r := clean(t, memory)
	if r.FromStart == gc || r.LogEnd <= d.newer.Key+10 || d.newer.Key <= d.older.Key+5 {
		t.Fatalf("the sample is not what it should be: %+v", r)
	}
	d.last = r.LogEnd - 1
	return d
}

// want checks that the one kind of damage is found, under that name.
func want(t *testing.T, store objproxy.Store, kind bs3.FsckKind, name string) {
	t.Helper()
	r := fsck(t, store)
	found := false
	for _, f := range r.Findings {
		if f.Severity == bs3.FsckError {
			t.Log(f)
			found = found || f.Kind == kind && f.Name == name
		}
	}
	if !found {
		t.Fatalf("%s of %s was not found", kind, name)
	}
	if r.Err() == nil || !errors.Is(r.Err(), bs3.ErrDamage) {
		t.Fatalf("no error: %v", r.Err())
	}
}

func TestFsckFindsEveryByte(t *testing.T) {
	for _, gc := range []bool{true, false} {
		d := sample(t, gc)
		list, err := d.List(t.Context(), "", "", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		dead := make(map[string]bool)
		for _, o := range d.newer.Objects {
			if was, here := tableEntry(d.older, o.Key); here && was.Live == 0 && !o.Fence {
				dead[o.Key.Name()] = true
			}
		}
		for _, o := range list {
			if dead[o.Name] {
				continue
			}
			b := get(t, d, o.Name)
			k, err := key.Parse(o.Name)
			isObject, data := err == nil, 0
			if isObject {
				data = len(tailOf(t, d, k).CRCs) * blockSize
			}
			for _, at := range []int{data, (data + len(b)) / 2, len(b) - 100, len(b) - 1} {
				if at < 0 {
					continue
				}
				hurt := d.Clone()
				bad := slices.Clone(b)
				bad[at] ^= 0x10
				put(t, hurt, o.Name, bad)
				t.Logf("gc %t: byte %d of %s flipped", gc, at, o.Name)
				found(t, hurt, o.Name)
			}
			for _, n := range []int{0, 1, len(b) / 2, len(b) - 1} {
				hurt := d.Clone()
				put(t, hurt, o.Name, b[:n])
				t.Logf("gc %t: %s cut off after %d bytes", gc, o.Name, n)
				found(t, hurt, o.Name)
			}
			if isObject && k == d.last {
				continue // without it the log is shorter, as after a crash
			}
			hurt := d.Clone()
			del(t, hurt, o.Name)
			t.Logf("gc %t: %s deleted", gc, o.Name)
			if isObject && k > d.newer.Key {
				if r := clean(t, hurt); r.Warnings == 0 || r.LogEnd != k || k.Name() == "" {
					t.Fatalf("no warning of a gap: %+v", r)
				}
				continue
			}
			found(t, hurt, o.Name)
		}
	}
}

func tableEntry(c *layout.Checkpoint, k key.Key) (layout.ObjectInfo, bool) {
	for _, o := range c.Objects {
		if o.Key == k {
			return o, true
		}
	}
	return layout.ObjectInfo{}, false
}

// found checks that there are errors and that one of them names the object.
func found(t *testing.T, store objproxy.Store, name string) {
	t.Helper()
	r := fsck(t, store)
	for _, f := range r.Findings {
		if f.Severity == bs3.FsckError && (f.Name == name || strings.Contains(f.Text, name)) {
			return
		}
	}
	for _, f := range r.Findings {
		t.Log(f)
	}
	t.Fatal(fmt.Errorf("damage in %s was not found", name))
}
