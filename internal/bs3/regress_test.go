package bs3_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// A device of host A outlived its daemon; host B wrote the volume meanwhile; an
// open on A claims and dies; the next open on A says the device may go on.
func TestWholeAfterFailedOpen(t *testing.T) {
	memory := objtest.NewMemory()
	c := newCable(memory)
	a, b := options(t, c), options(t, memory)
	b.Host, b.Takeover = bs3.Host{ID: "machine-b", Name: "b", Boot: bootB}, true
	e := open(t, a)
	var h history
	h.add(t, e, 1)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // its slot is cleared
	c.crash(t, e)

	e = open(t, b) // takes over, changes block 1
	h.add(t, e, 1)
	shut(t, e)

	c = newCable(memory) // A: claims, dies before it serves
	c.holds = func(op objtest.Op) bool { return isObject(op) && op.Kind == objtest.Put }
	a.Store = c
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := bs3.Open(ctx, a); err == nil {
		t.Fatal("open succeeded")
	}
	a.Store = memory
	e = open(t, a)
	if e.Whole() {
		t.Error("Whole is true: the device that outlived the daemon before host B's would go on, with its stale page cache")
	}
	shut(t, e)
}

// Chunk memory is lost, and the next daemon cannot remove the device that
// outlived the last one, or dies before it does: the one after it would find the
// volume whole, and that device goes on as if nothing were lost.
func TestNotWholeUntilDevicesAreGone(t *testing.T) {
	memory := objtest.NewMemory()
	c := newCable(memory)
	o := options(t, c)
	e := open(t, o)
	new(history).add(t, e, 1)
	c.crash(t, e)
	if err := os.RemoveAll(o.StatePath); err != nil {
		t.Fatal(err)
	}

	o.Store = memory
	held, asked := errors.New("the device is held"), 0
	o.NotWhole = func(_ context.Context, volume string) error {
		if asked++; volume != e.UUID().String() {
			t.Errorf("asked for volume %s, want %s", volume, e.UUID())
		}
		return held
	}
	for n := range 3 {
		if _, err := bs3.Open(t.Context(), o); !errors.Is(err, held) || asked != n+1 {
			t.Fatalf("try %d, asked %d times: %v", n, asked, err)
		}
	}
	held = nil
	shut(t, open(t, o))
	if asked != 4 {
		t.Errorf("asked %d times, want 4", asked)
	}
	e = open(t, o)
	if !e.Whole() || asked != 4 {
		t.Errorf("after a clean stop: whole %v, asked %d times", e.Whole(), asked)
	}
	shut(t, e)
}

// state.path on a real disk, power fails soon after a restart: a page of the
// writer before, cleared but not written back, lies beside pages of the last.
func TestPowerLossAfterRestart(t *testing.T) {
	memory := objtest.NewMemory()
	c := newCable(memory)
	o := options(t, c)
	e := open(t, o)
	c.cut.Store(true)
	var h history
	for i := range 20 { // three slots
		h.add(t, e, i)
	}
	kill(t, e)
	path := filepath.Join(o.StatePath, "memory")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c = newCable(memory)
	o.Store = c
	e = open(t, o) // replays all of it, stores it, clears the slots
	if n := h.prefix(t, e); n != 20 {
		t.Fatal(n)
	}
	c.cut.Store(true)
	h.add(t, e, 30) // one slot
	kill(t, e)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The disk has the old page of each slot that was only cleared since.
	size := int(layout.SlotOffsets(8, blockSize).Size)
	for at := layout.MemoryHeaderSize; at < len(after); at += size {
		if n, _ := layout.SlotCount(after[at:]); n == 0 {
			copy(after[at:at+size], before[at:at+size])
		}
	}
	if err := os.WriteFile(path, after, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Store, o.Host.Boot = memory, bootB
	e, err = bs3.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("everything needed is there, yet: %v", err)
	}
	if n := h.prefix(t, e); n < 20 {
		t.Errorf("%d writes", n)
	}
	shut(t, e)
}

// An open refused because chunk memory is of another volume has made a new
// volume in the wrong store.
func TestRefusedOpenMakesVolume(t *testing.T) {
	right, wrong := objtest.NewMemory(), objtest.NewMemory()
	c := newCable(right)
	o := options(t, c)
	e := open(t, o)
	c.cut.Store(true)
	var h history
	h.add(t, e, 1)
	kill(t, e)
	o.Store = wrong
	_, err := bs3.Open(t.Context(), o)
	t.Log(err)
	if got := objects(t, wrong); got != "[]" {
		t.Errorf("nothing was to be changed, but there is now %s", got)
	}
}

