package bs3_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// cable is a store that can be cut off: then no call comes through, and each
// waits as long as its caller does.
type cable struct {
	objtest.Hooks
	cut   atomic.Bool
	holds func(objtest.Op) bool // calls to be held until their ctx ends; nil = none
}

func newCable(inner objproxy.Store) *cable {
	c := &cable{}
	c.Hooks = objtest.Hooks{Inner: inner, Before: func(ctx context.Context, op objtest.Op) error {
		if c.cut.Load() || c.holds != nil && c.holds(op) {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	}}
	return c
}

// crash kills e: nothing of it reaches the store any more.
func (c *cable) crash(t *testing.T, e *bs3.Engine) {
	t.Helper()
	c.cut.Store(true)
	kill(t, e)
}

func isObject(op objtest.Op) bool {
	_, err := key.Parse(op.Name)
	return err == nil
}

// history is a list of stamped writes: write i puts its number into its block.
type history struct{ blocks []int }

func (h *history) add(t *testing.T, e *bs3.Engine, block int) {
	t.Helper()
	h.blocks = append(h.blocks, block)
	p := make([]byte, blockSize)
	binary.LittleEndian.PutUint64(p, uint64(len(h.blocks)))
	if err := e.WriteAt(t.Context(), p, int64(block*blockSize)); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// prefix finds how much of the history the volume holds, and checks that it is
// exactly that.
func (h *history) prefix(t *testing.T, e *bs3.Engine) int {
	t.Helper()
	p := make([]byte, e.Geometry().Size)
	if err := e.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatalf("read: %v", err)
	}
	stamp := func(block int) int { return int(binary.LittleEndian.Uint64(p[block*blockSize:])) }
	n := 0
	for b := range len(p) / blockSize {
		n = max(n, stamp(b))
	}
	if n > len(h.blocks) {
		t.Fatalf("a block holds write %d of %d", n, len(h.blocks))
	}
	want := make(map[int]int)
	for i, b := range h.blocks[:n] {
		want[b] = i + 1
	}
	for b := range len(p) / blockSize {
		if stamp(b) != want[b] {
			t.Fatalf("block %d holds write %d; of a prefix of %d of %d writes it would be %d", b, stamp(b), n, len(h.blocks), want[b])
		}
		if rest := p[b*blockSize+8:][:blockSize-8]; !bytes.Equal(rest, make([]byte, len(rest))) {
			t.Fatalf("block %d has other bytes than were written", b)
		}
	}
	return n
}

// TestAcknowledgedSurvivesDaemon: with a store that takes nothing, everything
// acknowledged comes back from chunk memory, also when an open in between dies
// before or while it replays.
func TestAcknowledgedSurvivesDaemon(t *testing.T) {
	replayed := 0
	for seed := range 40 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 7))
		memory := objtest.NewMemory()
		o := options(t, memory)
		o.Durable = rnd.IntN(2) == 0
		var h history
		for range 4 {
			c := newCable(memory)
			o.Store = c
			e := open(t, o)
			if got := h.prefix(t, e); got != len(h.blocks) {
				t.Fatalf("seed %d: %d of %d acknowledged writes are there", seed, got, len(h.blocks))
			}
			if e.Whole() != (len(h.blocks) > 0 || e.Epoch() > 1) {
				t.Fatalf("seed %d, epoch %d: whole is %v", seed, e.Epoch(), e.Whole())
			}
			for range rnd.IntN(15) { // with those below no more than chunk memory holds
				h.add(t, e, rnd.IntN(40))
			}
			if err := e.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			flushed := len(h.blocks)
			c.cut.Store(true) // from here on chunk memory alone has it
			for range rnd.IntN(25) {
				h.add(t, e, rnd.IntN(40))
			}
			replayed += len(h.blocks) - flushed
			kill(t, e)

			for range rnd.IntN(3) { // opens that die on the way
				c := newCable(memory)
				after, calls := int32(1+rnd.IntN(12)), atomic.Int32{}
				c.holds = func(objtest.Op) bool { return calls.Add(1) > after }
				o.Store = c
				o.OpenFor = 30 * time.Millisecond
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
				if e, err := bs3.Open(ctx, o); err == nil {
					c.crash(t, e)
				}
				cancel()
				o.OpenFor = 0
			}
		}
	}
	if replayed == 0 {
		t.Fatal("nothing had to be replayed")
	}
}

