package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
)

func TestTailRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := genObject().Draw(t, "object")
		tail := AppendTail([]byte("data"), o)[4:]
		if len(tail) != TailSize(len(o.Records)) {
			t.Fatalf("tail of %d bytes, TailSize says %d", len(tail), TailSize(len(o.Records)))
		}
		size := int64(o.Blocks)*int64(o.BlockSize+4) + int64(len(tail))
		// A read of the maximal tail may reach into the data.
		more := rapid.SliceOfN(rapid.Byte(), 0, int(size)-len(tail)).Draw(t, "data")
		got, err := DecodeTail(append(more, tail...), size)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, o) {
			t.Fatalf("got %+v, want %+v", got, o)
		}
		moves := 0
		for _, r := range o.Records {
			if r.Kind == KindMove {
				moves++
			}
		}
		if want := o.FirstSeq + uint64(len(o.Records)-moves); got.NextSeq() != want {
			t.Fatalf("NextSeq is %d, want %d", got.NextSeq(), want)
		}
	})
}

func TestTailCountsItsRecords(t *testing.T) {
	o := sampleObject()
	o.Footer.Records = 0
	if !bytes.Equal(AppendTail(nil, o), AppendTail(nil, sampleObject())) {
		t.Error("the count of the footer was believed")
	}
}

func TestShortTail(t *testing.T) {
	tail := AppendTail(nil, sampleObject())
	size := int64(len(tail) + len(sampleStored()))
	for n := range tail {
		_, err := DecodeTail(tail[len(tail)-n:], size)
		var short *ShortTailError
		if !errors.As(err, &short) || !errors.Is(err, ErrShortTail) {
			t.Fatalf("%d bytes of %d: error is %v", n, len(tail), err)
		}
		want := len(tail)
		if n < FooterSize {
			want = FooterSize
		}
		if short.Need != want || short.Have != n {
			t.Fatalf("%d bytes of %d: %v", n, len(tail), err)
		}
	}
}

// TestHugeTail checks that memory is used only for what is there, whatever a
// footer claims.
func TestHugeTail(t *testing.T) {
	b := AppendTail(nil, sampleFence())
	binary.LittleEndian.PutUint32(b[footFlags:], 0)
	binary.LittleEndian.PutUint32(b[footBlocks:], MaxObjectBlocks)
	binary.LittleEndian.PutUint32(b[footRecords:], MaxObjectBlocks)
	sealFooter(b)
	need := TailSize(MaxObjectBlocks)
	_, err := DecodeTail(b, int64(need)+MaxObjectBlocks*4100)
	var short *ShortTailError
	if !errors.As(err, &short) || short.Need != need {
		t.Errorf("error is %v", err)
	}
	if _, err := DecodeTail(b, int64(len(b))); !errors.Is(err, ErrDamaged) {
		t.Errorf("error is %v", err)
	}
}

// sealFooter corrects the checksum of a footer.
func sealFooter(foot []byte) {
	binary.LittleEndian.PutUint32(foot[footCRC:], CRC(foot[:footCRC]))
}

func TestTailRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(o *Object)
		want   string
	}{
		{"key", func(o *Object) { o.Key = key.Max + 1 }, "key is above"},
		{"block size", func(o *Object) { o.BlockSize = 1024 }, "block size is 1024"},
		{"block size and length", func(o *Object) { o.BlockSize = 4096 }, "take 16656"},
		{"fence", func(o *Object) { o.Fence = true }, "fence with 4 data blocks"},
		{"kind", func(o *Object) { o.Records[0].Kind = 4 }, "record 0: damaged: record of unknown kind 4"},
		{"no kind", func(o *Object) { o.Records[0].Kind = 0 }, "unknown kind 0"},
		{"no blocks", func(o *Object) { o.Records[2].Blocks = 0 }, "record 2: damaged: move record of no blocks"},
		{"beyond any volume", func(o *Object) { o.Records[0].Block = MaxBlocks - 1 }, "beyond any volume"},
		{"overflow", func(o *Object) { o.Records[0].Block = math.MaxUint64 }, "beyond any volume"},
		{"write past data", func(o *Object) { o.Records[0].Index = 3 }, "record 0: data blocks 3+2 of 4"},
		{"move past data", func(o *Object) { o.Records[2].Index = 4 }, "record 2: data blocks 4+1 of 4"},
		{"write past index", func(o *Object) { o.Records[0].Index = MaxIndex }, "beyond any object"},
		{"write blocks overflow", func(o *Object) { o.Records[0].Blocks = math.MaxUint32 }, "beyond any object"},
		{"write with source", func(o *Object) { o.Records[0].Source = Loc(1, 1) }, "write record with a source"},
		{"zero with source", func(o *Object) { o.Records[1].Source = Loc(1, 1) }, "zero record with data"},
		{"zero with index", func(o *Object) { o.Records[1].Index = 1 }, "zero record with data"},
		{"zero too long", func(o *Object) { o.Records[1].Blocks++ }, "more than 1048576"},
		{"move with seq", func(o *Object) { o.Records[2].Seq = 5 }, "move record with sequence number 5"},
		{"move without source", func(o *Object) { o.Records[2].Source = 0 }, "from source 0x0"},
		{"move from half a source", func(o *Object) { o.Records[2].Source = 5 }, "from source 0x5"},
		{"move past source", func(o *Object) { o.Records[2].Source, o.Records[2].Blocks = Loc(1, MaxIndex), 2 }, "move record of 2 blocks from source"},
		{"move from itself", func(o *Object) { o.Records[2].Source = Loc(o.Key, 0) }, "moves from object"},
		{"seq repeated", func(o *Object) { o.Records[1].Seq-- }, "record 1: sequence number"},
		{"seq skipped", func(o *Object) { o.Records[3].Seq++ }, "record 3: sequence number"},
		{"first seq", func(o *Object) { o.FirstSeq++ }, "record 0: sequence number"},
		{"seq wraps", func(o *Object) {
			o.FirstSeq = math.MaxUint64
			o.Records[0].Seq, o.Records[1].Seq, o.Records[3].Seq = math.MaxUint64, 0, 1
		}, "record 0: sequence number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := sampleObject()
			c.change(o)
			b := AppendTail(sampleStored(), o)
			_, err := DecodeTail(b, int64(len(b)))
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want ErrDamaged with %q", err, c.want)
			}
		})
	}
}

func TestFooterRules(t *testing.T) {
	for _, c := range []struct {
		name string
		at   int
		is   error
		want string
	}{
		{"flags", footFlags + 1, ErrDamaged, "unknown flags"},
		{"reserved", footReserved, ErrDamaged, "reserved"},
		{"reserved end", footCRC - 1, ErrDamaged, "reserved"},
		{"blocks", footBlocks + 3, ErrDamaged, "data blocks, more than"},
		{"records", footRecords + 3, ErrDamaged, "records, more than"},
		{"encoding", footEncoding, ErrVersion, "encoding 128 of its data"},
		{"record crc", footRecCRC, ErrDamaged, "checksum of the records"},
		{"newer", footVersion + 1, ErrVersion, "version 32770, not 2"},
		{"magic", footMagic, ErrMagic, "magic is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := AppendTail(sampleStored(), sampleObject())
			foot := b[len(b)-FooterSize:]
			foot[c.at] ^= 0x80
			sealFooter(foot)
			_, err := DecodeTail(b, int64(len(b)))
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %v with %q", err, c.is, c.want)
			}
		})
	}
	b := AppendTail(nil, sampleFence())
	b[footVersion] = 1
	if _, err := DecodeTail(b, int64(len(b))); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 1, not 2") {
		t.Errorf("version 1: error is %v", err)
	}
	b[footVersion] = 0
	if _, err := DecodeTail(b, int64(len(b))); !errors.Is(err, ErrDamaged) {
		t.Errorf("version 0: error is %v", err)
	}
	if _, err := DecodeTail(b, int64(len(b))-1); !errors.Is(err, ErrMagic) {
		t.Errorf("object shorter than a footer: error is %v", err)
	}
	if _, err := DecodeTail(append(b, b...), int64(len(b))); !errors.Is(err, ErrDamaged) {
		t.Errorf("tail longer than the object: error is %v", err)
	}
}

