package layout

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew (only for a new format version)")

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: encoded bytes differ from the golden file: a change of the format needs a new version", name)
	}
}

// TestGolden pins the bytes of every format. It decodes the encoder's output,
// which golden has found equal to the file.
func TestGolden(t *testing.T) {
	check := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s decodes to\n%+v, want\n%+v", what, got, want)
		}
	}
	for name, o := range map[string]*Object{"object-v2": sampleObject(), "fence-v2": sampleFence()} {
		var data []byte
		if !o.Fence {
			data = sampleStored()
		}
		b := AppendTail(data, o)
		golden(t, name, b)
		got, err := DecodeTail(b, int64(len(b)))
		check(name, got, o, err)
	}

	c := sampleCheckpoint()
	b := AppendCheckpoint(nil, c)
	golden(t, "checkpoint-v1", b)
	gotC, err := DecodeCheckpoint(b)
	check("checkpoint", gotC, c, err)

	pack, refs := samplePack()
	golden(t, "pack-v1", pack)
	if err := CheckPackHeader(pack, sampleUUID); err != nil {
		t.Error(err)
	}
	for i, leaf := range sampleLeaves() {
		r := refs[i]
		enc := pack[r.Offset : r.Offset+uint64(r.Length)]
		if int(enc[0]) != i+1 {
			t.Errorf("sample leaf %d has encoding %d", i, enc[0])
		}
		got := make([]Location, LeafBlocks)
		err := DecodeLeaf(enc, got)
		check("leaf", got, leaf, err)
		if err := r.Verify(enc); err != nil {
			t.Error(err)
		}
	}

	logged := sampleVolume()
	logged.LocalLog = &LocalLog{Host: "0123456789abcdef0123456789abcdef", Hostname: "host <1>", Path: "/var/cache/bs3"}
	for name, v := range map[string]*Volume{
		"volume-v2.json": sampleVolume(), "volume-log-v2.json": logged, "volume-snapshots-v2.json": sampleVolumeWithSnapshots(),
	} {
		b, err := EncodeVolume(v)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b)
		got, err := DecodeVolume(b)
		check(name, got, v, err)
	}

	m := sampleMemoryHeader()
	b = AppendMemoryHeader(nil, m)
	golden(t, "memory-v2", b)
	gotM, err := DecodeMemoryHeader(b)
	check("chunk memory", gotM, m, err)

	l := sampleLogHeader()
	b = AppendLogHeader(nil, l)
	golden(t, "log-v2", b)
	gotL, err := DecodeLogHeader(b)
	check("local log", gotL, l, err)

	fr := sampleFrame()
	b = append(AppendFrame(nil, fr), sampleStored()...)
	golden(t, "frame-v2", b)
	gotF, err := DecodeFrame(b)
	check("frame", gotF, fr, err)
	crcs, err := gotF.VerifyData(b[fr.HeadSize():])
	check("data of a frame", crcs, sampleCRCs(), err)

	ch := sampleCacheHeader()
	b = AppendCacheHeader(nil, ch)
	golden(t, "cache-v3", b)
	gotCH, err := DecodeCacheHeader(b)
	check("disk cache", gotCH, ch, err)
	cs := sampleCacheSet()
	b = make([]byte, CacheSetSize)
	cs.Encode(b)
	golden(t, "cache-set-v3", b)
	var gotCS CacheSet
	err = gotCS.Decode(b)
	check("set of the disk cache", &gotCS, cs, err)

	// The page of a slot, with a record and its checksum behind it.
	page := make([]byte, 4096, 4096+RecordSize+4)
	EncodeSlotHeader(page, sampleSlotHeader())
	PutSlotCount(page, 0x01020304)
	rec := AppendRecord(nil, sampleObject().Records[0])
	crc := RecordCRC(rec, 0x81828384, sampleNonce, 0x0102030405)
	page = append(page, rec...)
	page = append(page, byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24))
	golden(t, "slot-v2", page)
	gotS, err := DecodeSlotHeader(page)
	check("slot", gotS, sampleSlotHeader(), err)
	if n, ok := SlotCount(page); n != 0x01020304 || !ok {
		t.Errorf("slot count is %#x, %t", n, ok)
	}
}

