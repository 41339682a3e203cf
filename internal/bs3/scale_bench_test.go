package bs3_test

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// delayed is a store whose every answer takes some time.
func delayed(inner objproxy.Store, d time.Duration) objproxy.Store {
	return &objtest.Hooks{Inner: inner, Before: func(ctx context.Context, _ objtest.Op) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

func mustPut(b *testing.B, store objproxy.Store, name string, data []byte) {
	b.Helper()
	if _, err := store.Put(b.Context(), name, objproxy.Body{Data: data}, objproxy.IfAbsent()); err != nil {
		b.Fatal(err)
	}
}

// putVolume stores the record of a released volume in epoch 1.
func putVolume(b *testing.B, store objproxy.Store, uuid layout.UUID, size int64, checkpoints ...string) {
	b.Helper()
	record, err := layout.EncodeVolume(&layout.Volume{
		UUID: uuid, Generation: 1, BlockSize: 4096, Size: size, LargestSize: size, ChunkSize: 4 << 20,
		Created: time.Unix(0, 0), Epoch: 1, Writer: layout.Writer{Released: true}, Checkpoints: checkpoints,
	})
	if err != nil {
		b.Fatal(err)
	}
	mustPut(b, store, layout.VolumeName, record)
}

func bigOptions(b *testing.B, store objproxy.Store, size int64) bs3.Options {
	return bs3.Options{
		Store: objproxy.NewPriority(store, 32, 128), Log: zerolog.Nop(), Host: bs3.Host{ID: "bench"},
		Size: size, BlockSize: 4096, ChunkSize: 4 << 20, Memory: 16 << 20, Uploaders: 4, SkipCheckpoint: false, StatePath: b.TempDir(),
	}
}

// BenchmarkOpenLog opens a volume with 10,000 objects of 64 writes to roll
// forward, at 15 ms an answer.
func BenchmarkOpenLog(b *testing.B) {
	const size, objects, writes = 64 << 30, 10_000, 64
	memory := objtest.NewMemory()
	uuid, nonce := layout.NewUUID(), layout.NewNonce()
	putVolume(b, memory, uuid, size)
	rnd := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, writes*4096)
	for k := range key.Key(objects) {
		o := &layout.Object{Footer: layout.Footer{UUID: uuid, Nonce: nonce, Key: k, Epoch: 1, FirstSeq: 1 + uint64(k)*writes, BlockSize: 4096, Blocks: writes}}
		for i := range uint32(writes) {
			o.Records = append(o.Records, layout.Record{Block: rnd.Uint64N(size / 4096), Blocks: 1, Kind: layout.KindWrite, Index: i, Seq: o.FirstSeq + uint64(i)})
		}
		stored := layouttest.Stored(uuid, k, 0, data, 4096)
		o.Sum = layout.AddSum(0, stored, 4096)
		mustPut(b, memory, k.Name(), layout.AppendTail(stored, o))
	}
	open := func(store objproxy.Store) time.Duration {
		o := bigOptions(b, store, size)
		start := time.Now()
		e, err := bs3.Open(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(start)
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		_ = e.Close(ctx) // killed: the log stays as it is
		return took
	}
	for b.Loop() {
		b.ReportMetric(open(delayed(memory.Clone(), 15*time.Millisecond)).Seconds(), "s/open")
	}
}

// BenchmarkOpenFull opens a volume of 1 TiB of which every block is mapped, in
// random order or in runs of 1 MiB, from its checkpoint.
func BenchmarkOpenFull(b *testing.B) {
	for name, run := range map[string]uint64{"random": 1, "runs": 256} {
		b.Run(name, func(b *testing.B) { benchOpenFull(b, run) })
	}
}

// benchOpenFull maps runs of that many blocks in random order.
func benchOpenFull(b *testing.B, run uint64) {
	const size = 1 << 40
	const blocks, perObject = size / 4096, 1024
	memory := objtest.NewMemory()
	uuid := layout.NewUUID()
	c := &layout.Checkpoint{UUID: uuid, Key: blocks/perObject - 1, KeyEpoch: 1, Epoch: 1, NextSeq: 1, BlockSize: 4096, Blocks: blocks}
	for k := range key.Key(blocks / perObject) {
		c.Objects = append(c.Objects, layout.ObjectInfo{Key: k, Epoch: 1, Live: perObject, Total: perObject})
	}
	entries := make([]layout.Location, layout.LeafBlocks)
	var pack []byte
	for leaf := range uint32(blocks / layout.LeafBlocks) {
		for i := range entries { // a permutation of all locations
			block := uint64(leaf)*layout.LeafBlocks + uint64(i)
			at := block/run*0x9E3779B1%(blocks/run)*run + block%run
			entries[i] = layout.Loc(key.Key(at/perObject), uint32(at%perObject))
		}
		if pack == nil {
			pack = layout.AppendPackHeader(nil, uuid)
		}
		from := len(pack)
		pack = layout.AppendLeaf(pack, entries)
		c.Leaves = append(c.Leaves, layout.LeafRef{Leaf: leaf, Pack: uint32(len(c.Packs)), Offset: uint64(from), Length: uint32(len(pack) - from), CRC: layout.CRC(pack[from:])})
		if len(pack) > 8<<20 || leaf == blocks/layout.LeafBlocks-1 {
			name := layout.PackName(1, uint32(len(c.Packs)+1))
			mustPut(b, memory, name, pack)
			c.Packs = append(c.Packs, layout.PackRef{Name: name, Size: uint64(len(pack))})
			pack = nil
		}
	}
	name := layout.CheckpointName(c.Key, 1, 1<<20)
	mustPut(b, memory, name, layout.AppendCheckpoint(nil, c))
	putVolume(b, memory, uuid, size, name)

	for b.Loop() {
		store := memory.Clone()
		debug.FreeOSMemory()
		before := resident(b)
		o := bigOptions(b, store, size)
		start := time.Now()
		e, err := bs3.Open(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/open")
		b.ReportMetric(resident(b)-before, "MiB-at-open")
		runtime.GC()
		debug.FreeOSMemory()
		b.ReportMetric(resident(b)-before, "MiB-at-rest")
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		_ = e.Close(ctx)
	}
}

// resident is the resident memory of the process in MiB.
func resident(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
