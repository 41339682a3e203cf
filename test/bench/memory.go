package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
)

const (
	blockSize = 4 * kib
	chunkSize = 4 * mib
)

// mappedVolume makes a bucket with a volume all of whose blocks are mapped, in runs
// of run blocks in random order. There is a checkpoint, but no data.
func (b *bench) mappedVolume(ctx context.Context, run uint64) (bucket string, err error) {
	const perObject = 1024
	blocks := uint64(b.mapped) / blockSize
	bucket = b.name("mapped")
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return "", err
	}
	store, err := s3.New(ctx, b.s3Options(bucket))
	if err != nil {
		return "", err
	}
	if err := store.EnsureBucket(ctx); err != nil {
		return "", err
	}
	put := func(name string, data []byte) error {
		_, err := store.Put(ctx, name, objproxy.Body{Data: data}, objproxy.IfAbsent())
		return err
	}
	uuid := layout.NewUUID()
	c := &layout.Checkpoint{
		UUID: uuid, Key: key.Key(blocks/perObject - 1), KeyEpoch: 1, Epoch: 1, NextSeq: 1, BlockSize: blockSize, Blocks: blocks,
	}
	for k := range key.Key(blocks / perObject) {
		c.Objects = append(c.Objects, layout.ObjectInfo{Key: k, Epoch: 1, Live: perObject, Total: perObject})
	}
	const odd = 0x9E3779B1 // so that multiples of it modulo a power of two are a permutation
	entries := make([]layout.Location, layout.LeafBlocks)
	var pack []byte
	leaves := blocks / layout.LeafBlocks
	for leaf := range leaves {
		for i := range entries {
			block := leaf*layout.LeafBlocks + uint64(i)
			at := block/run*odd%(blocks/run)*run + block%run
			entries[i] = layout.Loc(key.Key(at/perObject), uint32(at%perObject))
		}
		if pack == nil {
			pack = layout.AppendPackHeader(nil, uuid)
		}
		from := len(pack)
		pack = layout.AppendLeaf(pack, entries)
		c.Leaves = append(c.Leaves, layout.LeafRef{
			Leaf: uint32(leaf), Pack: uint32(len(c.Packs)), Offset: uint64(from), Length: uint32(len(pack) - from), CRC: layout.CRC(pack[from:]),
		})
		if len(pack) > 8*mib || leaf == leaves-1 {
			name := layout.PackName(1, uint32(len(c.Packs)+1))
			if err := put(name, pack); err != nil {
				return "", err
			}
			c.Packs = append(c.Packs, layout.PackRef{Name: name, Size: uint64(len(pack))})
			pack = nil
		}
	}
	name := layout.CheckpointName(c.Key, 1, 1<<20)
	if err := put(name, layout.AppendCheckpoint(nil, c)); err != nil {
		return "", err
	}
	record, err := layout.EncodeVolume(&layout.Volume{
		UUID: uuid, Generation: 1, BlockSize: blockSize, Size: b.mapped, LargestSize: b.mapped, ChunkSize: chunkSize,
		Created: time.Unix(0, 0), Epoch: 1, Writer: layout.Writer{Released: true}, Checkpoints: []string{name},
	})
	if err != nil {
		return "", err
	}
	return bucket, put(layout.VolumeName, record)
}

// resident returns the memory of a daemon, in bytes and without its chunk memory,
// after it was idle for a while.
func (d *daemon) resident(ctx context.Context) (int64, error) {
	if err := pause(ctx, min(45*time.Second, d.b.idle)); err != nil {
		return 0, err
	}
	return d.process.resident(filepath.Join(d.dir, "state"))
}

