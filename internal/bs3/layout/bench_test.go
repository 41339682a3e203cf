package layout

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"bs3/internal/bs3/key"
)

// benchObject is a full chunk of 4 MiB written in single blocks of 4 KiB.
func benchObject() *Object {
	o := &Object{Footer: Footer{UUID: sampleUUID, Nonce: sampleNonce, Key: 1000, Epoch: 1, FirstSeq: 1, BlockSize: 4096, Blocks: 1024}}
	for i := range uint32(1024) {
		o.Records = append(o.Records, Record{Block: uint64(i) * 77, Blocks: 1, Kind: KindWrite, Index: i, Seq: uint64(i) + 1})
	}
	return o
}

func BenchmarkAppendTail(b *testing.B) {
	o := benchObject()
	buf := make([]byte, 0, TailSize(1024))
	b.SetBytes(int64(cap(buf)))
	b.ReportAllocs()
	for b.Loop() {
		AppendTail(buf, o)
	}
}

func BenchmarkDecodeTail(b *testing.B) {
	tail := AppendTail(nil, benchObject())
	b.SetBytes(int64(len(tail)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeTail(tail, int64(len(tail))+1024*4100); err != nil {
			b.Fatal(err)
		}
	}
}

type benchLeaf struct {
	name    string
	entries []Location
}

// benchLeaves are what maps look like: written in order, in runs of 16 blocks
// at random places, block by block at random places, and what fits nothing.
func benchLeaves() []benchLeaf {
	rnd := rand.New(rand.NewPCG(1, 2))
	fill := func(run int, keys, indexes uint64) []Location {
		leaf := make([]Location, LeafBlocks)
		for i := range leaf {
			if i%run == 0 {
				leaf[i] = Loc(key.Key(rnd.Uint64N(keys)), uint32(rnd.Uint64N(indexes-uint64(run)+1)))
			} else {
				leaf[i] = leaf[i-1].Add(1)
			}
		}
		return leaf
	}
	return []benchLeaf{
		{"sequential", fill(1024, 500000, 1024)},
		{"runs16", fill(16, 500000, 1024)},
		{"random", fill(1, 500000, 1024)},
		{"raw", fill(1, 1<<40-1, 1<<24)},
	}
}

func BenchmarkAppendLeaf(b *testing.B) {
	for _, leaf := range benchLeaves() {
		b.Run(leaf.name, func(b *testing.B) {
			buf := make([]byte, 0, MaxLeafSize)
			b.SetBytes(8 * LeafBlocks)
			b.ReportAllocs()
			for b.Loop() {
				AppendLeaf(buf, leaf.entries)
			}
			b.ReportMetric(float64(len(AppendLeaf(buf, leaf.entries))), "bytes/leaf")
		})
	}
}

func BenchmarkDecodeLeaf(b *testing.B) {
	entries := make([]Location, LeafBlocks)
	for _, leaf := range benchLeaves() {
		b.Run(leaf.name, func(b *testing.B) {
			enc := AppendLeaf(nil, leaf.entries)
			b.SetBytes(8 * LeafBlocks)
			for b.Loop() {
				if err := DecodeLeaf(enc, entries); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCRC(b *testing.B) {
	for _, n := range []int{512, 4096, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				CRC(data)
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	checks, stored := NewChecks(sampleUUID, 7), make([]byte, Stride(4096))
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		checks.Verify(5, stored)
	}
}

func BenchmarkRecordCRC(b *testing.B) {
	rec := AppendRecord(nil, sampleObject().Records[0])
	b.ReportAllocs()
	for b.Loop() {
		RecordCRC(rec, 5, sampleNonce, 7)
	}
}

func BenchmarkPutRecord(b *testing.B) {
	rec, r := make([]byte, RecordSize), sampleObject().Records[0]
	b.ReportAllocs()
	for b.Loop() {
		PutRecord(rec, r)
	}
}
