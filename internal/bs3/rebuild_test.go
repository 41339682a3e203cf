package bs3_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bs3/internal/bs3"
	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// rebuilding are the options with which the volumes of options() are rebuilt.
var rebuilding = fsck.RebuildOptions{Options: fsck.Options{Data: true}, UsualSize: 1000 * blockSize, ChunkSize: 8 * blockSize}

// rebuild rebuilds the record, and demands that nothing is stored.
func rebuild(t *testing.T, store objproxy.Store, opts fsck.RebuildOptions) *fsck.Rebuilt {
	t.Helper()
	before := objects(t, store)
	r, err := fsck.Rebuild(t.Context(), store, opts)
	if err != nil {
		t.Fatal(err)
	}
	if after := objects(t, store); after != before {
		t.Fatalf("the store changed: %s, was %s", after, before)
	}
	return r
}

// refused demands that no record can be made, for a reason that has all texts
// in it.
func refused(t *testing.T, store objproxy.Store, opts fsck.RebuildOptions, texts ...string) {
	t.Helper()
	_, err := fsck.Rebuild(t.Context(), store, opts)
	if !errors.Is(err, volume.ErrRefused) {
		t.Fatalf("rebuild: %v", err)
	}
	t.Log(err)
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("it does not say %q", text)
		}
	}
}

// lostVolume is a volume with two checkpoints, some of whose log was collected if
// gc is set, whose writer was killed. Its record is removed; lost is what it was.
func lostVolume(t *testing.T, gc bool) (memory *objtest.Memory, o bs3.Options, s *shadow, lost *layout.Volume) {
	t.Helper()
	memory = objtest.NewMemory()
	o = gcOptions(t, memory)
	rnd := rand.New(rand.NewPCG(9, 9))
	e := open(t, o)
	s = newShadow(e)
	for range 2 {
		s.some(t, e, rnd, 40)
		if gc {
			if _, err := e.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := checkpointed(t, e); err != nil {
			t.Fatal(err)
		}
		kill(t, e)
		e = open(t, o)
	}
	s.some(t, e, rnd, 20)
	kill(t, e)
	lost = record(t, memory)
	del(t, memory, layout.VolumeName)
	return memory, o, s, lost
}

// A record that was rebuilt is what was lost, as far as that matters; the volume
// opens with it, with all that chunk memory holds.
func TestRebuildRecord(t *testing.T) {
	for _, gc := range []bool{false, true} {
		t.Run(fmt.Sprintf("gc=%t", gc), func(t *testing.T) {
			memory, o, s, lost := lostVolume(t, gc)
			r := rebuild(t, memory, rebuilding)
			for _, v := range r.Values {
				t.Logf("%s: %s (%s)", v.Name, v.Text, v.From)
				if v.Text == "" || v.From == "" {
					t.Errorf("%+v", v)
				}
			}
			if err := r.Report.Err(); err != nil || r.Report.Blocks == 0 {
				t.Errorf("fsck: %v, %+v", err, r.Report)
			}
			v := r.Record
			if v.UUID != lost.UUID || v.BlockSize != lost.BlockSize || v.ChunkSize != lost.ChunkSize || v.Size != lost.Size ||
				v.LargestSize != lost.LargestSize || v.Epoch <= lost.Epoch || v.Writer.Nonce != lost.Writer.Nonce || v.Writer.Released ||
				!slices.Equal(v.Checkpoints, lost.Checkpoints) {
				t.Errorf("the record is\n%+v\nthe lost one was\n%+v", v, lost)
			}
			if v.Created.IsZero() || v.Created.After(time.Now()) || v.Generation == 0 || v.ChangeID == "" {
				t.Errorf("the record is %+v", v)
			}

			if err := r.Write(t.Context(), memory); err != nil {
				t.Fatal(err)
			}
			if err := rebuild2(t, memory).Write(t.Context(), memory); !errors.Is(err, volume.ErrRefused) {
				t.Errorf("a second one: %v", err)
			}
			refused(t, memory, rebuilding, lost.UUID.String())
			clean(t, memory)
			if _, err := bs3.Open(t.Context(), o); !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "not known") {
				t.Errorf("an open without takeover: %v", err)
			}
			o.Takeover = true
			e := open(t, o)
			s.compare(t, e)
			s.some(t, e, rand.New(rand.NewPCG(9, 8)), 40)
			s.compare(t, e)
			shut(t, e)
			clean(t, memory)
			e = open(t, o)
			s.compare(t, e)
			shut(t, e)
		})
	}
}

