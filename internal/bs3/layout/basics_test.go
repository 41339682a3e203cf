package layout

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
)

func TestIDs(t *testing.T) {
	u, n := NewUUID(), NewNonce()
	if u == NewUUID() || n == NewNonce() {
		t.Error("two random ids are equal")
	}
	if u[6]>>4 != 4 || u[8]>>6 != 2 {
		t.Errorf("%v is not of version 4", u)
	}
	if got, err := ParseUUID(u.String()); got != u || err != nil {
		t.Errorf("%v parses to %v (%v)", u, got, err)
	}
	if got, err := ParseNonce(n.String()); got != n || err != nil {
		t.Errorf("%v parses to %v (%v)", n, got, err)
	}
	const text = "10111213-1415-4617-9819-1a1b1c1d1e1f"
	if got := sampleUUID.String(); got != text {
		t.Errorf("got %s, want %s", got, text)
	}
	for _, bad := range []string{
		"", text[1:], text + "0", strings.ToUpper(text), strings.ReplaceAll(text, "-", ""), strings.Replace(text, "-", "_", 1),
		strings.Replace(text, "1", "g", 1), "{" + text + "}",
	} {
		if _, err := ParseUUID(bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("UUID %q: error is %v", bad, err)
		}
	}
	const digits = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
	if got := sampleNonce.String(); got != digits {
		t.Errorf("got %s, want %s", got, digits)
	}
	for _, bad := range []string{"", digits[1:], digits + "0", strings.ToUpper(digits), strings.Replace(digits, "a", "g", 1)} {
		if _, err := ParseNonce(bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("nonce %q: error is %v", bad, err)
		}
	}
}

func TestLocation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := key.Key(rapid.Uint64Range(0, uint64(key.Max)).Draw(t, "key"))
		i := rapid.Uint32Range(0, MaxIndex).Draw(t, "index")
		n := rapid.Uint32Range(0, MaxIndex-i).Draw(t, "n")
		l := Loc(k, i)
		if !l.Mapped() || !l.valid() || l.Key() != k || l.Index() != i || l.Add(n) != Loc(k, i+n) {
			t.Fatalf("%d %d is %#x", k, i, uint64(l))
		}
	})
	if l := Location(0); l.Mapped() || l.String() != "unmapped" {
		t.Error("0 is mapped")
	}
	if got := Loc(12, 7).String(); got != "object 12 block 7" {
		t.Error(got)
	}
	if got := Loc(key.Max, MaxIndex); got != 1<<64-1 {
		t.Errorf("the last location is %#x", uint64(got))
	}
}

func TestCRC(t *testing.T) {
	// The check value of CRC-32/ISCSI.
	if got := CRC([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("CRC is %08x", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		rec := rapid.SliceOfN(rapid.Byte(), RecordSize, RecordSize).Draw(t, "record")
		sum := rapid.Uint32().Draw(t, "sum")
		nonce := Nonce(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "nonce"))
		k := rapid.Uint64().Draw(t, "key")
		all := slices.Concat(rec, binary.LittleEndian.AppendUint32(nil, sum), nonce[:], binary.LittleEndian.AppendUint64(nil, k))
		if got, want := RecordCRC(rec, sum, nonce, key.Key(k)), crc32.Checksum(all, crc32.MakeTable(crc32.Castagnoli)); got != want {
			t.Fatalf("got %08x, want %08x", got, want)
		}
	})
}

