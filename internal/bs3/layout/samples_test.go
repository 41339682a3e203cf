package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
)

// The samples use every field, with different bytes where possible, so that the
// golden files show if two fields change places.

var (
	sampleUUID  = UUID{0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x46, 0x17, 0x98, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f}
	sampleNonce = Nonce{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}
)

const sampleBlockSize = 512

// sampleData is four blocks.
func sampleData() []byte {
	data := make([]byte, 4*sampleBlockSize)
	for i := range data {
		data[i] = byte(i/sampleBlockSize*31 + i*7)
	}
	return data
}

// sampleStored is sampleData with its check values, in the object sampleObject.
func sampleStored() []byte {
	checks := NewChecks(sampleUUID, 0x0102030405)
	var stored []byte
	for b := sampleData(); len(b) > 0; b = b[sampleBlockSize:] {
		stored = append(stored, b[:sampleBlockSize]...)
		stored = binary.LittleEndian.AppendUint32(stored, checks.Value(uint32(len(stored)/Stride(sampleBlockSize)), CRC(b[:sampleBlockSize])))
	}
	return stored
}

// sampleCRCs are the CRCs of the blocks of sampleData.
func sampleCRCs() (crcs []uint32) {
	for b := sampleData(); len(b) > 0; b = b[sampleBlockSize:] {
		crcs = append(crcs, CRC(b[:sampleBlockSize]))
	}
	return crcs
}

func sampleObject() *Object {
	o := &Object{
		Footer: Footer{
			UUID: sampleUUID, Nonce: sampleNonce, Key: 0x0102030405, Epoch: 0x1112131415161718,
			FirstSeq: 0x2122232425262728, BlockSize: sampleBlockSize, Blocks: 4, Records: 4,
		},
		Records: []Record{
			{Block: 0x31323334, Blocks: 2, Kind: KindWrite, Index: 0, Seq: 0x2122232425262728},
			{Block: 0x41424344, Blocks: MaxZeroBlocks, Kind: KindZero, Seq: 0x2122232425262729},
			{Block: 0x51525354, Blocks: 1, Kind: KindMove, Index: 3, Source: Loc(0x0102030404, 0x616263)},
			{Block: 0x71727374, Blocks: 1, Kind: KindWrite, Index: 2, Seq: 0x212223242526272a},
		},
	}
	o.Sum = AddSum(0, sampleStored(), sampleBlockSize)
	return o
}

func sampleFence() *Object {
	return &Object{
		Footer:  Footer{UUID: sampleUUID, Nonce: sampleNonce, Key: 7, Epoch: 3, FirstSeq: 12, BlockSize: 4096, Fence: true},
		Records: []Record{},
	}
}

// sampleLeaves returns one leaf for each encoding.
func sampleLeaves() [][]Location {
	runs, packed, raw := make([]Location, LeafBlocks), make([]Location, LeafBlocks), make([]Location, LeafBlocks)
	for i := range LeafBlocks {
		if i >= 100 && i < 3000 {
			runs[i] = Loc(key.Key(40+i/1000), uint32(i%1000))
		}
		if i%5 != 0 {
			packed[i] = Loc(key.Key(1000000+i*7919%100000), uint32(i*37%1000))
		}
		raw[i] = Loc(key.Key(i)<<20, uint32(i*4099)&MaxIndex)
	}
	return [][]Location{runs, packed, raw}
}

// samplePack is a pack with the sample leaves, and the references to them.
func samplePack() ([]byte, []LeafRef) {
	pack := AppendPackHeader(nil, sampleUUID)
	var refs []LeafRef
	for i, leaf := range sampleLeaves() {
		offset := len(pack)
		pack = AppendLeaf(pack, leaf)
		refs = append(refs, LeafRef{
			Leaf: uint32(3 + 5*i), Pack: 1, Offset: uint64(offset),
			Length: uint32(len(pack) - offset), CRC: CRC(pack[offset:]),
		})
	}
	return pack, refs
}