// TestHostLossLeavesPrefix: without the state, a prefix of the history is
// there, at least up to the last durable flush.
func TestHostLossLeavesPrefix(t *testing.T) {
	for seed := range 40 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 9))
		memory := objtest.NewMemory()
		o := options(t, memory)
		var h history
		for range 3 {
			c := newCable(memory)
			var lost key.Key
			c.holds = func(op objtest.Op) bool { // one upload in the middle never ends
				k, err := key.Parse(op.Name)
				return err == nil && op.Kind == objtest.Put && lost > 0 && k == lost
			}
			o.Store = c
			e := open(t, o)
			for range rnd.IntN(50) {
				h.add(t, e, rnd.IntN(40))
			}
			if err := e.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			flushed := len(h.blocks)
			for range rnd.IntN(4 * 8) {
				h.add(t, e, rnd.IntN(40))
			}
			c.crash(t, e)
			if err := os.RemoveAll(o.StatePath); err != nil {
				t.Fatal(err)
			}
			o.Store = memory
			e = open(t, o)
			n := h.prefix(t, e)
			if n < flushed {
				t.Fatalf("seed %d: %d writes are there, %d were flushed", seed, n, flushed)
			}
			h.blocks = h.blocks[:n]
			shut(t, e)
		}
	}
}

// release marks the volume as closed cleanly, as an administrator would who
// knows that its writer is dead.
func release(t *testing.T, store objproxy.Store) {
	t.Helper()
	p := make([]byte, 1<<16)
	n, info, err := store.Get(t.Context(), layout.VolumeName, p, -1)
	if err != nil {
		t.Fatal(err)
	}
	v, err := layout.DecodeVolume(p[:n])
	if err != nil {
		t.Fatal(err)
	}
	v.Writer.Released = true
	v.Generation++
	b, err := layout.EncodeVolume(v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfVersion(info.Version)); err != nil {
		t.Fatal(err)
	}
}

func TestOtherHostIsRefusedUntilReleased(t *testing.T) {
	memory := objtest.NewMemory()
	a, b := options(t, newCable(memory)), options(t, memory)
	b.Host = bs3.Host{ID: "machine-b", Name: "b", Boot: bootB}
	e := open(t, a)
	var h history
	h.add(t, e, 1)
	a.Store.(*cable).crash(t, e)

	_, err := bs3.Open(t.Context(), b)
	if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "machine-a") {
		t.Fatalf("open on another host: %v", err)
	}
	release(t, memory)
	e = open(t, b)
	if n := h.prefix(t, e); n != 0 {
		t.Fatalf("%d writes are there", n)
	}
	shut(t, e)

	// Back on the first host: its chunk memory is of a writer that was replaced.
	a.Store = memory
	e = open(t, a)
	if n := h.prefix(t, e); n != 0 {
		t.Fatal("chunk memory of a replaced writer was replayed")
	}
	if e.Whole() {
		t.Fatal("a device that outlived the replaced writer might go on")
	}
	shut(t, e)
	if _, err := os.Stat(filepath.Join(a.StatePath, "memory.aside-1")); err != nil {
		t.Fatalf("chunk memory that is not ours was not kept: %v", err)
	}
}

// TestTornMemory: after a reboot what follows damage is dropped; without one,
// damage is refused by name.
func TestTornMemory(t *testing.T) {
	for _, rebooted := range []bool{false, true} {
		t.Run(fmt.Sprintf("rebooted=%v", rebooted), func(t *testing.T) {
			memory := objtest.NewMemory()
			c := newCable(memory)
			o := options(t, c)
			e := open(t, o)
			c.cut.Store(true)
			var h history
			for i := range 20 {
				h.add(t, e, i)
			}
			kill(t, e)

			path := filepath.Join(o.StatePath, "memory")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var twelfth [8]byte
			binary.LittleEndian.PutUint64(twelfth[:], 12)
			block, at, off := append(twelfth[:], make([]byte, blockSize-8)...), 0, layout.SlotOffsets(8, blockSize)
			for slot := int64(layout.MemoryHeaderSize); slot < int64(len(b)); slot += off.Size {
				for i := range 8 {
					if from := int(slot+off.Data) + i*layout.Stride(blockSize); bytes.HasPrefix(b[from:], block) {
						at = from
					}
				}
			}
			if at == 0 {
				t.Fatal("the twelfth write is not in chunk memory")
			}
			b[at+100] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			o.Store = memory
			if !rebooted {
				before := objects(t, memory)
				_, err := bs3.Open(t.Context(), o)
				if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), path) {
					t.Fatalf("open: %v", err)
				}
				t.Log(err)
				if objects(t, memory) != before {
					t.Fatal("the store was changed")
				}
				return
			}
			o.Host.Boot = bootB
			e = open(t, o)
			if n := h.prefix(t, e); n != 11 {
				t.Fatalf("%d writes are there, 11 lie before the damage", n)
			}
			shut(t, e)
		})
	}
}

