package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"bs3/test/bench/s3server"
)

// jobResult is a line of the table of jobs.
type jobResult struct {
	Name     string
	Get, Put time.Duration // latency of the store
	Sample   sample
	Resident int64 // bytes, without chunk memory
	Asked    s3server.Counts
	Writes   bool
	Flushes  bool
}

// content is what a job finds.
type content int

const (
	nothing content = iota // a new volume
	cold                   // a volume that was written, and nothing of it cached
	warm                   // a volume all of which was just read
)

// jobList returns the jobs of the table.
func (b *bench) jobList() []struct {
	name  string
	finds content
	job   fioJob
} {
	large, small := b.sequential/2, int64(128*mib)
	timed := func(rw string, depth int, size int64, once bool) fioJob {
		return fioJob{rw: rw, bs: 4 * kib, depth: depth, size: size, timed: true, cold: true, once: once, flushed: rw != "randread"}
	}
	mixed := timed("randrw", 32, large, true)
	mixed.mix = 70
	return []struct {
		name  string
		finds content
		job   fioJob
	}{
		{"sequential write 1 MiB, depth 4", nothing, fioJob{rw: "write", bs: mib, depth: 4, size: large, flushed: true}},
		{"random write 4 KiB, depth 1", nothing, timed("randwrite", 1, b.region, false)},
		{"random write 4 KiB, depth 32", nothing, timed("randwrite", 32, b.region, false)},
		{"random write 4 KiB, depth 128", nothing, timed("randwrite", 128, b.region, false)},
		{"sequential read 128 KiB, depth 1, cold", cold, fioJob{rw: "read", bs: 128 * kib, depth: 1, size: large}},
		{"random read 4 KiB, depth 32, cold", cold, timed("randread", 32, large, true)},
		{"mixed 4 KiB 70/30, depth 32, cold", cold, mixed},
		{"sequential read 128 KiB, depth 1, warm", warm, fioJob{rw: "read", bs: 128 * kib, depth: 1, size: small}},
		{"random read 4 KiB, depth 32, warm", warm, timed("randread", 32, small, false)},
		{"write 4 KiB and fsync, 1 job", nothing, b.syncing(1)},
		{"write 4 KiB and fsync, 16 jobs", nothing, b.syncing(16)},
	}
}

// measureJobs runs every job once at each latency.
func measureJobs(ctx context.Context, b *bench) (done []jobResult, err error) {
	for _, latency := range [][2]time.Duration{{0, 0}, {slowGet, slowPut}} {
		// A new one each time: the mixed job leaves it fragmented.
		large, err := b.prepared(ctx, b.sequential/2)
		if err != nil {
			return nil, err
		}
		for _, j := range b.jobList() {
			r := jobResult{Name: j.name, Get: latency[0], Put: latency[1], Writes: j.job.rw != "read" && j.job.rw != "randread", Flushes: j.job.fsync}
			run := func(d *daemon) error {
				if j.finds == warm {
					if _, err := d.fio(ctx, fioJob{rw: "read", bs: mib, depth: 8, size: j.job.size}); err != nil {
						return err
					}
				}
				r.Asked, err = d.counted(ctx, func() (err error) {
					r.Sample, err = d.fio(ctx, j.job)
					return err
				})
				if err != nil {
					return err
				}
				r.Resident, err = d.process.resident(filepath.Join(d.dir, "state"))
				return err
			}
			if err := b.store.latency(ctx, latency[0], latency[1]); err != nil {
				return nil, err
			}
			if j.finds == nothing {
				err = b.onFresh(ctx, nil, run)
			} else {
				err = b.onPrepared(ctx, large, nil, run)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", j.name, err)
			}
			fmt.Printf("%s at %v/%v: %s requests/s, %s MB/s\n", r.Name, r.Get, r.Put, number(r.Sample.IOPS), number(r.Sample.Bytes/1e6))
			done = append(done, r)
		}
		if err := b.store.drop(ctx, large); err != nil {
			return nil, err
		}
	}
	return done, nil
}
