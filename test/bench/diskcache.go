package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// onDiskCache returns settings with a disk cache of gb GB in an unused directory. A
// flush waits for the store, so there is no local log beside it.
func (b *bench) onDiskCache(gb int64) settings {
	return settings{"cache.path": filepath.Join(b.disk, b.name("cache")), "cache.size": gb}
}

// measureDiskCacheWrite measures what a disk cache costs writes, and what it keeps of
// them.
func measureDiskCacheWrite(ctx context.Context, b *bench) (rows []row, err error) {
	j := random4K("randwrite", 32, b.region)
	writes := func(cached bool) trial {
		return func(ctx context.Context) (f figures, err error) {
			if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
				return nil, err
			}
			s := byHand()
			if cached {
				s = s.with(b.onDiskCache(4))
			}
			err = b.onFresh(ctx, s, func(d *daemon) error {
				if err := b.firstPass(ctx, d); err != nil {
					return err
				}
				if f, err = job(d, j)(ctx); err != nil {
					return err
				}
				now, err := d.status(ctx)
				f["dropped"] = float64(now.DiskCache.Dropped) * blockSize / float64(max(1, now.WrittenBytes))
				return err
			})
			return f, err
		}
	}
	p, err := b.compare(ctx, writes(true), writes(false), writes(false))
	if err != nil {
		return nil, err
	}
	r := p.row(fmt.Sprintf("4 KiB random write depth 32 at PUT latency %v with a disk cache, against none", slowPut), "iops", "requests/s", 1, 0.9, false)
	r = p.with(r, "p99.9", "p999", "µs", 1e-3)
	rows = append(rows, p.with(r, "dropped", "dropped", "of the blocks", 1))

	const cache = 1 // GB, the least
	const set = cache * gib / 2
	total := int64(4 * cache * gib)
	if b.quick {
		total = set
	}
	for _, c := range []struct {
		how  string
		rate int64 // bytes a second
	}{{"as fast as they can be", 0}, {"at 100 MB/s", 100e6}} {
		missed, err := b.missedOnDisk(ctx, cache, fioJob{
			rw: "randwrite", bs: 4 * kib, depth: 32, size: set, total: total, rate: c.rate, flushed: true,
		})
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{
			Name:   fmt.Sprintf("disk cache of %d GB, after %d GB of random writes in half of it, %s: misses", cache, 4*cache, c.how),
			Target: 1, AtMost: true, Value: 100 * missed.share, Unit: "%",
			Details: []detail{
				{"once more", 100 * missed.again, "%"}, {"dropped when written", 100 * missed.dropped, "% of the blocks"},
				{"written at", 1e-6 * missed.rate, "MB/s"},
			},
		})
	}
	return rows, nil
}

// missed is what a disk cache did not have.
type missed struct {
	share, again float64 // of the blocks that were read, the first and the second time
	dropped      float64 // of the blocks that were written
	rate         float64 // of the writes, bytes a second
}

// missedOnDisk makes writes to a volume with a disk cache of gb GB and no cache in
// memory, and reads all that was written, twice.
func (b *bench) missedOnDisk(ctx context.Context, gb int64, writes fioJob) (m missed, err error) {
	s := byHand().with(b.onDiskCache(gb)).with(settings{"read.cache_size": 0, "read.readahead": 0})
	if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
		return m, err
	}
	err = b.onFresh(ctx, s, func(d *daemon) error {
		if _, err := d.fio(ctx, fioJob{rw: "write", bs: mib, depth: 4, size: writes.size, flushed: true}); err != nil {
			return err
		}
		wrote, err := d.fio(ctx, writes)
		if err != nil {
			return err
		}
		m.rate = wrote.Bytes
		// What is under way to the disk gets there.
		if _, err := d.silent(ctx, 2*time.Second, time.Minute); err != nil {
			return err
		}
		for _, share := range []*float64{&m.share, &m.again} {
			before, err := d.status(ctx)
			if err != nil {
				return err
			}
			if share == &m.share {
				m.dropped = float64(before.DiskCache.Dropped) * blockSize / float64(max(1, before.WrittenBytes))
			}
			if _, err := d.fio(ctx, fioJob{rw: "randread", bs: 4 * kib, depth: 32, size: writes.size, once: true}); err != nil {
				return err
			}
			after, err := d.status(ctx)
			if err != nil {
				return err
			}
			misses := float64(after.DiskCache.Misses - before.DiskCache.Misses)
			*share = misses / (misses + float64(after.DiskCache.Hits-before.DiskCache.Hits))
		}
		return nil
	})
	return m, err
}
