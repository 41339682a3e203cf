package main

import (
	"context"
	"fmt"
	"time"

	"bs3/test/bench/s3server"
)

// measureSmallObjects measures what becomes of the objects of single flushed blocks.
// The store has no latency, so that one job makes as many objects as it has writes in
// little time; how many there are does not depend on it.
func measureSmallObjects(ctx context.Context, b *bench) (rows []row, err error) {
	flushes := int64(50_000)
	if b.quick {
		flushes = 5_000
	}
	// As many flushes lie between two collections as between those of a busy database
	// by default: 38 a second for 600 s.
	const wait = 10
	const moves = 1 // gc.max_moves
	s := byTime(wait)
	if ok, err := b.knows(ctx, settings{"gc.max_moves": moves}); err != nil {
		return nil, err
	} else if ok {
		s = s.with(settings{"gc.max_moves": moves})
	}
	for _, rw := range []string{"write", "randwrite"} {
		how := map[string]string{"write": "in order", "randwrite": "at random"}[rw]
		j := fioJob{rw: rw, bs: 4 * kib, depth: 1, size: b.region, ios: flushes, fsync: true, once: true, flushed: true}
		var written, end status
		var kept s3server.Kept
		var took time.Duration
		bucket, err := b.written(ctx, s, []fioJob{j}, func(d *daemon) (err error) {
			if written, err = d.status(ctx); err != nil {
				return err
			}
			if end, took, err = d.collected(ctx, wait); err != nil {
				return err
			}
			kept, err = b.store.kept(ctx, d.bucket)
			return err
		})
		if err != nil {
			return nil, err
		}
		full := (end.LiveBytes + chunkSize - 1) / chunkSize
		if full == 0 {
			return nil, fmt.Errorf("the volume has nothing after %d writes", flushes)
		}
		name := fmt.Sprintf("%d flushed 4 KiB writes %s, after collections: ", flushes, how)
		rows = append(rows, row{
			Name: name + "objects, against full ones", Target: 1.25, AtMost: true, Value: float64(end.Objects) / float64(full),
			Details: []detail{
				{"objects", float64(end.Objects), "at the end"}, {"objects", float64(written.Objects), "before the last collections"},
				{"full ones", float64(full), "would do"}, {"in the store", float64(kept.Objects), "with checkpoints"}, {"it took", took.Seconds(), "s"},
			},
		}, row{
			Name: name + "bytes moved for each byte written", Target: moves, AtMost: true, Value: end.amplification(),
		})
		if err := b.store.drop(ctx, bucket); err != nil {
			return nil, err
		}
	}
	return rows, nil
}