// Whoever asked to know the volume and does not want it finds nothing changed,
// whether there was a volume or not.
func TestIdentified(t *testing.T) {
	memory := objtest.NewMemory()
	o := options(t, memory)
	unwanted := errors.New("its number is in use")
	refuse := func(want string) {
		t.Helper()
		before := objects(t, memory)
		o.Identified = func(_ context.Context, volume string) error {
			if want != "" && volume != want {
				t.Errorf("told of volume %s, want %s", volume, want)
			}
			return unwanted
		}
		for range 3 {
			if _, err := bs3.Open(t.Context(), o); !errors.Is(err, unwanted) {
				t.Errorf("it ends with %v", err)
			}
		}
		if after := objects(t, memory); after != before {
			t.Errorf("there was %s, and now there is %s", before, after)
		}
	}
	refuse("")
	var told string
	o.Identified = func(_ context.Context, volume string) error {
		told = volume
		return nil
	}
	e := open(t, o)
	if told != e.UUID().String() {
		t.Errorf("told of volume %s, and opened %s", told, e.UUID())
	}
	epoch := e.Epoch()
	shut(t, e)
	refuse(told)
	o.Identified = nil
	e = open(t, o)
	if e.Epoch() != epoch+1 || !e.Whole() {
		t.Errorf("epoch %d after %d, whole: %v", e.Epoch(), epoch, e.Whole())
	}
	shut(t, e)
}

// A read waits for a prefetch of the same block, which waits behind all reads.
// Also: a prefetch that overlaps with one read in flight is dropped whole.
func TestPrefetchDropped(t *testing.T) {
	memory := objtest.NewMemory()
	o := options(t, nil)
	o.Size, o.ChunkSize, o.Memory = 8192*blockSize, 4096*blockSize, 4*4096*blockSize
	o.Store = memory
	e := open(t, o)
	if err := e.WriteAt(t.Context(), make([]byte, 8192*blockSize), 0); err != nil {
		t.Fatal(err)
	}
	shut(t, e)

	var asked atomic.Int64
	hold := make(chan struct{})
	var held atomic.Bool
	o.Store = &objtest.Hooks{Inner: memory, Before: func(ctx context.Context, op objtest.Op) error {
		if _, err := key.Parse(op.Name); err == nil && op.Kind == objtest.Get && op.Off >= 0 {
			asked.Add(op.Bytes)
			if stride := int64(layout.Stride(blockSize)); op.Off == 2*64*stride && op.Bytes == 64*stride && held.CompareAndSwap(false, true) {
				<-hold
			}
		}
		return nil
	}}
	o.ReadCache, o.Readahead = 16<<20, 1<<20
	e = open(t, o)
	read := func(i int) {
		if err := e.ReadAt(t.Context(), make([]byte, 64*blockSize), int64(i*64*blockSize)); err != nil {
			t.Error(err)
		}
	}
	go read(2) // the third of a sequential stream at depth 2 is a bit ahead
	for !held.Load() {
		time.Sleep(time.Millisecond)
	}
	read(0)
	read(1) // recognised: a window of 1 MiB from block 128 is due
	time.Sleep(50 * time.Millisecond)
	close(hold)
	time.Sleep(100 * time.Millisecond)
	if n := asked.Load(); n < 1<<20 {
		t.Errorf("%d bytes were asked for: the window of 1 MiB was dropped", n)
	}
	shut(t, e)
}

// A store that took conditions at open and refuses one later is waited for.
func TestUploadWaitsForConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Int32
		hooks := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(_ context.Context, op objtest.Op) error {
			if k, err := key.Parse(op.Name); err == nil && op.Kind == objtest.Put && k == 1 && refused.Add(1) <= 3 {
				return errors.ErrUnsupported
			}
			return nil
		}}
		e := open(t, options(t, objproxy.NewRetry(hooks, objproxy.RetryOptions{})))
		s := newShadow(e)
		s.write(t, e, rand.New(rand.NewPCG(1, 1)), 1, 2)
		if err := e.Flush(t.Context()); err != nil || refused.Load() != 4 {
			t.Errorf("a flush: %v after %d tries", err, refused.Load())
		}
		s.compare(t, e)
		shut(t, e)
	})
}

// A store that denies every condition, whatever it shows, is asked now and
// then, and comes back by itself.
func TestDeniedConditionsAreNotHurried(t *testing.T) {
	for what, match := range map[string]func(op objtest.Op) bool{
		"objects":       isObject,
		"volume record": func(op objtest.Op) bool { return op.Name == layout.VolumeName },
	} {
		synctest.Test(t, func(t *testing.T) {
			var denies atomic.Bool
			var puts atomic.Int32
			hooks := &objtest.Hooks{Inner: objtest.NewMemory(), Before: func(_ context.Context, op objtest.Op) error {
				if !denies.Load() || op.Kind != objtest.Put || !match(op) {
					return nil
				}
				if puts.Add(1) > 100 {
					time.Sleep(time.Second) // or no time would ever pass
				}
				return objproxy.ErrExists
			}}
			o := options(t, hooks)
			o.OpenFor = 0
			shut(t, open(t, o))
			forMinute := func() {
				denies.Store(true)
				time.AfterFunc(time.Minute, func() { denies.Store(false) })
			}
			forMinute()
			e := open(t, o)
			s := newShadow(e)
			forMinute()
			s.write(t, e, rand.New(rand.NewPCG(1, 1)), 1, 2)
			if err := errors.Join(e.Flush(t.Context()), e.Checkpoint(t.Context())); err != nil {
				t.Error(err)
			}
			s.compare(t, e)
			shut(t, e)
			if n := puts.Load(); n < 8 || n > 40 {
				t.Errorf("%s: %d puts in two minutes", what, n)
			}
		})
	}
}