func TestNames(t *testing.T) {
	if got := CheckpointName(0x1234, 0x56, 0x78); got != "checkpoint/0000000000001234-0000000000000056-00000078" {
		t.Error(got)
	}
	if got := SnapshotName(0x1234, sampleNonce); got != "snapshot/0000000000001234-a0a1a2a3a4a5a6a7a8a9aaabacadaeaf" {
		t.Error(got)
	}
	if got := SnapshotPackName(sampleNonce, 0x78); got != "snapshot/a0a1a2a3a4a5a6a7a8a9aaabacadaeaf/00000078" {
		t.Error(got)
	}
	if got := PackName(0x56, 0x78); got != "map/0000000000000056-00000078" {
		t.Error(got)
	}
	rapid.Check(t, func(t *rapid.T) {
		k := key.Key(rapid.Uint64Range(0, uint64(key.Max)).Draw(t, "key"))
		e, c := rapid.Uint64().Draw(t, "epoch"), rapid.Uint32().Draw(t, "counter")
		if gk, ge, gc, err := ParseCheckpointName(CheckpointName(k, e, c)); err != nil || gk != k || ge != e || gc != c {
			t.Fatalf("%s: %d %d %d %v", CheckpointName(k, e, c), gk, ge, gc, err)
		}
		if ge, gc, err := ParsePackName(PackName(e, c)); err != nil || ge != e || gc != c {
			t.Fatalf("%s: %d %d %v", PackName(e, c), ge, gc, err)
		}
		n := Nonce(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "nonce"))
		if gk, gn, err := ParseSnapshotName(SnapshotName(k, n)); err != nil || gk != k || gn != n {
			t.Fatalf("%s: %d %s %v", SnapshotName(k, n), gk, gn, err)
		}
		if gn, gc, err := ParseSnapshotPackName(SnapshotPackName(n, c)); err != nil || gn != n || gc != c {
			t.Fatalf("%s: %s %d %v", SnapshotPackName(n, c), gn, gc, err)
		}
	})
	for _, name := range []string{
		"", "snapshot/", "snapshot/0000000000001234-a0a1a2a3a4a5a6a7a8a9aaabacadaea", "snapshot/0000000000001234-a0a1a2a3a4a5a6a7a8a9aaabacadaeAF",
		"snapshot/0000010000000000-a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", "snapshot/a0a1a2a3a4a5a6a7a8a9aaabacadaeaf/0000007g",
		"snapshot/a0a1a2a3a4a5a6a7a8a9aaabacadaeaf/00000078x", "snapshot/a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", "snapshot/0000000000001234-a0a1a2a3a4a5a6a7a8a9aaabacadaeaf/1",
	} {
		if _, _, err := ParseSnapshotName(name); !errors.Is(err, ErrMagic) {
			t.Errorf("snapshot name %q: error is %v", name, err)
		}
		if _, _, err := ParseSnapshotPackName(name); !errors.Is(err, ErrMagic) {
			t.Errorf("snapshot pack name %q: error is %v", name, err)
		}
	}
	for _, name := range []string{
		"", "checkpoint/", "checkpoint/1-2-3", "map/0000000000000056-00000078",
		"checkpoint/0000000000001234-0000000000000056-0000007g",
		"checkpoint/0000000000001234-0000000000000056-00000078x",
		"checkpoint/000000000000123A-0000000000000056-00000078",
		"checkpoint/ 000000000001234-0000000000000056-00000078",
		"checkpoint/+000000000001234-0000000000000056-00000078",
		"checkpoint/0000010000000000-0000000000000056-00000078", // key beyond Max
		"checkpoint/000000ffffffffff-0000000000000056-00000078", // the first such
		"Checkpoint/0000000000001234-0000000000000056-00000078",
	} {
		if _, _, _, err := ParseCheckpointName(name); !errors.Is(err, ErrMagic) {
			t.Errorf("checkpoint name %q: error is %v", name, err)
		}
	}
	for _, name := range []string{
		"", "map/", "map/1-2", "map/0000000000000056-00000078 ", "map/0000000000000056-0000007", "map/000000000000005A-00000078",
		"map/-000000000000056-00000078", "checkpoint/0000000000001234-0000000000000056-00000078",
	} {
		if _, _, err := ParsePackName(name); !errors.Is(err, ErrMagic) {
			t.Errorf("pack name %q: error is %v", name, err)
		}
	}
}