// TestFlips checks that no byte of any format can change unnoticed.
func TestFlips(t *testing.T) {
	wrong := func(what string, at int, err error) {
		t.Helper()
		if !isNamed(err) {
			t.Errorf("%s with byte %d changed: error is %v", what, at, err)
		}
	}
	o := sampleObject()
	b := AppendTail(nil, o)
	size := int64(len(b) + len(sampleStored()))
	eachFlip(b, func(at int, f []byte) { _, err := DecodeTail(f, size); wrong("object", at, err) })
	checks := NewChecks(o.UUID, o.Key)
	eachFlip(sampleStored()[:Stride(sampleBlockSize)], func(at int, f []byte) {
		if _, ok := checks.Verify(0, f); ok {
			t.Errorf("a stored block with byte %d changed verifies", at)
		}
	})

	b = AppendCheckpoint(nil, sampleCheckpoint())
	eachFlip(b, func(at int, f []byte) { _, err := DecodeCheckpoint(f); wrong("checkpoint", at, err) })

	pack, refs := samplePack()
	eachFlip(pack[:PackHeaderSize], func(at int, f []byte) { wrong("pack", at, CheckPackHeader(f, sampleUUID)) })
	leaf := pack[refs[0].Offset : refs[0].Offset+uint64(refs[0].Length)]
	eachFlip(leaf, func(at int, f []byte) { wrong("leaf", at, refs[0].Verify(f)) })

	b, err := EncodeVolume(sampleVolume())
	if err != nil {
		t.Fatal(err)
	}
	eachFlip(b, func(at int, f []byte) { _, err := DecodeVolume(f); wrong("volume record", at, err) })

	b = AppendMemoryHeader(nil, sampleMemoryHeader())
	eachFlip(b, func(at int, f []byte) { _, err := DecodeMemoryHeader(f); wrong("chunk memory", at, err) })

	b = AppendLogHeader(nil, sampleLogHeader())
	eachFlip(b, func(at int, f []byte) { _, err := DecodeLogHeader(f); wrong("local log", at, err) })
	b = AppendFrame(nil, sampleFrame())
	eachFlip(b, func(at int, f []byte) { _, err := DecodeFrame(f); wrong("frame", at, err) })
	eachFlip(sampleStored(), func(at int, f []byte) { _, err := sampleFrame().VerifyData(f); wrong("data of a frame", at, err) })

	b = AppendCacheHeader(nil, sampleCacheHeader())
	eachFlip(b, func(at int, f []byte) { _, err := DecodeCacheHeader(f); wrong("disk cache", at, err) })
	b = make([]byte, CacheSetSize)
	sampleCacheSet().Encode(b)
	eachFlip(b, func(at int, f []byte) { wrong("set of the disk cache", at, new(CacheSet).Decode(f)) })

	b = make([]byte, SlotHeaderSize)
	EncodeSlotHeader(b, sampleSlotHeader())
	eachFlip(b, func(at int, f []byte) { _, err := DecodeSlotHeader(f); wrong("slot", at, err) })
	b = make([]byte, SlotCountOffset+8)
	PutSlotCount(b, 17)
	eachFlip(b[SlotCountOffset:], func(at int, f []byte) {
		if n, ok := SlotCount(append(make([]byte, SlotCountOffset), f...)); ok {
			t.Errorf("the count of a slot with byte %d changed is %d", at, n)
		}
	})
}

// TestCut checks that nothing decodes that was cut off anywhere or that has
// bytes behind it.
func TestCut(t *testing.T) {
	v, err := EncodeVolume(sampleVolume())
	if err != nil {
		t.Fatal(err)
	}
	slot := make([]byte, SlotHeaderSize)
	EncodeSlotHeader(slot, sampleSlotHeader())
	set := make([]byte, CacheSetSize)
	sampleCacheSet().Encode(set)
	pack, refs := samplePack()
	entries := make([]Location, LeafBlocks)
	for what, c := range map[string]struct {
		b      []byte
		decode func(b []byte) error
		longer bool // bytes behind it are ignored
	}{
		"object":     {AppendTail(sampleStored(), sampleObject()), func(b []byte) error { _, err := DecodeTail(b, int64(len(b))); return err }, false},
		"checkpoint": {AppendCheckpoint(nil, sampleCheckpoint()), func(b []byte) error { _, err := DecodeCheckpoint(b); return err }, false},
		"volume":     {v, func(b []byte) error { _, err := DecodeVolume(b); return err }, false},
		"memory":     {AppendMemoryHeader(nil, sampleMemoryHeader()), func(b []byte) error { _, err := DecodeMemoryHeader(b); return err }, true},
		"log":        {AppendLogHeader(nil, sampleLogHeader()), func(b []byte) error { _, err := DecodeLogHeader(b); return err }, true},
		"frame":      {AppendFrame(nil, sampleFrame()), func(b []byte) error { _, err := DecodeFrame(b); return err }, true},
		"frame data": {sampleStored(), func(b []byte) error { _, err := sampleFrame().VerifyData(b); return err }, false},
		"cache":      {AppendCacheHeader(nil, sampleCacheHeader()), func(b []byte) error { _, err := DecodeCacheHeader(b); return err }, true},
		"cache set":  {set, new(CacheSet).Decode, true},
		"slot":       {slot, func(b []byte) error { _, err := DecodeSlotHeader(b); return err }, true},
		"pack":       {pack[:PackHeaderSize], func(b []byte) error { return CheckPackHeader(b, sampleUUID) }, true},
		"leaf":       {pack[refs[0].Offset:][:refs[0].Length], func(b []byte) error { return DecodeLeaf(b, entries) }, false},
		"packed":     {pack[refs[1].Offset:][:refs[1].Length], func(b []byte) error { return DecodeLeaf(b, entries) }, false},
		"raw":        {pack[refs[2].Offset:][:refs[2].Length], func(b []byte) error { return DecodeLeaf(b, entries) }, false},
		"record":     {AppendRecord(nil, sampleObject().Records[0]), func(b []byte) error { _, err := DecodeRecord(b); return err }, true},
	} {
		if err := c.decode(c.b); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for n := range c.b {
			if err := c.decode(c.b[:n]); !isNamed(err) {
				t.Errorf("%s cut to %d of %d bytes: error is %v", what, n, len(c.b), err)
			}
		}
		if err := c.decode(append(bytes.Clone(c.b), 0)); isNamed(err) == c.longer {
			t.Errorf("%s with a byte behind: error is %v", what, err)
		}
	}
}
