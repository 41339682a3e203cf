package layout

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Each fuzz target feeds one decoder. With seal the checksums are corrected
// first, so that the code behind them is reached. A decoder must not panic, must
// return one of the named errors, must not allocate memory for what is not
// there, and what it accepts must encode to the same bytes.

func refused(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !isNamed(err) {
		t.Fatalf("error without a name: %v", err)
	}
	return err != nil
}

func FuzzDecodeTail(f *testing.F) {
	for _, o := range []*Object{sampleObject(), sampleFence()} {
		b := AppendTail(nil, o)
		f.Add(b, uint32(o.DataSize()), true)
		f.Add(b, uint32(0), false)
	}
	f.Fuzz(func(t *testing.T, tail []byte, data uint32, seal bool) {
		if seal && len(tail) >= FooterSize {
			tail = bytes.Clone(tail)
			foot := tail[len(tail)-FooterSize:]
			records := binary.LittleEndian.Uint32(foot[footRecords:])
			if need := TailSize(int(records)); need <= len(tail) {
				binary.LittleEndian.PutUint32(foot[footRecCRC:], CRC(tail[len(tail)-need:len(tail)-FooterSize]))
			}
			sealFooter(foot)
		}
		o, err := DecodeTail(tail, int64(len(tail))+int64(data))
		if refused(t, err) {
			return
		}
		again := AppendTail(nil, o)
		if !bytes.Equal(again, tail[len(tail)-len(again):]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again, tail)
		}
		if o.NextSeq() < o.FirstSeq {
			t.Fatal("sequence numbers wrapped")
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	for _, r := range sampleObject().Records {
		f.Add(AppendRecord(nil, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if refused(t, err) {
			return
		}
		if again := AppendRecord(nil, r); !bytes.Equal(again, b[:RecordSize]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again, b)
		}
	})
}

func FuzzDecodeCheckpoint(f *testing.F) {
	b := AppendCheckpoint(nil, sampleCheckpoint())
	f.Add(b, true)
	f.Add(b, false)
	f.Add(AppendCheckpoint(nil, &Checkpoint{BlockSize: 512, Blocks: 1}), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= 4 {
			b = bytes.Clone(b)
			sealEnd(b)
		}
		c, err := DecodeCheckpoint(b)
		if refused(t, err) {
			return
		}
		if again := AppendCheckpoint(nil, c); !bytes.Equal(again, b) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again, b)
		}
	})
}

func FuzzDecodeLeaf(f *testing.F) {
	for _, leaf := range sampleLeaves() {
		f.Add(AppendLeaf(nil, leaf))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries := make([]Location, LeafBlocks)
		if refused(t, DecodeLeaf(b, entries)) {
			return
		}
		for i, l := range entries {
			if !l.valid() {
				t.Fatalf("entry %d is %#x", i, uint64(l))
			}
		}
		// A leaf has several encodings; ours is never larger than another.
		again := AppendLeaf(nil, entries)
		if len(again) > len(b) {
			t.Fatalf("encodes to %d bytes, was %d", len(again), len(b))
		}
		second := make([]Location, LeafBlocks)
		if err := DecodeLeaf(again, second); err != nil || !slices.Equal(entries, second) {
			t.Fatalf("does not round trip: %v", err)
		}
	})
}

func FuzzDecodeVolume(f *testing.F) {
	f.Add([]byte(volumeMiddle(f)), true)
	f.Add([]byte(volumeMagic+volumeMiddle(f)), false)
	f.Add([]byte(strings.Replace(volumeMiddle(f), `"format": 2,`, `"format": 2, "features": ["clone"],`, 1)), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = sealVolume(string(b))
		}
		v, err := DecodeVolume(b)
		if refused(t, err) {
			return
		}
		again, err := EncodeVolume(v)
		if err != nil {
			t.Fatalf("does not encode again: %v", err)
		}
		second, err := DecodeVolume(again)
		if err != nil || !utf8.Valid(again) {
			t.Fatalf("does not decode again: %v\n%s", err, again)
		}
		v.Created, v.Writer.Since = v.Created.UTC(), v.Writer.Since.UTC()
		if v.Checkpoints == nil {
			v.Checkpoints = []string{}
		}
		if !reflect.DeepEqual(v, second) {
			t.Fatalf("got %+v, want %+v", second, v)
		}
	})
}

func FuzzDecodeMemoryHeader(f *testing.F) {
	b := AppendMemoryHeader(nil, sampleMemoryHeader())
	f.Add(b[:64], true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			page := make([]byte, MemoryHeaderSize)
			copy(page, b)
			sealEnd(page)
			b = page
		}
		h, err := DecodeMemoryHeader(b)
		if refused(t, err) {
			return
		}
		if again := AppendMemoryHeader(nil, h); !bytes.Equal(again, b[:MemoryHeaderSize]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again[:64], b[:64])
		}
		if h.FileSize() <= MemoryHeaderSize {
			t.Fatalf("%+v: file of %d bytes", h, h.FileSize())
		}
	})
}

func FuzzDecodeSlotHeader(f *testing.F) {
	b := make([]byte, SlotHeaderSize)
	EncodeSlotHeader(b, sampleSlotHeader())
	f.Add(b, true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= SlotHeaderSize {
			b = bytes.Clone(b)
			sealEnd(b[:SlotHeaderSize])
		}
		h, err := DecodeSlotHeader(b)
		if refused(t, err) {
			return
		}
		again := make([]byte, SlotHeaderSize)
		EncodeSlotHeader(again, h)
		if !bytes.Equal(again, b[:SlotHeaderSize]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again, b)
		}
	})
}