func TestSlotOffsets(t *testing.T) {
	// 1024 blocks of 4096 bytes: a page of check values among them, ten of
	// records, two of their checksums.
	got := SlotOffsets(1024, 4096)
	want := SlotLayout{Data: 4096, Records: 4096 + 4<<20 + 4096}
	want.RecordCRCs = want.Records + 10*4096
	want.Size = want.RecordCRCs + 2*4096
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.IntRange(1, 5000).Draw(t, "blocks")
		bs := rapid.SampledFrom([]int{512, 4096}).Draw(t, "block size")
		s := SlotOffsets(blocks, bs)
		ends := []int64{
			SlotCountOffset + 8, s.Data, s.Data + int64(blocks*Stride(bs)), s.Records,
			s.Records + int64(RecordSize*MaxRecords(blocks)), s.RecordCRCs, s.RecordCRCs + int64(4*MaxRecords(blocks)), s.Size,
		}
		if !slices.IsSorted(ends) || s.Size-ends[6] >= 4096 {
			t.Fatalf("parts overlap, or room is wasted: %v", ends)
		}
		for _, at := range []int64{s.Data, s.Records, s.RecordCRCs, s.Size} {
			if at%4096 != 0 {
				t.Fatalf("%+v: not on a page", s)
			}
		}
		h := MemoryHeader{BlockSize: uint32(bs), ChunkBlocks: uint32(blocks), Slots: 3}
		if h.FileSize() != MemoryHeaderSize+3*s.Size {
			t.Fatalf("FileSize is %d", h.FileSize())
		}
	})
}

func TestMemoryRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(h *MemoryHeader)
		want   string
	}{
		{"block size", func(h *MemoryHeader) { h.BlockSize = 0 }, "block size is 0"},
		{"no blocks", func(h *MemoryHeader) { h.ChunkBlocks = 0 }, "0 blocks per chunk"},
		{"many blocks", func(h *MemoryHeader) { h.ChunkBlocks = MaxObjectBlocks + 1 }, "16777217 blocks per chunk"},
		{"no slots", func(h *MemoryHeader) { h.Slots = 0 }, "0 slots"},
		{"many slots", func(h *MemoryHeader) { h.Slots = MaxSlots + 1 }, "65537 slots"},
	} {
		h := sampleMemoryHeader()
		c.change(h)
		if _, err := DecodeMemoryHeader(AppendMemoryHeader(nil, h)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q", c.name, err, c.want)
		}
	}
	b := AppendMemoryHeader(nil, sampleMemoryHeader())
	b[memoryUsed] = 1
	binary.LittleEndian.PutUint32(b[memoryCRC:], CRC(b[:memoryCRC]))
	if _, err := DecodeMemoryHeader(b); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("reserved bytes: error is %v", err)
	}
	b[8] = 3
	if _, err := DecodeMemoryHeader(b); !errors.Is(err, ErrVersion) {
		t.Errorf("newer version: error is %v", err)
	}
}

func TestSlotRules(t *testing.T) {
	page := make([]byte, 4096)
	if _, err := DecodeSlotHeader(page); !errors.Is(err, ErrMagic) {
		t.Errorf("unused slot: error is %v", err)
	}
	// Encoding over an older header leaves nothing of it, and the count alone.
	for i := range page {
		page[i] = 0xee
	}
	EncodeSlotHeader(page, sampleSlotHeader())
	if got, err := DecodeSlotHeader(page); err != nil || got != sampleSlotHeader() {
		t.Errorf("got %+v (%v)", got, err)
	}
	if n, ok := SlotCount(page); n != 0xeeeeeeee || ok || page[SlotHeaderSize] != 0xee {
		t.Error("EncodeSlotHeader wrote beyond the header")
	}
	seal := func() { binary.LittleEndian.PutUint32(page[slotCRC:], CRC(page[:slotCRC])) }
	for _, at := range []int{12, 15, slotUsed, slotCRC - 1} {
		page[at] = 1
		seal()
		if _, err := DecodeSlotHeader(page); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "reserved") {
			t.Errorf("byte %d: error is %v", at, err)
		}
		page[at] = 0
	}
	h := sampleSlotHeader()
	h.Key = key.Max + 1
	EncodeSlotHeader(page, h)
	if _, err := DecodeSlotHeader(page); !errors.Is(err, ErrDamaged) {
		t.Errorf("key above Max: error is %v", err)
	}
	page[8] = 3
	if _, err := DecodeSlotHeader(page); !errors.Is(err, ErrVersion) {
		t.Errorf("newer version: error is %v", err)
	}
}
