package rcache

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
)

// overwriter writes the blocks of a volume at random, an object of some at a time.
type overwriter struct {
	rnd    *rand.Rand
	places []layout.Location // where the blocks lie
	next   key.Key
}

func newOverwriter(blocks int) *overwriter {
	return &overwriter{rnd: rand.New(rand.NewPCG(3, 4)), places: make([]layout.Location, blocks)}
}

// where is a Where.
func (o *overwriter) where(block uint64) layout.Location { return o.places[block] }

// write overwrites n blocks, which lie in one object.
func (o *overwriter) write(n int) (loc layout.Location, blocks []uint64) {
	loc = layout.Loc(o.next, 0)
	o.next += key.Key(1 + o.rnd.IntN(100)) // others write objects, too
	for i := range n {
		b := o.rnd.Uint64N(uint64(len(o.places)))
		blocks = append(blocks, b)
		o.places[b] = loc.Add(uint32(i))
	}
	return loc, blocks
}

// TestDeadBlocksGoFirst checks that what is written again and again takes no more room
// than what lives of it, whether it is read or not.
func TestDeadBlocksGoFirst(t *testing.T) {
	const frames, object = 8192, 128
	for name, reads := range map[string]bool{"written": false, "written and read": true} {
		o := newOverwriter(frames / 2)
		c, err := New(frames*blockSize, blockSize, o.where)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, object*blockSize)
		p := make([]byte, blockSize)
		for range 4 * frames / object {
			loc, blocks := o.write(object)
			c.Put(loc, blocks, data, blockSize)
			for range object {
				if b := o.rnd.IntN(frames / 2); reads && o.places[b].Mapped() && !c.Get(o.places[b], p) {
					c.Put(o.places[b], []uint64{uint64(b)}, p, blockSize)
				}
			}
		}
		missing := 0
		for _, loc := range o.places {
			if loc.Mapped() && !c.Has(loc) {
				missing++
			}
		}
		if missing > len(o.places)/100 {
			t.Errorf("%s: of %d blocks %d are not in a cache twice as large", name, len(o.places), missing)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskDropsTheDeadFirst checks the same for the cache on the disk, and for the next
// process that finds its file.
func TestDiskDropsTheDeadFirst(t *testing.T) {
	const sets, object = 200, 1024
	const blocks = sets * layout.CacheSetBlocks / 2
	path := filepath.Join(t.TempDir(), "cache")
	o := newOverwriter(blocks)
	d := openDiskOf(t, path, sets, o.where)
	data := bytes.Repeat([]byte{7}, diskBlock)
	stored := func(loc layout.Location, n int) []byte {
		return layouttest.Stored(diskUUID, loc.Key(), loc.Index(), bytes.Repeat(data, n), diskBlock)
	}
	for i := range 4 * 2 * blocks / object {
		loc, numbers := o.write(object)
		ended := make(chan struct{})
		if d.Lend(loc, 1, numbers, stored(loc, object), func() { close(ended) }) == nil {
			t.Fatal("nothing was lent")
		}
		<-ended
		if i%40 == 20 {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			d = openDiskOf(t, path, sets, o.where)
		}
	}
	missing := 0
	for _, loc := range o.places {
		if loc.Mapped() {
			d.Get(loc, 1, make([]byte, diskBlock), func(_, _ int, found bool) {
				if !found {
					missing++
				}
			})
		}
	}
	if t.Logf("%d of %d blocks are missing", missing, blocks); missing > blocks/100 {
		t.Errorf("of %d blocks %d are not in a cache twice as large", blocks, missing)
	}
	if s := d.Stats(); s.Dropped > 0 || s.Damaged > 0 || s.Err != nil {
		t.Errorf("%+v", s)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDiskIsNotAskedForTheDead: where nothing is to be stored, the disk has nothing to do.
func TestDiskIsNotAskedForTheDead(t *testing.T) {
	inner := openDisk(t, filepath.Join(t.TempDir(), "cache"), 2)
	broken := &brokenFile{diskFile: inner.file, reads: errors.New("it was asked")}
	d := newDisk(broken, inner.head, func(uint64) layout.Location { return 0 }, func(err error) { t.Error(err) })
	loc := layout.Loc(5, 0)
	d.Put(loc, 1, numbers(10), storedOf(loc, 1, 10))
	none := slices.Repeat([]uint64{layout.NoBlock}, 10)
	d.Put(loc, 1, none, storedOf(loc, 1, 10))
	if d.Lend(loc, 1, none, storedOf(loc, 1, 10), func() {}) == nil {
		t.Error("nothing was lent")
	}
	if err := d.Close(); err != nil { // when all is written
		t.Error(err)
	}
}