// TestChecks compares check values with their definition, and checks that no
// other block, volume, object or place has them.
func TestChecks(t *testing.T) {
	data, stored, stride := sampleData(), sampleStored(), Stride(sampleBlockSize)
	for i := range 4 {
		all := slices.Concat(data[i*sampleBlockSize:][:sampleBlockSize], sampleUUID[:], []byte{5, 4, 3, 2, 1, 0, 0, 0, byte(i), 0, 0, 0})
		if got := binary.LittleEndian.Uint32(stored[i*stride+sampleBlockSize:]); got != CRC(all) {
			t.Errorf("check value of block %d is %08x, want %08x", i, got, CRC(all))
		}
	}
	other := sampleUUID
	other[15]++
	one := stored[stride:][:stride]
	for what, c := range map[string]struct {
		checks *Checks
		index  uint32
		want   bool
	}{
		"itself":         {NewChecks(sampleUUID, 0x0102030405), 1, true},
		"another volume": {NewChecks(other, 0x0102030405), 1, false},
		"another object": {NewChecks(sampleUUID, 0x0102030404), 1, false},
		"another place":  {NewChecks(sampleUUID, 0x0102030405), 2, false},
	} {
		if crc, ok := c.checks.Verify(c.index, one); ok != c.want || crc != sampleCRCs()[1] {
			t.Errorf("%s: verifies: %t", what, ok)
		}
	}
	var values []byte
	for i := range 4 {
		values = append(values, stored[i*stride+sampleBlockSize:][:CheckSize]...)
	}
	if got := AddSum(AddSum(0, stored[:stride], sampleBlockSize), stored[stride:], sampleBlockSize); got != CRC(values) {
		t.Errorf("sum is %08x, want %08x", got, CRC(values))
	}
	blocks := make([]byte, len(data))
	if CopyBlocks(blocks, stored, sampleBlockSize); !bytes.Equal(blocks, data) {
		t.Error("CopyBlocks copies something else")
	}
}

func TestMaxTailSize(t *testing.T) {
	if got, want := MaxTailSize(1024), (1024+256)*32+128; got != want {
		t.Errorf("MaxTailSize is %d, want %d", got, want)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, r := range genObject().Draw(t, "object").Records {
			b := AppendRecord([]byte{1}, r)[1:]
			put := bytes.Repeat([]byte{0xee}, RecordSize+1)
			PutRecord(put, r)
			if len(b) != RecordSize || !bytes.Equal(put[:RecordSize], b) || put[RecordSize] != 0xee {
				t.Fatalf("AppendRecord writes %x, PutRecord %x", b, put)
			}
			if got, err := DecodeRecord(put); err != nil || got != r {
				t.Fatalf("got %+v (%v), want %+v", got, err, r)
			}
		}
	})
}

func TestKindString(t *testing.T) {
	for k, want := range map[Kind]string{KindWrite: "write", KindZero: "zero", KindMove: "move", 9: "kind 9"} {
		if k.String() != want {
			t.Errorf("got %q, want %q", k, want)
		}
	}
}

// TestNoAllocation checks that what runs for each write and each object
// allocates nothing.
func TestNoAllocation(t *testing.T) {
	o := sampleObject()
	buf := make([]byte, 0, MaxLeafSize)
	rec := AppendRecord(nil, o.Records[0])
	checks, stored := NewChecks(sampleUUID, 7), sampleStored()
	leaves := sampleLeaves()
	entries := make([]Location, LeafBlocks)
	for name, f := range map[string]func(){
		"AppendTail":   func() { AppendTail(buf, o) },
		"AppendRecord": func() { AppendRecord(buf, o.Records[0]) },
		"PutRecord":    func() { PutRecord(rec, o.Records[0]) },
		"DecodeRecord": func() { _, _ = DecodeRecord(rec) },
		"RecordCRC":    func() { RecordCRC(rec, 5, sampleNonce, 7) },
		"Checks":       func() { checks.Verify(0, stored[:Stride(sampleBlockSize)]) },
		"AddSum":       func() { AddSum(0, stored, sampleBlockSize) },
		"slot header":  func() { EncodeSlotHeader(buf[:4096], sampleSlotHeader()); PutSlotCount(buf[:4096], 1) },
		"leaf": func() {
			for _, l := range leaves {
				if err := DecodeLeaf(AppendLeaf(buf, l), entries); err != nil {
					panic(err)
				}
			}
		},
	} {
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
