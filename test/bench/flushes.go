package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"bs3/internal/bs3/layout"
)

// syncing returns a job of writes of 4 KiB with a flush after each.
func (b *bench) syncing(jobs int) fioJob {
	return fioJob{rw: "randwrite", bs: 4 * kib, depth: 1, jobs: jobs, size: b.region, fsync: true, timed: true, cold: true}
}

// flushing returns a trial of one job that flushes, and of 16, each on a volume with
// the settings that next returns.
func (b *bench) flushing(next func() settings) trial {
	return func(ctx context.Context) (figures, error) {
		if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
			return nil, err
		}
		f := figures{}
		for _, jobs := range []int{1, 16} {
			err := b.onFresh(ctx, next(), func(d *daemon) error {
				var got sample
				asked, err := d.counted(ctx, func() (err error) {
					got, err = d.fio(ctx, b.syncing(jobs))
					return err
				})
				of := func(name string) string { return fmt.Sprintf("%s/%d", name, jobs) }
				f[of("p50")], f[of("p99")], f[of("p999")] = got.Sync.P50, got.Sync.P99, got.Sync.P999
				f[of("rate")], f[of("puts")] = got.SyncRate, float64(asked.Put)/got.Syncs
				f[of("price")] = 1000 * price(asked) / got.Syncs
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		return f, nil
	}
}

// against returns a row of a quantile of flushes, p50 or p99, against a figure of the
// reference.
func against(p paired, name string, jobs int, quantile, reference string, target float64) row {
	figure := fmt.Sprintf("%s/%d", quantile, jobs)
	single := ratios(all(p.ours, figure), all(p.reference, reference))
	return row{
		Name: name, Target: target, AtMost: true, Value: median(single), Single: single,
		Control: median(ratios(all(p.control, reference), all(p.reference, reference))),
		Details: []detail{
			{"bs3", 1e-6 * median(all(p.ours, figure)), "ms"},
			{"reference", 1e-6 * median(all(p.reference, reference)), "ms"},
			{"p99", 1e-6 * median(all(p.ours, fmt.Sprintf("p99/%d", jobs))), "ms"},
			{"p99.9", 1e-6 * median(all(p.ours, fmt.Sprintf("p999/%d", jobs))), "ms"},
			{"price", median(all(p.ours, fmt.Sprintf("price/%d", jobs))), "$ per 1,000 flushes"},
		},
	}
}

// manyJobs returns a row of the flush rate of 16 jobs against that of one.
func manyJobs(p paired, name string, target float64) row {
	single := ratios(all(p.ours, "rate/16"), all(p.ours, "rate/1"))
	return row{
		Name: name, Target: target, Value: median(single), Single: single,
		Details: []detail{
			{"16 jobs", median(all(p.ours, "rate/16")), "flushes/s"},
			{"1 job", median(all(p.ours, "rate/1")), "flushes/s"},
		},
	}
}

// measureFsync measures flushes that wait for the store.
func measureFsync(ctx context.Context, b *bench) ([]row, error) {
	reference := func(ctx context.Context) (figures, error) {
		l, err := b.rawPut(ctx, 1, int64(layout.Stride(4096)+layout.TailSize(1)), slowPut)
		return figures{"p50": l.latency.P50}, err
	}
	p, err := b.compare(ctx, b.flushing(baseConfig), reference, reference)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("durable fsync after a 4 KiB write at PUT latency %v, p50 against one raw PUT of that size, ", slowPut)
	puts := all(p.ours, "puts/16")
	if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
		return nil, err
	}
	err = b.onFresh(ctx, nil, func(d *daemon) error { return b.profile(ctx, "durable fsync, 16 jobs", d, b.syncing(16)) })
	return []row{
		against(p, name+"1 job", 1, "p50", "p50", 1.10),
		against(p, name+"16 jobs", 16, "p50", "p50", 1.25),
		manyJobs(p, fmt.Sprintf("16 jobs fsyncing at PUT latency %v, flushes a second against one job", slowPut), 12),
		{Name: "PUTs per flush, 16 jobs", Target: 0.25, AtMost: true, Value: median(puts), Single: puts, Unit: "PUTs"},
	}, err
}

// measureLocalLog measures flushes that wait for the local log.
func measureLocalLog(ctx context.Context, b *bench) ([]row, error) {
	const one = "local log fsync, p50 against raw pwrite and fdatasync"
	const file = "local log fsync, against a flush of nbdkit file on the same disk, "
	const many = "local log fsync, 16 jobs against one, flushes a second"
	dirs := 0
	logged := func() settings {
		dirs++
		return settings{"write.durable": false, "cache.path": filepath.Join(b.disk, fmt.Sprintf("log-%d", dirs))}
	}
	if err := b.onFresh(ctx, logged(), func(*daemon) error { return nil }); err != nil {
		if strings.Contains(err.Error(), "not yet") {
			const why = "this version has no local log"
			return []row{{Name: one, Target: 1.5, AtMost: true, Note: why}, {Name: many, Target: 4, Note: why}}, nil
		}
		return nil, err
	}
	reference := func(ctx context.Context) (figures, error) {
		l, err := b.rawSync(ctx)
		if err != nil {
			return nil, err
		}
		s, err := b.fileSync(ctx)
		return figures{"p50": l.latency.P50, "file/p50": s.Sync.P50, "file/p99": s.Sync.P99}, err
	}
	p, err := b.compare(ctx, b.flushing(logged), reference, reference)
	if err != nil {
		return nil, err
	}
	err = b.onFresh(ctx, logged(), func(d *daemon) error { return b.profile(ctx, "local log fsync, 16 jobs", d, b.syncing(16)) })
	return []row{
		against(p, one, 1, "p50", "p50", 1.5),
		against(p, file+"p50", 1, "p50", "file/p50", 1),
		against(p, file+"p99", 1, "p99", "file/p99", 1),
		manyJobs(p, many, 4),
	}, err
}

// fileSync measures flushes of nbdkit's file plugin, which syncs the file, in a file
// that was written before.
func (b *bench) fileSync(ctx context.Context) (s sample, err error) {
	path := filepath.Join(b.disk, b.name("file"))
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return s, err
	}
	defer os.Remove(path)
	if err := os.Truncate(path, b.region); err != nil {
		return s, err
	}
	k, err := b.nbdkit(ctx, "file", path)
	if err != nil {
		return s, err
	}
	defer k.kill()
	if _, err := k.fio(ctx, fioJob{rw: "write", bs: mib, depth: 4, size: b.region, flushed: true}); err != nil {
		return s, err
	}
	return k.fio(ctx, b.syncing(1))
}
