package bs3_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// damaged is a volume with two checkpoints, packs, objects between and above
// them, some deleted, some dead.
type damaged struct {
	*objtest.Memory
	volume       *layout.Volume
	older, newer *layout.Checkpoint
	last         key.Key // of the log
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
	s.some(t, e, rnd, 40)
	if gc {
		if _, err := e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
	} else if err := checkpointed(t, e); err != nil {
		t.Fatal(err)
	}
	kill(t, e)
	e = open(t, o)
	s.some(t, e, rnd, 15)
	if gc {
		if _, err := e.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.some(t, e, rnd, 5)
	}
	if err := checkpointed(t, e); err != nil {
		t.Fatal(err)
	}
	s.some(t, e, rnd, 12)
	if err := checkpointed(t, e); err != nil {
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

func TestFsckFindsBytesAndLosses(t *testing.T) {
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
				data = int(tailOf(t, d, k).DataSize())
			}
			for _, at := range []int{data, (data + len(b)) / 2, len(b) - 100} {
				if at < 0 {
					continue
				}
				hurt := d.Clone()
				bad := slices.Clone(b)
				bad[at] ^= 0x10
				put(t, hurt, o.Name, bad)
				found(t, hurt, o.Name, fmt.Sprintf("byte %d flipped", at))
			}
			for _, n := range []int{0, len(b) - 1} {
				hurt := d.Clone()
				put(t, hurt, o.Name, b[:n])
				found(t, hurt, o.Name, fmt.Sprintf("cut off after %d bytes", n))
			}
			if isObject && k == d.last {
				continue // without it the log is shorter, as after a crash
			}
			hurt := d.Clone()
			del(t, hurt, o.Name)
			if isObject && k > d.newer.Key {
				if r := clean(t, hurt); r.Warnings == 0 || r.LogEnd != k {
					t.Fatalf("no warning of a gap: %+v", r)
				}
				continue
			}
			found(t, hurt, o.Name, "deleted")
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
func found(t *testing.T, store objproxy.Store, name, how string) {
	t.Helper()
	r, err := fsck.Check(t.Context(), store, fsck.Options{})
	if err != nil {
		t.Fatalf("%s: %s: fsck: %v", name, how, err)
	}
	for _, f := range r.Findings {
		if f.Severity == fsck.SeverityError && f.Name == name {
			return
		}
	}
	t.Fatalf("%s: %s was not found, but %v", name, how, r.Findings)
}

// want checks that one kind of damage is found, under that name.
func want(t *testing.T, store objproxy.Store, kind fsck.Kind, name string) {
	t.Helper()
	r := checkVolume(t, store)
	found := false
	for _, f := range r.Findings {
		if f.Severity == fsck.SeverityError {
			t.Log(f)
			found = found || f.Kind == kind && f.Name == name
		}
	}
	if !found {
		t.Fatalf("%s of %s was not found", kind, name)
	}
	if !errors.Is(r.Err(), fsck.ErrDamage) {
		t.Fatalf("error: %v", r.Err())
	}
}

// tell checks that there is no error, but one finding of that kind and name.
func tell(t *testing.T, store objproxy.Store, severity fsck.Severity, kind fsck.Kind, name string) {
	t.Helper()
	for _, f := range clean(t, store).Findings {
		t.Log(f)
		if f.Severity == severity && f.Kind == kind && f.Name == name {
			return
		}
	}
	t.Fatalf("%s: %s of %s was not told", severity, kind, name)
}

// edit changes the tail of object k, which stays consistent in itself.
func (d *damaged) edit(t *testing.T, k key.Key, change func(o *layout.Object)) {
	t.Helper()
	o := tailOf(t, d, k)
	change(o)
	b := get(t, d, k.Name())
	put(t, d, k.Name(), layout.AppendTail(slices.Clone(b[:o.DataSize()]), o))
}

// emptyFence makes a fence of o.
func emptyFence(o *layout.Object) { o.Fence, o.Records, o.Blocks, o.Sum = true, nil, 0, 0 }

// putCheckpoint stores one of the two checkpoints again.
func (d *damaged) putCheckpoint(t *testing.T, i int, c *layout.Checkpoint) {
	t.Helper()
	put(t, d, d.volume.Checkpoints[i], layout.AppendCheckpoint(nil, c))
}

// remap changes the map of one of the two checkpoints, in a pack of its own;
// the live counts follow.
func (d *damaged) remap(t *testing.T, i int, c *layout.Checkpoint, change func(entries []layout.Location)) {
	t.Helper()
	l := c.Leaves[0]
	entries := make([]layout.Location, layout.LeafBlocks)
	if err := layout.DecodeLeaf(get(t, d, c.Packs[l.Pack].Name)[l.Offset:][:l.Length], entries); err != nil {
		t.Fatal(err)
	}
	change(entries)
	live := make(map[key.Key]uint32)
	for _, e := range entries {
		if e.Mapped() {
			live[e.Key()]++
		}
	}
	for i := range c.Objects {
		c.Objects[i].Live = live[c.Objects[i].Key]
	}
	b := layout.AppendPackHeader(nil, d.volume.UUID)
	l.Pack, l.Offset = 0, uint64(len(b))
	b = layout.AppendLeaf(b, entries)
	encoded := b[l.Offset:]
	l.Length, l.CRC = uint32(len(encoded)), layout.CRC(encoded)
	c.Packs = []layout.PackRef{{Name: layout.PackName(1, 1000+uint32(i)), Size: uint64(len(b))}}
	c.Leaves = []layout.LeafRef{l}
	put(t, d, c.Packs[0].Name, b)
	d.putCheckpoint(t, i, c)
}

// choose returns the first object, of those with keys in [from, to], that suits.
func (d *damaged) choose(t *testing.T, from, to key.Key, suits func(*layout.Object) bool) key.Key {
	t.Helper()
	for k := from; k <= to; k++ {
		if _, _, err := d.Get(t.Context(), k.Name(), nil, 0); err == nil && suits(tailOf(t, d, k)) {
			return k
		}
	}
	t.Fatal("no object suits")
	return 0
}

func hasData(o *layout.Object) bool { return o.Blocks > 0 && o.Records[0].Kind == layout.KindWrite }
func hasMoves(o *layout.Object) bool {
	return len(o.Records) > 0 && o.Records[0].Kind == layout.KindMove
}
func isFence(o *layout.Object) bool { return o.Fence }

// swapped exchanges where two blocks of one object lie.
func swapped(entries []layout.Location) {
	for i, a := range entries {
		for j, b := range entries[:i] {
			if a.Mapped() && b.Mapped() && a.Key() == b.Key() {
				entries[i], entries[j] = b, a
				return
			}
		}
	}
}

func TestFsckFindsWhatChecksumsDoNot(t *testing.T) {
	base := sample(t, true)
	oldName, newName := base.volume.Checkpoints[0], base.volume.Checkpoints[1]
	inLog := base.choose(t, base.newer.Key+3, base.last-3, hasData) // above the checkpoints
	below := base.choose(t, base.older.Key+1, base.newer.Key, hasData)
	old := key.Key(0) // needed by a checkpoint, and its log before is gone
	moved := key.Key(0)
	for _, o := range base.newer.Objects {
		was, _ := tableEntry(base.older, o.Key)
		if o.Live > 1 && was.Live > 1 {
			old = o.Key
			if hasMoves(tailOf(t, base, o.Key)) {
				moved = o.Key
			}
		}
	}
	if old == 0 || moved == 0 {
		t.Fatalf("objects %d and %d of the sample", old, moved)
	}
	anyFence := base.choose(t, 1, base.newer.Key, isFence)
	stranger := layout.NewUUID()
	above := (base.last + 1000).Name()

	for name, c := range map[string]struct {
		hurt func(t *testing.T, d *damaged)
		kind fsck.Kind
		name string
	}{
		"a live count of the newer checkpoint": {func(t *testing.T, d *damaged) {
			d.newer.Objects[len(d.newer.Objects)-1].Live--
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindLive, newName},
		"a live count of the older checkpoint": {func(t *testing.T, d *damaged) {
			i := slices.IndexFunc(d.older.Objects, func(o layout.ObjectInfo) bool { return o.Live > 0 })
			d.older.Objects[i].Live = 0
			d.putCheckpoint(t, 0, d.older)
		}, fsck.KindLive, oldName},
		"an object is not in the table": {func(t *testing.T, d *damaged) {
			d.newer.Objects = slices.DeleteFunc(d.newer.Objects, func(o layout.ObjectInfo) bool { return o.Key == anyFence })
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindLive, newName},
		"an object between the checkpoints is not in the table": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, func(entries []layout.Location) {
				for i, e := range entries {
					if e.Mapped() && e.Key() == below {
						entries[i] = 0
					}
				}
			})
			i := slices.IndexFunc(d.newer.Objects, func(o layout.ObjectInfo) bool { return o.Key == below })
			d.newer.Objects = slices.Delete(d.newer.Objects, i, i+1)
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindLive, newName},
		"an object of no log in the table": {func(t *testing.T, d *damaged) {
			o := d.newer.Objects[len(d.newer.Objects)-1]
			i := slices.IndexFunc(d.newer.Objects, func(o layout.ObjectInfo) bool { return o.Key > 5 && !o.Fence && o.Epoch == 1 })
			for k := d.newer.Objects[i-1].Key + 1; ; k++ {
				if _, here := tableEntry(d.newer, k); !here {
					d.newer.Objects = append(d.newer.Objects, layout.ObjectInfo{Key: k, Epoch: 1, Total: o.Total})
					slices.SortFunc(d.newer.Objects, func(a, b layout.ObjectInfo) int { return int(a.Key) - int(b.Key) })
					break
				}
			}
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindLive, newName},
		"a total of the table": {func(t *testing.T, d *damaged) {
			for i := range d.older.Objects {
				if d.older.Objects[i].Key == old {
					d.older.Objects[i].Total++
				}
			}
			d.putCheckpoint(t, 0, d.older)
		}, fsck.KindLive, newName},
		"an epoch of the table": {func(t *testing.T, d *damaged) {
			d.newer.Objects[1].Epoch = 0
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindCheckpoint, newName},
		"the sequence number of the checkpoints": {func(t *testing.T, d *damaged) {
			d.older.NextSeq = d.newer.NextSeq + 1
			d.putCheckpoint(t, 0, d.older)
		}, fsck.KindCheckpoint, newName},
		"the sequence number after the newer checkpoint": {func(t *testing.T, d *damaged) {
			d.newer.NextSeq++
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindCheckpoint, newName},
		"the size of a checkpoint": {func(t *testing.T, d *damaged) {
			d.newer.Blocks++
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindCheckpoint, newName},
		"the block size of a checkpoint": {func(t *testing.T, d *damaged) {
			d.newer.BlockSize = 4096
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindCheckpoint, newName},
		"a checkpoint of an epoch to come": {func(t *testing.T, d *damaged) {
			d.volume.Epoch = 1
			putRecord(t, d, d.volume)
		}, fsck.KindCheckpoint, newName},
		"a checkpoint of another volume": {func(t *testing.T, d *damaged) {
			d.newer.UUID = stranger
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindCheckpoint, newName},
		"the map of the newer checkpoint": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, swapped)
		}, fsck.KindMap, newName},
		"an unmapped block of the newer checkpoint": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, func(entries []layout.Location) {
				entries[slices.IndexFunc(entries, layout.Location.Mapped)] = 0
			})
		}, fsck.KindMap, newName},
		"an empty map of the newer checkpoint": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, func(entries []layout.Location) { clear(entries) })
			d.newer.Leaves, d.newer.Packs = nil, nil
			d.putCheckpoint(t, 1, d.newer)
		}, fsck.KindMap, newName},
		"the map of the older checkpoint": {func(t *testing.T, d *damaged) {
			d.remap(t, 0, d.older, swapped)
		}, fsck.KindMap, newName},
		"the maps of both": {func(t *testing.T, d *damaged) {
			swap := func(entries []layout.Location) {
				var at []int
				for i, e := range entries {
					if e.Mapped() && e.Key() == old {
						at = append(at, i)
					}
				}
				a, b := at[0], at[1]
				entries[a], entries[b] = entries[b], entries[a]
			}
			d.remap(t, 0, d.older, swap)
			d.remap(t, 1, d.newer, swap)
		}, fsck.KindMap, old.Name()},
		"a block beyond the volume": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, func(entries []layout.Location) {
				i := slices.IndexFunc(entries, layout.Location.Mapped)
				entries[i], entries[1000] = 0, entries[i]
			})
		}, fsck.KindPack, layout.PackName(1, 1001)},
		"a block in no object": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, func(entries []layout.Location) { entries[7] = layout.Loc(d.last, 0) })
		}, fsck.KindPack, layout.PackName(1, 1001)},
		"a block beyond its object": {func(t *testing.T, d *damaged) {
			d.remap(t, 1, d.newer, func(entries []layout.Location) {
				i := slices.IndexFunc(entries, func(l layout.Location) bool { return l.Mapped() && l.Key() == below })
				entries[i] = layout.Loc(below, 8)
			})
		}, fsck.KindPack, layout.PackName(1, 1001)},

		"an object under another's name": {func(t *testing.T, d *damaged) {
			put(t, d, old.Name(), get(t, d, below.Name()))
		}, fsck.KindObject, old.Name()},
		"an object of the log under another's name": {func(t *testing.T, d *damaged) {
			put(t, d, inLog.Name(), get(t, d, below.Name()))
		}, fsck.KindObject, inLog.Name()},
		"an object of another volume": {func(t *testing.T, d *damaged) {
			d.edit(t, old, func(o *layout.Object) { o.UUID = stranger })
		}, fsck.KindObject, old.Name()},
		"an object of another volume between the checkpoints": {func(t *testing.T, d *damaged) {
			d.edit(t, below, func(o *layout.Object) { o.UUID = stranger })
		}, fsck.KindObject, below.Name()},
		"a stale object": {func(t *testing.T, d *damaged) {
			d.edit(t, old, func(o *layout.Object) { o.Epoch-- })
		}, fsck.KindObject, old.Name()},
		"a stale object between the checkpoints": {func(t *testing.T, d *damaged) {
			d.edit(t, below, func(o *layout.Object) { o.Epoch-- })
		}, fsck.KindObject, below.Name()},
		"an object of an epoch to come": {func(t *testing.T, d *damaged) {
			d.edit(t, inLog, func(o *layout.Object) { o.Epoch += 7 })
		}, fsck.KindObject, inLog.Name()},
		"an epoch without a fence": {func(t *testing.T, d *damaged) {
			d.volume.Epoch += 7
			putRecord(t, d, d.volume)
			d.edit(t, d.last, func(o *layout.Object) { o.Epoch++ })
		}, fsck.KindObject, base.last.Name()},
		"a fence within an epoch": {func(t *testing.T, d *damaged) {
			d.edit(t, inLog, func(o *layout.Object) { emptyFence(o) })
		}, fsck.KindObject, inLog.Name()},
		"an object of another writer": {func(t *testing.T, d *damaged) {
			d.edit(t, inLog, func(o *layout.Object) { o.Nonce = layout.NewNonce() })
		}, fsck.KindObject, inLog.Name()},
		"a gap in the sequence numbers": {func(t *testing.T, d *damaged) {
			d.edit(t, inLog, func(o *layout.Object) {
				o.FirstSeq++
				for i := range o.Records {
					o.Records[i].Seq++
				}
			})
		}, fsck.KindObject, inLog.Name()},
		"a record beyond the volume": {func(t *testing.T, d *damaged) {
			d.edit(t, inLog, func(o *layout.Object) { o.Records[0].Block = 1000 })
		}, fsck.KindObject, inLog.Name()},
		"an old record beyond the volume": {func(t *testing.T, d *damaged) {
			d.edit(t, old, func(o *layout.Object) { o.Records[0].Block = 1000 })
		}, fsck.KindObject, old.Name()},
		"an old record of other blocks": {func(t *testing.T, d *damaged) {
			d.edit(t, moved, func(o *layout.Object) {
				for i := range o.Records {
					o.Records[i].Block ^= 1
				}
			})
		}, fsck.KindMap, moved.Name()},
		"a fence with another epoch": {func(t *testing.T, d *damaged) {
			d.edit(t, anyFence, func(o *layout.Object) { o.Epoch++ })
		}, fsck.KindObject, anyFence.Name()},
		"a move of what lies elsewhere": {func(t *testing.T, d *damaged) {
			o := tailOf(t, d, inLog)
			o.Records = []layout.Record{{Block: 3, Blocks: 1, Kind: layout.KindMove, Source: layout.Loc(below, 7)}}
			b := get(t, d, inLog.Name())
			put(t, d, inLog.Name(), layout.AppendTail(slices.Clone(b[:o.DataSize()]), o))
		}, fsck.KindMap, inLog.Name()},
		"blocks of another size": {func(t *testing.T, d *damaged) {
			d.edit(t, below, func(o *layout.Object) {
				emptyFence(o)
				o.BlockSize, o.Fence = 4096, false
			})
		}, fsck.KindObject, below.Name()},
		"more blocks than a chunk": {func(t *testing.T, d *damaged) {
			o := tailOf(t, d, inLog)
			o.Blocks += 8
			put(t, d, inLog.Name(), layout.AppendTail(make([]byte, o.DataSize()), o))
		}, fsck.KindObject, inLog.Name()},
		"data": {func(t *testing.T, d *damaged) {
			b := slices.Clone(get(t, d, moved.Name()))
			for i := range tailOf(t, d, moved).Blocks {
				b[int(i)*layout.Stride(blockSize)+5] ^= 1
			}
			put(t, d, moved.Name(), b)
		}, fsck.KindData, moved.Name()},

		"an object in a log that was closed": {func(t *testing.T, d *damaged) {
			d.volume.Writer.Released = true
			putRecord(t, d, d.volume)
			del(t, d, inLog.Name())
		}, fsck.KindMissing, inLog.Name()},
		"the end of a log that was closed": {func(t *testing.T, d *damaged) {
			d.volume.Writer.Released = true
			d.volume.Epoch++
			putRecord(t, d, d.volume)
		}, fsck.KindMissing, (base.last + 1).Name()},
		"a stale object in a log that was closed": {func(t *testing.T, d *damaged) {
			d.volume.Writer.Released = true
			putRecord(t, d, d.volume)
			d.edit(t, inLog, func(o *layout.Object) { o.Epoch-- })
		}, fsck.KindMissing, inLog.Name()},
		"an object below a fence": {func(t *testing.T, d *damaged) {
			d.volume.Epoch++
			putRecord(t, d, d.volume)
			d.edit(t, d.last, func(o *layout.Object) {
				emptyFence(o)
				o.Epoch = d.volume.Epoch
			})
			del(t, d, inLog.Name())
		}, fsck.KindMissing, inLog.Name()},
		"garbage above the log": {func(t *testing.T, d *damaged) {
			put(t, d, above, []byte("garbage"))
		}, fsck.KindObject, above},
		"the volume record, but the log is there": {func(t *testing.T, d *damaged) {
			del(t, d, layout.VolumeName)
		}, fsck.KindMissing, layout.VolumeName},
		"both checkpoints": {func(t *testing.T, d *damaged) {
			for _, n := range d.volume.Checkpoints {
				del(t, d, n)
			}
			put(t, d, inLog.Name(), []byte("garbage"))
		}, fsck.KindObject, inLog.Name()},
	} {
		t.Run(name, func(t *testing.T) {
			d := *base
			d.Memory = base.Clone()
			d.volume, d.older, d.newer = record(t, d), checkpointOf(t, d, oldName), checkpointOf(t, d, newName)
			c.hurt(t, &d)
			want(t, d, c.kind, c.name)
		})
	}

	t.Run("what is no damage", func(t *testing.T) {
		d := *base
		d.Memory = base.Clone()
		strays := map[string]fsck.Severity{
			layout.PackName(1, 500):                      fsck.SeverityInfo,
			layout.CheckpointName(base.older.Key, 1, 99): fsck.SeverityInfo,
			objproxy.ProbePrefix + "x":                   fsck.SeverityInfo,
			"something else":                             fsck.SeverityInfo,
		}
		for n := range strays {
			put(t, d, n, []byte("x"))
		}
		gone := key.Key(1) // given back, and stored again by a late put
		for ; ; gone++ {
			if _, here := tableEntry(base.older, gone); !here {
				break
			}
		}
		put(t, d, gone.Name(), get(t, d, inLog.Name()))
		strays[gone.Name()] = fsck.SeverityInfo
		stale := base.last + 5
		put(t, d, stale.Name(), get(t, d, below.Name()))
		d.edit(t, stale, func(o *layout.Object) { o.Key, o.Epoch = stale, 1 })
		strays[stale.Name()] = fsck.SeverityInfo
		foreign := base.last + 6
		put(t, d, foreign.Name(), get(t, d, below.Name()))
		d.edit(t, foreign, func(o *layout.Object) { o.UUID = stranger })
		strays[foreign.Name()] = fsck.SeverityInfo
		for n, severity := range strays {
			tell(t, d, severity, fsck.KindLeftover, n)
		}
		before, after := clean(t, base), clean(t, d)
		if before.LiveBytes != after.LiveBytes || after.StoredBytes <= before.StoredBytes || before.DeadBytes == 0 || before.Infos != 0 {
			t.Fatalf("%+v, then %+v", before, after)
		}
	})
	t.Run("a deleted object's name is taken", func(t *testing.T) {
		// By a writer that put its fence there before it found itself fenced.
		d := sample(t, false)
		for _, o := range d.older.Objects {
			if o.Live > 0 || o.Fence || o.Epoch >= d.volume.Epoch {
				continue
			}
			late := &layout.Object{Footer: layout.Footer{UUID: d.volume.UUID, Key: o.Key, Epoch: d.volume.Epoch, Nonce: layout.NewNonce(), BlockSize: blockSize, FirstSeq: 1, Fence: true}}
			put(t, d, o.Key.Name(), layout.AppendTail(nil, late))
			if r := clean(t, d); r.FromStart {
				t.Errorf("the log is taken for complete without object %d: %+v", o.Key, r)
			}
			return
		}
		t.Fatal("no object is dead")
	})
	t.Run("dead data", func(t *testing.T) {
		d := *base
		d.Memory = base.Clone()
		// An object of which only a part is live: all its data goes bad.
		for _, o := range base.newer.Objects {
			if was, here := tableEntry(base.older, o.Key); !here || o.Live == 0 || was.Total == o.Live {
				continue
			}
			b := slices.Clone(get(t, d, o.Key.Name()))
			for i := range o.Total {
				b[i*blockSize] ^= 1
			}
			put(t, d, o.Key.Name(), b)
		}
		r := checkVolume(t, d)
		data := map[fsck.Severity]int{}
		for _, f := range r.Findings {
			if f.Kind == fsck.KindData {
				data[f.Severity]++
			}
		}
		if data[fsck.SeverityError] == 0 || data[fsck.SeverityInfo] == 0 || data[fsck.SeverityError] != r.Errors {
			t.Fatalf("%v of %d errors", data, r.Errors)
		}
		without, err := fsck.Check(t.Context(), d, fsck.Options{})
		if err != nil || without.Err() != nil {
			t.Fatalf("data was read without having been asked for: %v, %v", err, without.Err())
		}
	})
}