// rebuild2 rebuilds the record of a store that has one.
func rebuild2(t *testing.T, memory *objtest.Memory) *fsck.Rebuilt {
	t.Helper()
	other := memory.Clone()
	del(t, other, layout.VolumeName)
	return rebuild(t, other, rebuilding)
}

// A writer that still runs is fenced by a rebuilt record.
func TestRebuildFencesAWriter(t *testing.T) {
	memory := objtest.NewMemory()
	e := open(t, options(t, memory))
	s := newShadow(e)
	s.some(t, e, rand.New(rand.NewPCG(1, 1)), 40)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	del(t, memory, layout.VolumeName)
	if err := rebuild(t, memory, rebuilding).Write(t.Context(), memory); err != nil {
		t.Fatal(err)
	}
	if err := e.Checkpoint(t.Context()); !errors.Is(err, volume.ErrFenced) {
		t.Errorf("a checkpoint: %v", err)
	}
	kill(t, e)
}

// Without a checkpoint the size comes from whoever asks, and must be large
// enough for what was written.
func TestRebuildWithoutCheckpoint(t *testing.T) {
	memory := objtest.NewMemory()
	o := options(t, memory)
	e := open(t, o)
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(1, 1))
	s.some(t, e, rnd, 40)
	s.write(t, e, rnd, 999, 1)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(t, e)
	del(t, memory, layout.VolumeName)

	opts := rebuilding
	opts.Size = 999 * blockSize
	refused(t, memory, opts, "--size", fmt.Sprint(1000*blockSize))
	opts.Size, opts.UsualSize = 0, 500*blockSize
	refused(t, memory, opts, "--size", "configuration")
	opts.Size = 1000 * blockSize
	opts.ChunkSize = 4 * blockSize
	refused(t, memory, opts, "write.chunk_size")
	opts.ChunkSize = 8 * blockSize
	r := rebuild(t, memory, opts)
	if r.Record.Size != opts.Size || r.Report.Err() != nil || len(r.Record.Checkpoints) > 0 {
		t.Errorf("the record is %+v, fsck: %v", r.Record, r.Report.Err())
	}
	if err := r.Write(t.Context(), memory); err != nil {
		t.Fatal(err)
	}
	o.Takeover = true
	e = open(t, o)
	s.compare(t, e)
	shut(t, e)
	clean(t, memory)
}

// A checkpoint says how large the volume is, and nobody may say otherwise.
func TestRebuildSizes(t *testing.T) {
	memory, _, _, lost := lostVolume(t, false)
	opts := rebuilding
	opts.UsualSize = 8 << 30
	if r := rebuild(t, memory, opts); r.Record.Size != lost.Size {
		t.Errorf("the size is %d", r.Record.Size)
	}
	opts.Size = 2000 * blockSize
	refused(t, memory, opts, "--size", lost.Checkpoints[1])
}

