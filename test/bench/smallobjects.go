package main

import (
	"context"
	"fmt"
	"time"
)

// measureSmallObjects measures what becomes of the objects of single flushed blocks.
// The store has no latency, so that one job makes as many objects as it has writes in
// little time; how many there are does not depend on it.
func measureSmallObjects(ctx context.Context, b *bench) (rows []row, err error) {
	flushes := int64(50_000)
	if b.quick {
		flushes = 5_000
	}
	const moves = 1 // gc.max_moves
	s, note := byTime(), ""
	if ok, err := b.knows(ctx, settings{"gc.max_moves": moves}); err != nil {
		return nil, err
	} else if ok {
		s = s.with(settings{"gc.max_moves": moves})
	} else {
		note = "this version does not merge objects"
	}
	for _, rw := range []string{"write", "randwrite"} {
		how := map[string]string{"write": "in order", "randwrite": "at random"}[rw]
		j := fioJob{rw: rw, bs: 4 * kib, depth: 1, size: b.region, ios: flushes, fsync: true, once: true, flushed: true}
		var written, end status
		var took time.Duration
		bucket, err := b.written(ctx, s, []fioJob{j}, func(d *daemon) (err error) {
			if written, err = d.status(ctx); err != nil {
				return err
			}
			end, took, err = d.collected(ctx)
			return err
		})
		if err != nil {
			return nil, err
		}
		full := (end.LiveBytes + chunkSize - 1) / chunkSize
		if full == 0 {
			return nil, fmt.Errorf("the volume has nothing after %d writes", flushes)
		}
		name := fmt.Sprintf("%d writes of 4 KiB %s, each flushed, after collections by time: ", flushes, how)
		rows = append(rows, row{
			Name: name + "objects, against full ones", Target: 1.25, AtMost: true, Value: float64(end.Objects) / float64(full),
			Details: []detail{
				{"objects", float64(end.Objects), "at the end"}, {"objects", float64(written.Objects), "before the last collections"},
				{"full ones", float64(full), "would do"}, {"it took", took.Seconds(), "s"},
			},
		}, row{
			Name: name + "bytes moved for each byte written", Target: moves, AtMost: true, Value: end.amplification(),
		})
		if note != "" {
			rows[len(rows)-1].Details = append(rows[len(rows)-1].Details, detail{note, 0, ""})
		}
		if err := b.store.drop(ctx, bucket); err != nil {
			return nil, err
		}
	}
	return rows, nil
}