// TestFsckRefuses: places that hold no volume that can be checked.
func TestFsckRefuses(t *testing.T) {
	memory := objtest.NewMemory()
	if _, err := fsck.Check(t.Context(), memory, fsck.Options{}); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("an empty store: %v", err)
	}
	put(t, memory, objproxy.ProbePrefix+"x", nil)
	if _, err := fsck.Check(t.Context(), memory, fsck.Options{}); !errors.Is(err, volume.ErrNoVolume) {
		t.Errorf("a store that was probed: %v", err)
	}
	shut(t, open(t, options(t, memory)))
	v := record(t, memory)
	v.Deleted = true
	putRecord(t, memory, v)
	if _, err := fsck.Check(t.Context(), memory, fsck.Options{}); !errors.Is(err, volume.ErrRefused) {
		t.Errorf("a deleted volume: %v", err)
	}
}

// TestFsckStoreFails: whatever call fails, an error is no finding.
func TestFsckStoreFails(t *testing.T) {
	d := sample(t, true)
	broken := errors.New("broken")
	for n := int32(1); ; n += 1 + n/30 {
		var calls atomic.Int32
		hook := &objtest.Hooks{Inner: d, Before: func(context.Context, objtest.Op) error {
			if calls.Add(1) == n {
				return broken
			}
			return nil
		}}
		r, err := fsck.Check(t.Context(), hook, fsck.Options{Data: true})
		if calls.Load() < n {
			break
		}
		if err == nil && r.Err() != nil || err != nil && !errors.Is(err, broken) {
			t.Fatalf("call %d: %v, %+v", n, err, r)
		}
		// Tails read in vain beyond the end of the log may fail.
		if err == nil && n < 10 {
			t.Fatalf("call %d: no error", n)
		}
	}
}