// Damaged checkpoints are passed over, if what is left tells all.
func TestRebuildDamagedCheckpoints(t *testing.T) {
	garble := func(t *testing.T, memory *objtest.Memory, name string) {
		b := slices.Clone(get(t, memory, name))
		b[len(b)/2] ^= 1
		put(t, memory, name, b)
	}
	t.Run("the newest", func(t *testing.T) {
		memory, o, s, lost := lostVolume(t, true)
		garble(t, memory, lost.Checkpoints[1])
		r := rebuild(t, memory, rebuilding)
		if !slices.Equal(r.Record.Checkpoints, lost.Checkpoints[:1]) || r.Report.Err() != nil {
			t.Fatalf("the record is %+v, fsck: %v", r.Record, r.Report.Findings)
		}
		if err := r.Write(t.Context(), memory); err != nil {
			t.Fatal(err)
		}
		o.Takeover = true
		e := open(t, o)
		s.compare(t, e)
		shut(t, e)
		clean(t, memory)
	})
	t.Run("the older", func(t *testing.T) {
		memory, _, _, lost := lostVolume(t, true)
		garble(t, memory, lost.Checkpoints[0])
		if r := rebuild(t, memory, rebuilding); !slices.Equal(r.Record.Checkpoints, lost.Checkpoints[1:]) || r.Report.Err() != nil {
			t.Fatalf("the record is %+v, fsck: %v", r.Record, r.Report.Findings)
		}
	})
	t.Run("both, and the log is whole", func(t *testing.T) {
		memory, _, _, lost := lostVolume(t, false)
		garble(t, memory, lost.Checkpoints[0])
		garble(t, memory, lost.Checkpoints[1])
		if r := rebuild(t, memory, rebuilding); len(r.Record.Checkpoints) > 0 || r.Report.Err() != nil {
			t.Fatalf("the record is %+v, fsck: %v", r.Record, r.Report.Findings)
		}
	})
	t.Run("both, and the log is not", func(t *testing.T) {
		memory, _, _, lost := lostVolume(t, true)
		garble(t, memory, lost.Checkpoints[0])
		garble(t, memory, lost.Checkpoints[1])
		refused(t, memory, rebuilding, "is missing", "was made of it")
	})
	t.Run("both are gone, and the log is not whole", func(t *testing.T) {
		memory, _, _, lost := lostVolume(t, true)
		del(t, memory, lost.Checkpoints[0])
		del(t, memory, lost.Checkpoints[1])
		refused(t, memory, rebuilding, "is missing", "of the later epoch")
	})
	byOne := func(t *testing.T) (memory, before *objtest.Memory) {
		memory = objtest.NewMemory()
		e := open(t, gcOptions(t, memory))
		s := newShadow(e)
		for seed := range uint64(3) {
			s.some(t, e, rand.New(rand.NewPCG(9, seed)), 60)
			before = memory.Clone()
			if _, err := e.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := e.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		kill(t, e)
		for _, name := range append(record(t, memory).Checkpoints, layout.VolumeName) {
			del(t, memory, name)
		}
		return memory, before
	}
	t.Run("both are gone, and one writer wrote it all", func(t *testing.T) {
		memory, _ := byOne(t)
		refused(t, memory, rebuilding, "is missing", "is there, and so is a part of a checkpoint")
	})
	t.Run("both are gone, and one that they replaced is still there", func(t *testing.T) {
		memory, before := byOne(t)
		list, err := before.List(t.Context(), "", "", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			if _, ok := volume.EpochOf(o.Name); ok {
				put(t, memory, o.Name, get(t, before, o.Name))
			}
		}
		refused(t, memory, rebuilding, "is missing", "needs, is not: a later checkpoint")
	})
}

// Where an open would end the log too early, there is no record.
func TestRebuildHole(t *testing.T) {
	memory, _, _, lost := lostVolume(t, false)
	k, _, _, err := layout.ParseCheckpointName(lost.Checkpoints[1])
	if err != nil {
		t.Fatal(err)
	}
	for n := k + 1; ; n++ {
		if _, _, err := memory.Get(t.Context(), (n + 1).Name(), nil, -1); err != nil {
			break
		}
		hurt := memory.Clone()
		del(t, hurt, n.Name())
		if tailOf(t, memory, n+1).Epoch > tailOf(t, memory, n-1).Epoch {
			refused(t, hurt, rebuilding, fmt.Sprintf("object %d is missing", n))
			continue
		}
		// It may be that its writer has died before it could store it: as after
		// any crash.
		if r := rebuild(t, hurt, rebuilding); r.Report.Warnings == 0 {
			t.Errorf("object %d: %v", n, r.Report.Findings)
		}
	}
}

// Parts of several volumes are told apart.
func TestRebuildMixed(t *testing.T) {
	memory, _, _, lost := lostVolume(t, true)
	other, _, _, lostToo := lostVolume(t, false)
	// An older volume, whose names were taken where they were free.
	list, err := other.List(t.Context(), "", "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if _, err := memory.Put(t.Context(), i.Name, objproxy.Body{Data: get(t, other, i.Name)}, objproxy.IfAbsent()); err != nil && !errors.Is(err, objproxy.ErrExists) {
			t.Fatal(err)
		}
	}
	refused(t, memory, rebuilding, "--uuid", lost.UUID.String(), lostToo.UUID.String())
	opts := rebuilding
	opts.UUID = layout.NewUUID().String()
	refused(t, memory, opts, opts.UUID, lost.UUID.String(), lostToo.UUID.String())
	opts.UUID = lost.UUID.String()
	r := rebuild(t, memory, opts)
	if r.Record.UUID != lost.UUID || !slices.Equal(r.Record.Checkpoints, lost.Checkpoints) {
		t.Errorf("the record is %+v", r.Record)
	}
	opts.UUID = lostToo.UUID.String()
	refused(t, memory, opts, "is missing")
}