func TestFencedByNewerWriter(t *testing.T) {
	memory := objtest.NewMemory()
	o := options(t, memory)
	o.StatePath = "" // so that both can run on one host
	older := open(t, o)
	var h history
	h.add(t, older, 1)
	newer := open(t, o)
	if err := older.Flush(t.Context()); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("flush of the older writer: %v", err)
	}
	<-older.Done()
	if err := older.Err(); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("error of the older writer: %v", err)
	}
	if err := older.WriteAt(t.Context(), make([]byte, blockSize), 0); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("write of the older writer: %v", err)
	}
	if older.TryWriteAt(make([]byte, blockSize), 0) || older.TryReadAt(make([]byte, blockSize), 0) {
		t.Fatal("a fenced writer still serves")
	}
	if err := older.Close(t.Context()); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("close of the older writer: %v", err)
	}
	h.blocks = nil
	h.add(t, newer, 2)
	if n := h.prefix(t, newer); n != 1 {
		t.Fatal("the newer writer's data is not whole")
	}
	shut(t, newer)
}

// TestFlushWaitsForLowerKeys: an object that is stored means nothing while one
// below it is not.
func TestFlushWaitsForLowerKeys(t *testing.T) {
	memory := objtest.NewMemory()
	gate := make(chan struct{})
	stored := make(chan key.Key, 10)
	hooks := &objtest.Hooks{Inner: memory, Before: func(ctx context.Context, op objtest.Op) error {
		k, err := key.Parse(op.Name)
		if err == nil && op.Kind == objtest.Put && k == 1 {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return nil
	}, After: func(_ context.Context, op objtest.Op, err error) error {
		if k, bad := key.Parse(op.Name); bad == nil && op.Kind == objtest.Put && err == nil {
			stored <- k
		}
		return err
	}}
	e := open(t, options(t, hooks))
	<-stored // the fence
	var h history
	for i := range 9 {
		h.add(t, e, i)
	}
	done := make(chan error, 1)
	go func() { done <- e.Flush(t.Context()) }()
	if k := <-stored; k != 2 {
		t.Fatalf("object %d is stored first", k)
	}
	select {
	case err := <-done:
		t.Fatalf("the flush was acknowledged (%v) while object 1 is not stored", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	shut(t, e)
}

// TestGarbage: what is not what it should be is refused by name, and stays.
func TestGarbage(t *testing.T) {
	make3 := func(t *testing.T) (*objtest.Memory, bs3.Options) {
		memory := objtest.NewMemory()
		o := options(t, memory)
		for range 2 {
			e := open(t, o)
			var h history
			for i := range 30 {
				h.add(t, e, i)
			}
			shut(t, e) // with a checkpoint
		}
		c := newCable(memory)
		o.Store = c
		e := open(t, o)
		var h history
		for i := range 30 {
			h.add(t, e, i)
		}
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.crash(t, e)
		o.Store = memory
		return memory, o
	}
	last := func(t *testing.T, m objproxy.Store, prefix string) []string {
		list, err := m.List(t.Context(), prefix, "", 100)
		if err != nil || len(list) == 0 {
			t.Fatalf("list %q: %d, %v", prefix, len(list), err)
		}
		var names []string
		for _, o := range list {
			names = append(names, o.Name)
		}
		return names
	}
	put := func(t *testing.T, m objproxy.Store, name string, b []byte) {
		if _, err := m.Put(t.Context(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	get := func(t *testing.T, m objproxy.Store, name string) []byte {
		p := make([]byte, 1<<20)
		n, _, err := m.Get(t.Context(), name, p, -1)
		if err != nil {
			t.Fatal(err)
		}
		return p[:n]
	}
	garble := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-40] ^= 0x10
		return b
	}
	logEnd := func(t *testing.T, m objproxy.Store) key.Key {
		k := key.Key(0)
		for ; ; k++ {
			if _, _, err := m.Get(t.Context(), (k + 1).Name(), nil, -1); err != nil {
				return k
			}
		}
	}
	for name, harm := range map[string]func(t *testing.T, m *objtest.Memory) (harmed string){
		"volume record garbled": func(t *testing.T, m *objtest.Memory) string {
			put(t, m, layout.VolumeName, garble(get(t, m, layout.VolumeName)))
			return "volume"
		},
		"volume record of zeros": func(t *testing.T, m *objtest.Memory) string {
			put(t, m, layout.VolumeName, make([]byte, 700))
			return "volume"
		},
		"volume record empty": func(t *testing.T, m *objtest.Memory) string {
			put(t, m, layout.VolumeName, nil)
			return "volume"
		},
		"object garbled": func(t *testing.T, m *objtest.Memory) string {
			k := logEnd(t, m) - 1
			put(t, m, k.Name(), garble(get(t, m, k.Name())))
			return k.Name()
		},
		"object of zeros": func(t *testing.T, m *objtest.Memory) string {
			k := logEnd(t, m) - 1
			put(t, m, k.Name(), make([]byte, len(get(t, m, k.Name()))))
			return k.Name()
		},
		"object cut short": func(t *testing.T, m *objtest.Memory) string {
			k := logEnd(t, m) - 1
			put(t, m, k.Name(), get(t, m, k.Name())[:100])
			return k.Name()
		},
		"object under another key": func(t *testing.T, m *objtest.Memory) string {
			k := logEnd(t, m) - 1
			put(t, m, k.Name(), get(t, m, (k-1).Name()))
			return k.Name()
		},
		"both checkpoints garbled": func(t *testing.T, m *objtest.Memory) string {
			for _, n := range last(t, m, layout.CheckpointPrefix) {
				put(t, m, n, garble(get(t, m, n)))
			}
			return layout.CheckpointPrefix
		},
		"all packs gone": func(t *testing.T, m *objtest.Memory) string {
			if err := m.Delete(t.Context(), last(t, m, layout.MapPrefix)); err != nil {
				t.Fatal(err)
			}
			return layout.MapPrefix
		},
		"volume record gone": func(t *testing.T, m *objtest.Memory) string {
			if err := m.Delete(t.Context(), []string{layout.VolumeName}); err != nil {
				t.Fatal(err)
			}
			return "record"
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, o := make3(t)
			harmed := harm(t, m)
			before := objects(t, m)
			_, err := bs3.Open(t.Context(), o)
			if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), harmed) {
				t.Fatalf("open: %v", err)
			}
			t.Log(err)
			if objects(t, m) != before {
				t.Fatal("the store was changed")
			}
			if _, err := os.Stat(filepath.Join(o.StatePath, "intents")); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("an intent is left: %v", err)
			}
		})
	}
	t.Run("newest checkpoint garbled", func(t *testing.T) {
		m, o := make3(t)
		names := last(t, m, layout.CheckpointPrefix)
		n := names[len(names)-1]
		put(t, m, n, garble(get(t, m, n)))
		e := open(t, o)
		h := history{}
		for i := range 30 {
			h.blocks = append(h.blocks, i)
		}
		if got := h.prefix(t, e); got != 30 {
			t.Fatalf("%d of 30 writes are there", got)
		}
		shut(t, e)
		for _, kept := range mustInfo(t, m).Checkpoints {
			if kept == n {
				t.Fatal("the damaged checkpoint is still kept")
			}
		}
	})
	t.Run("chunk memory garbled", func(t *testing.T) {
		m, o := make3(t)
		path := filepath.Join(o.StatePath, "memory")
		if err := os.WriteFile(path, []byte("no chunk memory"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := objects(t, m)
		_, err := bs3.Open(t.Context(), o)
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), path) {
			t.Fatalf("open: %v", err)
		}
		if objects(t, m) != before {
			t.Fatal("the store was changed")
		}
	})
	t.Run("intents garbled", func(t *testing.T) {
		memory := objtest.NewMemory()
		c := newCable(memory)
		o := options(t, c)
		e := open(t, o)
		c.cut.Store(true)
		var h history
		h.add(t, e, 1)
		kill(t, e)
		o.Store = memory
		path := filepath.Join(o.StatePath, "intents")
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("intents of a volume that served: %v", err)
		}
		if err := os.WriteFile(path, []byte("[{"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := bs3.Open(t.Context(), o)
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), path) {
			t.Fatalf("open: %v", err)
		}
	})
}

func mustInfo(t *testing.T, store objproxy.Store) *volume.Info {
	t.Helper()
	info, err := volume.ReadInfo(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