// TestFsckLongLog: a log of many more keys than objects, as a volume has that
// was written for years.
func TestFsckLongLog(t *testing.T) {
	const last = 20_000_000
	memory := objtest.NewMemory()
	uuid, nonce := layout.NewUUID(), layout.NewNonce()
	stored := layouttest.Stored(uuid, last, 0, make([]byte, 2*blockSize), blockSize)
	footer := layout.Footer{UUID: uuid, Nonce: nonce, Epoch: 1, FirstSeq: 7, BlockSize: blockSize}
	fence := &layout.Object{Footer: footer}
	fence.Key, fence.Fence = 3, true
	put(t, memory, fence.Key.Name(), layout.AppendTail(nil, fence))
	o := &layout.Object{
		Footer:  footer,
		Records: []layout.Record{{Block: 5, Blocks: 2, Kind: layout.KindWrite, Seq: 7}},
	}
	o.Key, o.Blocks, o.Sum = last, 2, layout.AddSum(0, stored, blockSize)
	put(t, memory, o.Key.Name(), layout.AppendTail(stored, o))

	d := &damaged{Memory: memory, volume: &layout.Volume{
		UUID: uuid, Generation: 1, BlockSize: blockSize, Size: 100 * blockSize, LargestSize: 100 * blockSize, ChunkSize: 8 * blockSize,
		Created: time.Unix(0, 0), Epoch: 1, Writer: layout.Writer{Nonce: nonce, Released: true},
		Checkpoints: []string{layout.CheckpointName(last, 1, 1)},
	}}
	putRecord(t, d, d.volume)
	c := &layout.Checkpoint{
		UUID: uuid, Nonce: nonce, Key: last, KeyEpoch: 1, Epoch: 1, NextSeq: 8, BlockSize: blockSize, Blocks: 100,
		Objects: []layout.ObjectInfo{{Key: 3, Epoch: 1, Fence: true}, {Key: last, Epoch: 1, Total: 2}},
	}
	b := layout.AppendLeaf(layout.AppendPackHeader(nil, uuid), make([]layout.Location, layout.LeafBlocks))
	c.Packs = []layout.PackRef{{Name: layout.PackName(1, 2), Size: uint64(len(b))}}
	c.Leaves = []layout.LeafRef{{Offset: layout.PackHeaderSize, Length: uint32(len(b) - layout.PackHeaderSize)}}
	put(t, d, c.Packs[0].Name, b)
	d.remap(t, 0, c, func(entries []layout.Location) { entries[5], entries[6] = layout.Loc(last, 0), layout.Loc(last, 1) })
	if r := clean(t, d); r.LogEnd != last+1 || r.LiveBytes != 2*blockSize || r.Blocks != 2 || r.Objects != 2 {
		t.Fatalf("%+v", r)
	}
	d.remap(t, 0, c, func(entries []layout.Location) { entries[7] = layout.Loc(12345, 0) })
	want(t, d, fsck.KindPack, c.Packs[0].Name)
}