// The older checkpoint is named only if an open could go on from it.
func TestRebuildOlderCheckpointNeedsMore(t *testing.T) {
	memory, _, _, lost := lostVolume(t, false)
	older, newer := checkpointOf(t, memory, lost.Checkpoints[0]), checkpointOf(t, memory, lost.Checkpoints[1])
	died := key.Key(0) // between the two
	for _, o := range older.Objects {
		if now, _ := tableEntry(newer, o.Key); o.Live > 0 && now.Live == 0 {
			died = o.Key
		}
	}
	if died == 0 {
		t.Fatal("nothing has died between the checkpoints")
	}
	for what, k := range map[string]key.Key{"an object of its map": died, "the log behind it": older.Key + 2} {
		hurt := memory.Clone()
		del(t, hurt, k.Name())
		r := rebuild(t, hurt, rebuilding)
		if !slices.Equal(r.Record.Checkpoints, lost.Checkpoints[1:]) {
			t.Errorf("without %s the checkpoints are %v", what, r.Record.Checkpoints)
		}
		named := slices.IndexFunc(r.Values, func(v fsck.Value) bool { return v.Name == "checkpoints" })
		if from := r.Values[named].From; !strings.Contains(from, fmt.Sprintf("object %d, which it needs, is not there", k)) {
			t.Errorf("without %s it says %s", what, from)
		}
		if k == died && r.Report.Err() != nil {
			t.Errorf("without %s fsck finds %v", what, r.Report.Findings)
		}
	}
}

// What is left of another volume says nothing of this one.
func TestRebuildBesideCheckpointsOfAnother(t *testing.T) {
	other, _, _, _ := lostVolume(t, false)
	memory := objtest.NewMemory()
	o := options(t, memory)
	e := open(t, o)
	s := newShadow(e)
	s.write(t, e, rand.New(rand.NewPCG(1, 1)), 1, 4)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(t, e)
	opts := rebuilding
	opts.UUID = record(t, memory).UUID.String()
	del(t, memory, layout.VolumeName)
	list, err := other.List(t.Context(), "", "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if _, err := key.Parse(i.Name); err != nil {
			put(t, memory, i.Name, get(t, other, i.Name))
		}
	}
	r := rebuild(t, memory, opts)
	if err := r.Report.Err(); err != nil || len(r.Record.Checkpoints) > 0 {
		t.Errorf("the record is %+v, fsck: %v", r.Record, err)
	}
	if err := r.Write(t.Context(), memory); err != nil {
		t.Fatal(err)
	}
	o.Takeover = true
	e = open(t, o)
	s.compare(t, e)
	shut(t, e)
}

// A record that is damaged is not replaced either, but shows that one is needed.
func TestRebuildDamagedRecord(t *testing.T) {
	memory, _, _, lost := lostVolume(t, false)
	put(t, memory, layout.VolumeName, []byte("garbage"))
	r := rebuild(t, memory, rebuilding)
	if r.Record.UUID != lost.UUID || r.Report.Err() != nil {
		t.Errorf("the record is %+v, fsck: %v", r.Record, r.Report.Err())
	}
	if err := r.Write(t.Context(), memory); !errors.Is(err, volume.ErrRefused) {
		t.Errorf("write: %v", err)
	}
	if b := get(t, memory, layout.VolumeName); string(b) != "garbage" {
		t.Errorf("it was replaced by %q", b)
	}
}

// Nothing is made of nothing, and damage is said.
func TestRebuildOddPlaces(t *testing.T) {
	memory := objtest.NewMemory()
	if _, err := fsck.Rebuild(t.Context(), memory, rebuilding); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("of nothing: %v", err)
	}
	put(t, memory, "README", nil)
	if _, err := fsck.Rebuild(t.Context(), memory, rebuilding); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("of something else: %v", err)
	}
	put(t, memory, key.Key(0).Name(), []byte("garbage"))
	refused(t, memory, rebuilding, "can be read")

	memory, _, _, _ = lostVolume(t, false)
	put(t, memory, key.Key(3).Name(), []byte("garbage"))
	r := rebuild(t, memory, rebuilding)
	if !errors.Is(r.Report.Err(), fsck.ErrDamage) {
		t.Errorf("with a damaged object fsck says %v", r.Report.Err())
	}
}
