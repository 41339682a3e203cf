package buse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"bs3/internal/device"
)

// A chunk by hand, byte for byte as the module of a little-endian machine lays it
// out: two records for a chunk of 8 KiB with blocks of 512 bytes; the third is not
// counted.
func TestParse(t *testing.T) {
	p := make([]byte, 8<<10)
	copy(p, []byte{
		3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x15, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 3, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
	})
	p[512], p[512+1023] = 0xAA, 0xBB // behind 16 records
	f := newFormat(device.Geometry{Size: 64 << 10, BlockSize: 512}, 4<<10)
	got, err := f.parse(2, p)
	if err != nil || len(got) != 2 {
		t.Fatalf("parse: %v, %v", got, err)
	}
	w, d := got[0], got[1]
	if w.op != opWrite || w.first != 3 || w.blocks != 2 || w.number != 0x15 || len(w.data) != 1024 || w.data[0] != 0xAA || w.data[1023] != 0xBB {
		t.Errorf("write %+v", w)
	}
	if d.op != opDiscard || d.first != 8 || d.blocks != 8 || d.number != 1<<32-2 || d.data != nil {
		t.Errorf("discard %+v", d)
	}

	// The same request on a device of larger blocks.
	p = make([]byte, 512<<10)
	putRecord(p, opWrite, 5*4096, 4096, 1)
	if binary.LittleEndian.Uint64(p) != 40 {
		t.Fatal("sectors of 512 bytes are expected")
	}
	p[4096] = 0xCC // behind 128 records
	f = newFormat(device.Geometry{Size: 1 << 20, BlockSize: 4096}, 64<<10)
	got, err = f.parse(1, p)
	if err != nil || got[0].first != 5 || got[0].blocks != 1 || len(got[0].data) != 4096 || got[0].data[0] != 0xCC {
		t.Errorf("parse: %+v, %v", got, err)
	}
	putRecord(p, opWrite, 5*4096, 2048, 1)
	if _, err := f.parse(1, p); !errors.Is(err, errChunk) {
		t.Errorf("half a block: %v", err)
	}
	putRecord(p, opWrite, 5*4096+2048, 4096, 1)
	if _, err := f.parse(1, p); !errors.Is(err, errChunk) {
		t.Errorf("a block between two: %v", err)
	}
}

// FuzzChunk sends arbitrary chunks. Nothing is done of a malformed chunk, and each
// record of a good one, and nothing else.
func FuzzChunk(f *testing.F) {
	seed := func(n int64, list ...rec) {
		opts := small()
		opts.fill()
		d := &driver{t: f, opts: opts}
		f.Add(n, d.chunk(list...))
	}
	seed(3, write(0, 2, 1, 1), rec{op: opDiscard, first: 1, n: 4, number: 2}, write(60, 4, 1, 3))
	seed(2, write(0, 8, 2, 1), write(0, 8, 1, 2))
	seed(1, rec{op: opWriteZeroes, first: 8, n: 8, number: 1})
	seed(16)
	f.Add(int64(-1), []byte{})
	f.Fuzz(func(t *testing.T, n int64, chunk []byte) {
		vol := newMemory()
		before := bytes.Repeat([]byte{0x42}, testBlocks*testBlock)
		if err := vol.WriteAt(t.Context(), before, 0); err != nil {
			t.Fatal(err)
		}
		d := newDriver(t, vol)
		p := make([]byte, d.opts.ChunkSize) // what is missing is zeros
		copy(p, chunk)
		taken := <-d.call(func() error { return d.cb.BuseWrite(n, p) })
		got := make([]byte, len(before))
		if err := vol.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if !taken {
			if err := d.r.failure(); !errors.Is(err, errChunk) {
				t.Errorf("failure: %v", err) // the volume refuses what breaks its contract
			}
			if !bytes.Equal(got, before) {
				t.Error("the volume was changed by a chunk that was refused")
			}
			return
		}
		// Computed simply, from the bytes: the record with the highest number that
		// has a block decides.
		want := before
		newest := make([]uint32, testBlocks)
		written := make([]bool, testBlocks)
		data := p[len(p)/testBlock*recordSize:]
		for i := range n {
			r := p[i*recordSize:]
			first, blocks := int(binary.LittleEndian.Uint64(r)), int(binary.LittleEndian.Uint64(r[8:]))
			number := binary.LittleEndian.Uint32(r[16:])
			for b := first; b < first+blocks; b++ {
				var content [testBlock]byte
				if r[24] == byte(opWrite) {
					copy(content[:], data)
					data = data[testBlock:]
				}
				if number == 0 {
					return // in no chunk with 1 and its neighbours, see sequences
				}
				if !written[b] || int32(number-newest[b]) > 0 {
					copy(want[b*testBlock:], content[:])
					written[b], newest[b] = true, number
				}
			}
		}
		if !bytes.Equal(got, want) && spread(newest, written) {
			t.Error("the volume is not what the records say")
		}
	})
}

// spread reports whether the numbers are as near to each other as those in flight
// have to be.
func spread(newest []uint32, written []bool) bool {
	for b, n := range newest {
		if written[b] && n > 1<<25 {
			return false
		}
	}
	return true
}