func FuzzDecodeLogHeader(f *testing.F) {
	b := AppendLogHeader(nil, sampleLogHeader())
	f.Add(b[:64], true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			page := make([]byte, LogHeaderSize)
			copy(page, b)
			sealEnd(page[:logCRC+4])
			b = page
		}
		h, err := DecodeLogHeader(b)
		if refused(t, err) {
			return
		}
		if again := AppendLogHeader(nil, h); !bytes.Equal(again, b[:LogHeaderSize]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again[:64], b[:64])
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	b := AppendFrame(nil, sampleFrame())
	f.Add(b, true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= FrameHeaderSize {
			b = bytes.Clone(b)
			records := int64(binary.LittleEndian.Uint32(b[84:]))
			binary.LittleEndian.PutUint32(b[frameRecCRC:], CRC(b[FrameHeaderSize:min(int64(len(b)), FrameHeaderSize+RecordSize*records)]))
			sealEnd(b[:FrameHeaderSize])
		}
		fr, err := DecodeFrame(b)
		if refused(t, err) {
			return
		}
		if again := AppendFrame(nil, fr); !bytes.Equal(again, b[:len(again)]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again, b)
		}
		if h, err := DecodeFrameHeader(b); err != nil || h != fr.FrameHeader || h.NextSeq() < h.FirstSeq || h.Size() < h.HeadSize()+h.DataSize() {
			t.Fatalf("header %+v, %v", h, err)
		}
	})
}

func FuzzFrameData(f *testing.F) {
	f.Add(sampleStored(), true)
	f.Add(sampleStored(), false)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		fr := sampleFrame()
		if seal {
			fr.Sum = AddSum(0, data, sampleBlockSize)
		}
		crcs, err := fr.VerifyData(data)
		if refused(t, err) {
			return
		}
		for i, crc := range crcs {
			if want := CRC(data[i*Stride(sampleBlockSize):][:sampleBlockSize]); crc != want {
				t.Fatalf("CRC of block %d is %08x, want %08x", i, crc, want)
			}
		}
	})
}

func FuzzDecodeCacheHeader(f *testing.F) {
	b := AppendCacheHeader(nil, sampleCacheHeader())
	f.Add(b[:64], true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			page := make([]byte, CacheHeaderSize)
			copy(page, b)
			sealEnd(page)
			b = page
		}
		h, err := DecodeCacheHeader(b)
		if refused(t, err) {
			return
		}
		if again := AppendCacheHeader(nil, h); !bytes.Equal(again, b[:CacheHeaderSize]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again[:64], b[:64])
		}
		if h.FileSize() <= CacheHeaderSize {
			t.Fatalf("%+v: file of %d bytes", h, h.FileSize())
		}
	})
}

func FuzzDecodeCacheSet(f *testing.F) {
	b := make([]byte, CacheSetSize)
	sampleCacheSet().Encode(b)
	f.Add(b, true)
	f.Add(b, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			page := make([]byte, CacheSetSize)
			copy(page, b)
			sealEnd(page)
			b = page
		}
		var s CacheSet
		if refused(t, s.Decode(b)) {
			return
		}
		again := make([]byte, CacheSetSize)
		if s.Encode(again); !bytes.Equal(again, b[:CacheSetSize]) {
			t.Fatal("encodes to other bytes")
		}
	})
}

func FuzzCheckPackHeader(f *testing.F) {
	f.Add(AppendPackHeader(nil, sampleUUID), true)
	f.Add(AppendPackHeader(nil, sampleUUID), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= PackHeaderSize {
			b = bytes.Clone(b)
			sealEnd(b[:PackHeaderSize])
		}
		if refused(t, CheckPackHeader(b, sampleUUID)) {
			return
		}
		if again := AppendPackHeader(nil, sampleUUID); !bytes.Equal(again, b[:PackHeaderSize]) {
			t.Fatalf("encodes to other bytes:\n%x\n%x", again, b)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add(CheckpointName(1, 2, 3))
	f.Add(PackName(2, 3))
	f.Add(SnapshotName(1, sampleNonce))
	f.Add(SnapshotPackName(sampleNonce, 3))
	f.Add(sampleUUID.String())
	f.Add(sampleNonce.String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, e, c, err := ParseCheckpointName(s); !refused(t, err) && CheckpointName(k, e, c) != s {
			t.Errorf("checkpoint name %q does not round trip", s)
		}
		if k, n, err := ParseSnapshotName(s); !refused(t, err) && SnapshotName(k, n) != s {
			t.Errorf("%q is parsed as the directory of a snapshot", s)
		}
		if n, c, err := ParseSnapshotPackName(s); !refused(t, err) && SnapshotPackName(n, c) != s {
			t.Errorf("%q is parsed as a pack of a snapshot", s)
		}
		if e, c, err := ParsePackName(s); !refused(t, err) && PackName(e, c) != s {
			t.Errorf("pack name %q does not round trip", s)
		}
		if u, err := ParseUUID(s); !refused(t, err) && u.String() != s {
			t.Errorf("UUID %q does not round trip", s)
		}
		if n, err := ParseNonce(s); !refused(t, err) && n.String() != s {
			t.Errorf("nonce %q does not round trip", s)
		}
	})
}
