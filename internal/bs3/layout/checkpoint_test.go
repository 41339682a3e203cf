package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
)

func TestCheckpointRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := genCheckpoint().Draw(t, "checkpoint")
		b := AppendCheckpoint([]byte("before"), c)
		got, err := DecodeCheckpoint(b[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, c) {
			t.Fatalf("got %+v, want %+v", got, c)
		}
	})
}

func TestCheckpointRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(c *Checkpoint)
		want   string
	}{
		{"key", func(c *Checkpoint) { c.Key = key.Max + 1 }, "key is above"},
		{"block size", func(c *Checkpoint) { c.BlockSize = 8192 }, "block size is 8192"},
		{"no blocks", func(c *Checkpoint) { c.Blocks = 0 }, "0 blocks"},
		{"too many blocks", func(c *Checkpoint) { c.Blocks = MaxBlocks + 1 }, "17592186044417 blocks"},
		{"pack name", func(c *Checkpoint) { c.Packs[0].Name = VolumeName }, `pack 0: "volume" is not the name`},
		{"pack size", func(c *Checkpoint) { c.Packs[0].Size = PackHeaderSize - 1 }, "pack 0: size is 31"},
		{"leaf order", func(c *Checkpoint) { c.Leaves[1].Leaf = 1 }, "leaf 1 after leaf 1"},
		{"leaf beyond volume", func(c *Checkpoint) { c.Blocks = 13 * LeafBlocks }, "leaf 13 of a volume of 53248 blocks"},
		{"leaf pack", func(c *Checkpoint) { c.Leaves[2].Pack = 2 }, "leaf 8: pack 2 of 2"},
		{"leaf empty", func(c *Checkpoint) { c.Leaves[2].Length = 0 }, "leaf 8: length is 0"},
		{"leaf long", func(c *Checkpoint) { c.Leaves[0].Length = MaxLeafSize + 1 }, "leaf 1: length is 32770"},
		{"leaf in header", func(c *Checkpoint) { c.Leaves[0].Offset = PackHeaderSize - 1 }, "leaf 1: offset 31"},
		{"leaf past pack", func(c *Checkpoint) { c.Leaves[3].Offset++ }, "leaf 13: offset"},
		{"leaf offset overflow", func(c *Checkpoint) { c.Leaves[0].Offset = 1<<64 - 1 }, "leaf 1: offset"},
		{"object order", func(c *Checkpoint) { c.Objects[1].Key = 1 }, "object 1 after object 1"},
		{"object above", func(c *Checkpoint) { c.Objects[2].Key++ }, "object 4328719366 is above the checkpoint's key"},
		{"object epoch", func(c *Checkpoint) { c.Objects[2].Epoch++ }, "object 4328719365: epoch"},
		{"object live", func(c *Checkpoint) { c.Objects[2].Live = 2 }, "2 live of 1 blocks"},
		{"object total", func(c *Checkpoint) { c.Objects[2].Total = MaxObjectBlocks + 1 }, "0 live of 16777217 blocks"},
		{"fence", func(c *Checkpoint) { c.Objects[0].Total = 1 }, "fence true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cp := sampleCheckpoint()
			c.change(cp)
			_, err := DecodeCheckpoint(AppendCheckpoint(nil, cp))
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want ErrDamaged with %q", err, c.want)
			}
		})
	}
}

// sealEnd corrects the checksum in the last four bytes.
func sealEnd(b []byte) {
	binary.LittleEndian.PutUint32(b[len(b)-4:], CRC(b[:len(b)-4]))
}

// TestCheckpointCounts checks that memory is allocated only for entries that
// are there, whatever the counts claim, and that nothing else may be there.
func TestCheckpointCounts(t *testing.T) {
	good := AppendCheckpoint(nil, sampleCheckpoint())
	for _, at := range []int{88, 92, 96} {
		for _, n := range []uint32{0, 1, 5, 1 << 31, 1<<32 - 1} {
			b := bytes.Clone(good)
			if binary.LittleEndian.Uint32(b[at:]) == n {
				continue
			}
			binary.LittleEndian.PutUint32(b[at:], n)
			sealEnd(b)
			if got := allocated(func() {
				if _, err := DecodeCheckpoint(b); !errors.Is(err, ErrDamaged) {
					t.Errorf("count at %d is %d: error is %v", at, n, err)
				}
			}); got > 64<<10 {
				t.Errorf("count at %d is %d: %d bytes were allocated", at, n, got)
			}
		}
	}
	for _, c := range []struct {
		name string
		at   int
		to   byte
		is   error
	}{
		{"reserved", 100, 1, ErrDamaged},
		{"newer", 8, 2, ErrVersion},
		{"name longer than what is left", checkpointHead + 13, 0xff, ErrDamaged},
		{"name a little longer", checkpointHead + 12, 30, ErrDamaged},
	} {
		b := bytes.Clone(good)
		b[c.at] = c.to
		sealEnd(b)
		if _, err := DecodeCheckpoint(b); !errors.Is(err, c.is) {
			t.Errorf("%s: error is %v", c.name, err)
		}
	}
	// The last pack's head is cut off by a name that takes all.
	b := AppendCheckpoint(nil, &Checkpoint{BlockSize: 512, Blocks: 1, Packs: []PackRef{
		{Name: PackName(1, 1), Size: 100}, {Name: PackName(1, 2), Size: 100},
	}})
	b = append(b[:checkpointHead+packRefSize+29+5], 0, 0, 0, 0)
	sealEnd(b)
	if _, err := DecodeCheckpoint(b); !errors.Is(err, ErrDamaged) {
		t.Errorf("cut pack: error is %v", err)
	}
}

func TestPackHeader(t *testing.T) {
	b := AppendPackHeader([]byte{1}, sampleUUID)[1:]
	if len(b) != PackHeaderSize {
		t.Fatalf("%d bytes", len(b))
	}
	if err := CheckPackHeader(append(b, 1, 2, 3), sampleUUID); err != nil {
		t.Error(err)
	}
	if err := CheckPackHeader(b, UUID{1}); !errors.Is(err, ErrMagic) || !strings.Contains(err.Error(), sampleUUID.String()) {
		t.Errorf("another volume's: error is %v", err)
	}
	b[8] = 2
	if err := CheckPackHeader(b, sampleUUID); !errors.Is(err, ErrVersion) {
		t.Errorf("newer: error is %v", err)
	}
}

func TestLeafVerify(t *testing.T) {
	pack, refs := samplePack()
	leaf := pack[refs[0].Offset:][:refs[0].Length]
	if err := refs[0].Verify(leaf); err != nil {
		t.Error(err)
	}
	if err := refs[0].Verify(leaf[1:]); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "leaf 3") {
		t.Errorf("short: error is %v", err)
	}
}
