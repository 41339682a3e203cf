package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
)

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// allEncodings returns the leaf in each encoding that it fits, the slow way.
func allEncodings(entries []Location) map[byte][]byte {
	all := map[byte][]byte{}
	all[leafRuns] = appendRuns(nil, entries)
	low, high, top := uint64(0), uint64(0), uint32(0)
	if i := slices.IndexFunc(entries, Location.Mapped); i >= 0 {
		low = uint64(entries[i].Key())
	}
	for _, l := range entries {
		if l.Mapped() {
			low, high, top = min(low, uint64(l.Key())), max(high, uint64(l.Key())), max(top, l.Index())
		}
	}
	for width := 0; width <= indexBits; width++ {
		if uint64(top)>>width == 0 && (high-low+1)<<width|uint64(top) < 1<<32 {
			all[leafPacked] = appendPacked(nil, entries, key.Key(low), width)
			break
		}
	}
	raw := []byte{leafRaw}
	for _, l := range entries {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(l))
	}
	all[leafRaw] = raw
	return all
}

func TestLeafRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := drawLeaf(t)
		b := AppendLeaf([]byte("before"), entries)[len("before"):]
		all := allEncodings(entries)
		for encoding, other := range all {
			got := make([]Location, LeafBlocks)
			for i := range got {
				got[i] = 99 // must not shine through
			}
			if err := DecodeLeaf(other, got); err != nil {
				t.Fatalf("encoding %d: %v", encoding, err)
			}
			if !slices.Equal(got, entries) {
				t.Fatalf("encoding %d: decoded entries differ", encoding)
			}
			if len(other) < len(b) {
				t.Fatalf("encoding %d takes %d bytes, %d was chosen with %d", encoding, len(other), b[0], len(b))
			}
		}
		if !bytes.Equal(all[b[0]], b) {
			t.Fatalf("encoding %d: bytes differ from the plain way", b[0])
		}
	})
}

func TestLeafChoice(t *testing.T) {
	empty := make([]Location, LeafBlocks)
	full := make([]Location, LeafBlocks)
	for i := range full {
		full[i] = Loc(5, uint32(i))
	}
	edge := make([]Location, LeafBlocks) // numerically one run, but of two objects
	for i := range edge {
		edge[i] = Loc(5, MaxIndex-99) + Location(i)
	}
	leaves := sampleLeaves()
	for _, c := range []struct {
		name     string
		entries  []Location
		encoding byte
		size     int
	}{
		{"empty", empty, leafRuns, 3},
		{"one run", full, leafRuns, 5},
		{"two objects", edge, leafRuns, 1 + 2 + 1 + 4 + 2 + 1 + 1},
		{"runs", leaves[0], leafRuns, len(AppendLeaf(nil, leaves[0]))},
		{"packed", leaves[1], leafPacked, packedSize},
		{"raw", leaves[2], leafRaw, MaxLeafSize},
	} {
		b := AppendLeaf(nil, c.entries)
		if b[0] != c.encoding || len(b) != c.size {
			t.Errorf("%s: encoding %d, %d bytes, want %d, %d", c.name, b[0], len(b), c.encoding, c.size)
		}
	}
}

func TestLeafRules(t *testing.T) {
	uv := binary.AppendUvarint
	run := func(n, k, index int64) []byte {
		return uv(binary.AppendVarint(uv([]byte{leafRuns}, uint64(n)<<1|1), k), uint64(index))
	}
	zeros := func(b []byte, n uint64) []byte { return uv(b, n<<1) }
	packed := func(width byte, base uint64, first uint32) []byte {
		b := make([]byte, packedSize)
		b[0], b[1] = leafPacked, width
		binary.LittleEndian.PutUint64(b[2:], base)
		binary.LittleEndian.PutUint32(b[packedHead:], first)
		return b
	}
	raw := make([]byte, MaxLeafSize)
	raw[0], raw[1] = leafRaw, 7
	maxKey := int64(key.Max)
	for _, c := range []struct {
		name string
		b    []byte
		want string // "" = fine
	}{
		{"empty", nil, "empty"},
		{"encoding 0", make([]byte, 10), "unknown encoding 0"},
		{"encoding 4", []byte{4, 1}, "unknown encoding 4"},
		{"no runs", []byte{leafRuns}, "run at entry 0: length"},
		{"run of none", zeros([]byte{leafRuns}, 0), "run at entry 0: length"},
		{"run too long", zeros([]byte{leafRuns}, LeafBlocks+1), "run at entry 0: length"},
		{"runs too short", zeros([]byte{leafRuns}, LeafBlocks-1), "run at entry 4095: length"},
		{"bytes behind", append(zeros([]byte{leafRuns}, LeafBlocks), 0), "1 bytes after"},
		{"varint too long", append([]byte{leafRuns}, bytes.Repeat([]byte{0xff}, 11)...), "run at entry 0: length"},
		{"no key", uv([]byte{leafRuns}, 3), "run at entry 0: key"},
		{"no index", binary.AppendVarint(uv([]byte{leafRuns}, 3), 1), "run at entry 0: 1 blocks"},
		{"key below 0", run(1, -1, 0), "run at entry 0: key -1"},
		{"key above max", run(LeafBlocks, maxKey+1, 0), "run at entry 0: key"},
		{"key wraps", append(run(1, maxKey, 0), run(1, 1<<63-1, 0)[1:]...), "run at entry 1: key -"},
		{"index above max", run(1, 0, MaxIndex+1), "from index 16777216"},
		{"run past max", run(2, 0, MaxIndex), "2 blocks from index 16777215"},
		{"run to max", zeros(run(2, maxKey, MaxIndex-1), LeafBlocks-2), ""},
		{"packed width", packed(25, 0, 0), "25 bits"},
		{"packed base", packed(10, uint64(maxKey)+1, 0), "from key 1099511627775"},
		{"packed without key", packed(10, 0, 1<<10-1), "packed entry 0 is 0x3ff"},
		{"packed key above max", packed(10, uint64(maxKey), 2<<10), "packed entry 0 is 0x800"},
		{"packed key at max", packed(10, uint64(maxKey), 1<<10), ""},
		{"packed short", packed(10, 0, 0)[1:packedSize], "unknown encoding 10"},
		{"packed long", append(packed(10, 0, 0), 0), "packed in 16395 bytes"},
		{"raw short", raw[:MaxLeafSize-1], "raw in 32768 bytes"},
		{"raw without key", raw, "raw entry 0 is 0x7"},
	} {
		err := DecodeLeaf(c.b, make([]Location, LeafBlocks))
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.want != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error is %v, want ErrDamaged with %q", c.name, err, c.want)
		}
	}
	if err := DecodeLeaf(zeros([]byte{leafRuns}, LeafBlocks), make([]Location, LeafBlocks-1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("too few entries: error is %v", err)
	}
}

func TestUvarintSize(t *testing.T) {
	for bit := range 64 {
		for _, x := range []uint64{1<<bit - 1, 1 << bit, 1<<bit + 1} {
			if got, want := uvarintSize(x), len(binary.AppendUvarint(nil, x)); got != want {
				t.Errorf("%#x takes %d bytes, not %d", x, want, got)
			}
		}
	}
}