func sampleCheckpoint() *Checkpoint {
	pack, refs := samplePack()
	return &Checkpoint{
		UUID: sampleUUID, Nonce: sampleNonce, Key: 0x0102030405, KeyEpoch: 0x1112131415161718, Epoch: 0x2122232425262728,
		NextSeq: 0x3132333435363738, BlockSize: 4096, Blocks: 0x4142434445,
		Packs: []PackRef{
			{Name: PackName(0x1112131415161718, 0x51525354), Size: 0x61626364, Age: 0x71727374},
			{Name: PackName(0x2122232425262728, 1), Size: uint64(len(pack))},
		},
		Leaves: append([]LeafRef{{Leaf: 1, Pack: 0, Offset: 0x1020304, Length: 0x4142, CRC: 0x81828384}}, refs...),
		Objects: []ObjectInfo{
			{Key: 1, Epoch: 1, Fence: true},
			{Key: 0x91929394, Epoch: 0xa1a2a3a4a5a6a7a8, Live: 0x010203, Total: 0x111213},
			{Key: 0x0102030405, Epoch: 0x1112131415161718, Live: 0, Total: 1},
		},
	}
}

func sampleVolume() *Volume {
	return &Volume{
		Format: VolumeFormat, UUID: sampleUUID, Generation: 9, BlockSize: 4096,
		Size: 8 << 30, LargestSize: 16 << 30, ChunkSize: 4 << 20,
		Created: time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC), Epoch: 3,
		Writer: Writer{
			Host: "0123456789abcdef0123456789abcdef", Product: "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", Hostname: "host <1>",
			StatePath: "/run/bs3/config", StateID: "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", PID: 4711,
			Nonce: sampleNonce, Since: time.Date(2025, 6, 7, 8, 9, 10, 0, time.UTC), Released: true,
		},
		Checkpoints: []string{CheckpointName(12, 2, 1), CheckpointName(0x1234567890, 3, 2)},
		ChangeID:    "c1", Deleted: true,
	}
}

func sampleVolumeWithSnapshots() *Volume {
	v := sampleVolume()
	v.Snapshots = []Snapshot{
		{Name: "daily.2024-05-06", Directory: CheckpointName(11, 2, 7), Created: time.Date(2024, 5, 6, 9, 8, 7, 0, time.UTC)},
		{Name: "0", Directory: SnapshotName(0x1234567890, sampleNonce), Created: time.Date(2024, 5, 7, 9, 8, 7, 6, time.UTC)},
	}
	return v
}

func sampleMemoryHeader() *MemoryHeader {
	return &MemoryHeader{UUID: sampleUUID, BootID: sampleNonce, BlockSize: 512, ChunkBlocks: 0x010203, Slots: 0x0405}
}

func sampleSlotHeader() SlotHeader {
	return SlotHeader{Key: 0x0102030405, Nonce: sampleNonce, Epoch: 0x1112131415161718, FirstSeq: 0x2122232425262728}
}

func sampleLogHeader() *LogHeader {
	return &LogHeader{UUID: sampleUUID, Nonce: sampleNonce, BlockSize: 512, Size: 0x010203040506000}
}

// sampleFrame goes with sampleStored.
func sampleFrame() *Frame {
	f := &Frame{
		FrameHeader: FrameHeader{
			UUID: sampleUUID, Nonce: sampleNonce, Position: 0x010203040506000, Key: 0x0102030405,
			FirstSeq: 0x2122232425262728, Synced: 0x2122232425262720, BlockSize: sampleBlockSize, Blocks: 4, Records: 3, Sum: sampleObject().Sum,
		},
		Records: []Record{
			{Block: 0x31323334, Blocks: 3, Kind: KindWrite, Index: 0, Seq: 0x2122232425262728},
			{Block: 0x41424344, Blocks: MaxZeroBlocks, Kind: KindZero, Seq: 0x2122232425262729},
			{Block: 0x71727374, Blocks: 1, Kind: KindWrite, Index: 3, Seq: 0x212223242526272a},
		},
	}
	return f
}