// measureMemory measures the resident memory of maps.
func measureMemory(ctx context.Context, b *bench) ([]row, error) {
	volume := settings{"size": b.mapped / gib, "read.cache_size": 0, "read.readahead": 0}
	size := fmt.Sprintf("%d GiB", b.mapped/gib)
	if b.mapped == 1<<40 {
		size = "1 TiB"
	}
	name := "resident memory without chunk memory and read cache, " + size
	weigh := func(name string, most float64, bytes int64) row {
		return row{Name: name, Target: most, AtMost: true, Value: float64(bytes) / mib, Unit: "MiB"}
	}
	scale := float64(b.mapped) / (1 << 40)
	var rows []row
	err := b.onFresh(ctx, volume, func(d *daemon) error {
		bytes, err := d.resident(ctx)
		rows = append(rows, weigh(name+", empty", 60, bytes))
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name string
		run  uint64
		most float64 // MiB
	}{
		{"mapped in 1 MiB runs", mib / blockSize, 80},
		{"mapped in 4 KiB random order", 1, 2.2 * 1024},
	} {
		bucket, err := b.mappedVolume(ctx, c.run)
		if err != nil {
			return nil, err
		}
		err = b.onPrepared(ctx, bucket, volume, func(d *daemon) error {
			bytes, err := d.resident(ctx)
			if err != nil {
				return err
			}
			rows = append(rows, weigh(name+", "+c.name+", at rest", c.most*scale, bytes))
			peak, after, err := b.weighCheckpoint(ctx, d)
			against := func(when string, most float64, grown int64) row {
				return row{Name: name + ", " + c.name + ", " + when + " against at rest", Target: most, AtMost: true,
					Value: float64(grown) / float64(bytes), Details: []detail{{"resident", float64(grown) / mib, "MiB"}}}
			}
			highest, later := against("peak in a checkpoint of all leaves", 1.5, peak), against("after that", 1.1, after)
			if c.run > 1 { // the writes have cut the runs up, and a checkpoint takes more than such a map
				highest.Free, later.Free = true, true
			}
			rows = append(rows, highest, later)
			return err
		})
		if err != nil {
			return nil, err
		}
		if err := b.store.drop(ctx, bucket); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// weighCheckpoint changes nearly every leaf of a mapped volume, and returns the peak
// memory during the checkpoint, and the memory when the daemon was idle after it for a
// while, both in bytes and without chunk memory.
func (b *bench) weighCheckpoint(ctx context.Context, d *daemon) (peak, after int64, err error) {
	leaves := b.mapped / blockSize / layout.LeafBlocks
	j := fioJob{rw: "randwrite", bs: blockSize, depth: 32, size: b.mapped, ios: 4 * leaves, flushed: true}
	if _, err := d.fio(ctx, j); err != nil {
		return 0, 0, err
	}
	if err := d.resetPeak(); err != nil {
		return 0, 0, err
	}
	if _, err := d.verb(ctx, "checkpoint"); err != nil {
		return 0, 0, err
	}
	if peak, err = d.peak(); err != nil {
		return 0, 0, err
	}
	// The peak includes chunk memory, which does not change.
	with, err := d.process.resident("no such mapping")
	if err != nil {
		return 0, 0, err
	}
	without, err := d.process.resident(filepath.Join(d.dir, "state"))
	if err != nil {
		return 0, 0, err
	}
	after, err = d.resident(ctx)
	return peak - (with - without), after, err
}

// measureIdle measures what a daemon does without requests.
func measureIdle(ctx context.Context, b *bench) (rows []row, err error) {
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return nil, err
	}
	err = b.onFresh(ctx, settings{"checkpoint.interval": 1, "profiler": false}, func(d *daemon) error {
		if _, err := d.fio(ctx, fioJob{rw: "randwrite", bs: 4 * kib, depth: 32, size: 64 * mib, flushed: true}); err != nil {
			return err
		}
		if err := d.settled(ctx, min(b.idle, 15*time.Second)); err != nil {
			return err
		}
		before, err := d.exactCPU()
		if err != nil {
			return err
		}
		asked, err := d.counted(ctx, func() error { return pause(ctx, b.idle) })
		if err != nil {
			return err
		}
		after, err := d.exactCPU()
		idle := fmt.Sprintf("idle for %v, ", b.idle)
		rows = []row{
			{Name: idle + "requests", Target: 0, AtMost: true, Value: float64(asked.Requests()), Unit: "requests"},
			{Name: idle + "CPU", Target: 5, AtMost: true, Value: 1e3 * (after - before).Seconds(), Unit: "ms"},
		}
		return err
	})
	return rows, err
}