func sampleCacheHeader() *CacheHeader {
	return &CacheHeader{UUID: sampleUUID, BlockSize: 512, Sets: 0x01020304}
}

func sampleCacheSet() *CacheSet {
	s := &CacheSet{Hand: 0xfe}
	for i := range s.Entries {
		if i%3 > 0 {
			s.Entries[i] = CacheEntry{Loc(key.Key(0x0102030405+i), uint32(0x010203+i)), 0x3132333435 + uint64(i), 0x11121314 + uint32(i), 0x21222324 * uint32(i)}
		}
	}
	return s
}

// Generators of valid values.

func genObject() *rapid.Generator[*Object] {
	return rapid.Custom(func(t *rapid.T) *Object {
		o := &Object{Footer: Footer{
			UUID:      UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid")),
			Nonce:     Nonce(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "nonce")),
			Key:       key.Key(rapid.Uint64Range(1, uint64(key.Max)).Draw(t, "key")),
			Epoch:     rapid.Uint64().Draw(t, "epoch"),
			FirstSeq:  rapid.Uint64Range(0, 1<<62).Draw(t, "first"),
			BlockSize: rapid.SampledFrom([]uint32{512, 4096}).Draw(t, "block size"),
		}}
		blocks := rapid.Uint32Range(0, 40).Draw(t, "blocks of data")
		if o.Blocks = blocks; blocks > 0 {
			o.Sum = rapid.Uint32().Draw(t, "sum")
		}
		o.Records = []Record{}
		seq := o.FirstSeq
		for range rapid.IntRange(0, 40).Draw(t, "records") {
			r := Record{Kind: KindZero, Block: rapid.Uint64Range(0, MaxBlocks-MaxZeroBlocks).Draw(t, "block")}
			if blocks > 0 {
				r.Kind = rapid.SampledFrom([]Kind{KindWrite, KindZero, KindMove}).Draw(t, "kind")
			}
			if r.Kind == KindZero {
				r.Blocks = rapid.Uint32Range(1, MaxZeroBlocks).Draw(t, "zeros")
			} else {
				r.Index = rapid.Uint32Range(0, blocks-1).Draw(t, "index")
				r.Blocks = rapid.Uint32Range(1, blocks-r.Index).Draw(t, "blocks")
			}
			if r.Kind == KindMove {
				r.Source = Loc(key.Key(rapid.Uint64Range(0, uint64(o.Key)-1).Draw(t, "source key")),
					rapid.Uint32Range(0, MaxObjectBlocks-r.Blocks).Draw(t, "source index"))
			} else {
				r.Seq = seq
				seq++
			}
			o.Records = append(o.Records, r)
		}
		o.Blocks, o.Footer.Records = blocks, uint32(len(o.Records))
		o.Fence = blocks == 0 && len(o.Records) == 0 && rapid.Bool().Draw(t, "fence")
		return o
	})
}

func genCheckpoint() *rapid.Generator[*Checkpoint] {
	return rapid.Custom(func(t *rapid.T) *Checkpoint {
		c := &Checkpoint{
			UUID:      UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid")),
			Nonce:     Nonce(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "nonce")),
			Key:       key.Key(rapid.Uint64Range(0, uint64(key.Max)).Draw(t, "key")),
			KeyEpoch:  rapid.Uint64().Draw(t, "key epoch"),
			Epoch:     rapid.Uint64().Draw(t, "epoch"),
			NextSeq:   rapid.Uint64().Draw(t, "seq"),
			BlockSize: rapid.SampledFrom([]uint32{512, 4096}).Draw(t, "block size"),
			Blocks:    rapid.Uint64Range(1, MaxBlocks).Draw(t, "blocks"),
			Packs:     []PackRef{}, Leaves: []LeafRef{}, Objects: []ObjectInfo{},
		}
		for range rapid.IntRange(0, 5).Draw(t, "packs") {
			c.Packs = append(c.Packs, PackRef{
				Name: PackName(rapid.Uint64().Draw(t, "pack epoch"), rapid.Uint32().Draw(t, "pack counter")),
				Size: rapid.Uint64Range(PackHeaderSize+1, 1<<62).Draw(t, "size"), Age: rapid.Uint32().Draw(t, "age"),
			})
		}
		leaf := uint64(0)
		for range rapid.IntRange(0, 10).Draw(t, "leaves") {
			leaf += rapid.Uint64Range(0, 3).Draw(t, "gap")
			if len(c.Packs) == 0 || leaf > (c.Blocks-1)/LeafBlocks {
				break
			}
			pack := rapid.IntRange(0, len(c.Packs)-1).Draw(t, "pack")
			size := c.Packs[pack].Size
			offset := rapid.Uint64Range(PackHeaderSize, size-1).Draw(t, "offset")
			c.Leaves = append(c.Leaves, LeafRef{
				Leaf: uint32(leaf), Pack: uint32(pack), Offset: offset,
				Length: uint32(rapid.Uint64Range(1, min(MaxLeafSize, size-offset)).Draw(t, "length")),
				CRC:    rapid.Uint32().Draw(t, "crc"),
			})
			leaf++
		}
		k := uint64(c.Key)
		for range rapid.IntRange(0, 10).Draw(t, "objects") {
			o := ObjectInfo{Key: key.Key(k), Epoch: rapid.Uint64().Draw(t, "object epoch"), Fence: rapid.Bool().Draw(t, "fence")}
			if k == uint64(c.Key) {
				o.Epoch = c.KeyEpoch
			}
			if !o.Fence {
				o.Total = rapid.Uint32Range(0, MaxObjectBlocks).Draw(t, "total")
				o.Live = rapid.Uint32Range(0, o.Total).Draw(t, "live")
			}
			c.Objects = append([]ObjectInfo{o}, c.Objects...)
			gap := rapid.Uint64Range(1, 1000).Draw(t, "object gap")
			if k < gap {
				break
			}
			k -= gap
		}
		return c
	})
}

// drawLeaf returns leaves of all shapes: dense and sparse, runs and scatter, with
// narrow and wide ranges of keys and indexes. Thousands of draws would be slow
// and unreadable, so it draws the shape and a seed.
func drawLeaf(t *rapid.T) []Location {
	low := rapid.Uint64Range(0, uint64(key.Max)).Draw(t, "low key")
	span := rapid.SampledFrom([]uint64{0, 1, 200, 1 << 8, 1 << 20, 1 << 22, 1 << 32, 1 << 40}).Draw(t, "key span")
	high := min(low+span, uint64(key.Max))
	top := rapid.SampledFrom([]uint32{0, 1, 255, 1023, 1 << 13, MaxIndex}).Draw(t, "top index")
	longest := rapid.SampledFrom([]int{1, 3, 100, LeafBlocks}).Draw(t, "longest run")
	holes := rapid.IntRange(1, 5).Draw(t, "share of holes") // 5 = none but holes
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	entries := make([]Location, LeafBlocks)
	for i := 0; i < LeafBlocks; {
		n := min(1+rnd.IntN(longest), LeafBlocks-i)
		if rnd.IntN(5) >= holes {
			k, index := key.Key(low+rnd.Uint64N(high-low+1)), rnd.Uint32N(top+1)
			for j := 0; j < n && index+uint32(j) <= MaxIndex; j++ {
				entries[i+j] = Loc(k, index).Add(uint32(j))
			}
		}
		i += n
	}
	return entries
}

// isNamed reports whether err is one of those that a decoder may return.
func isNamed(err error) bool {
	return errors.Is(err, ErrMagic) || errors.Is(err, ErrVersion) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrShortTail)
}

// eachFlip calls f with copies of b in which one byte is different, every
// byte in several ways.
func eachFlip(b []byte, f func(at int, flipped []byte)) {
	flipped := bytes.Clone(b)
	for i := range b {
		for _, x := range []byte{0x01, 0x02, 0x20, 0x80, 0xff} {
			flipped[i] = b[i] ^ x
			f(i, flipped)
		}
		flipped[i] = b[i]
	}
}
