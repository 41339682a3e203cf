package main

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// of returns the figures of a sample that comparisons use.
func of(s sample) figures {
	return figures{
		"iops": s.IOPS, "bytes": s.Bytes, "cpu/request": s.CPURequest, "cpu/byte": s.CPUByte,
		"p50": max(s.Read.P50, s.Write.P50), "p99": max(s.Read.P99, s.Write.P99), "p999": max(s.Read.P999, s.Write.P999),
	}
}

// job returns a trial of a job on a running server.
func job(server interface {
	fio(context.Context, fioJob) (sample, error)
}, j fioJob) trial {
	return func(ctx context.Context) (figures, error) {
		s, err := server.fio(ctx, j)
		return of(s), err
	}
}

// random4K returns a timed job of random requests of 4 KiB.
func random4K(rw string, depth int, size int64) fioJob {
	return fioJob{rw: rw, bs: 4 * kib, depth: depth, size: size, timed: true}
}

// measureNull measures the transport alone.
func measureNull(ctx context.Context, b *bench) (rows []row, err error) {
	const size = 8 * gib
	reference, err := b.nbdkit(ctx, "null", strconv.FormatInt(size, 10))
	if err != nil {
		return nil, err
	}
	defer reference.kill()
	control, err := b.nbdkit(ctx, "null", strconv.FormatInt(size, 10))
	if err != nil {
		return nil, err
	}
	defer control.kill()
	d, err := b.bs3(ctx, "", settings{"null": true})
	if err != nil {
		return nil, err
	}
	defer d.kill()
	for _, rw := range []string{"randwrite", "randread"} {
		j := random4K(rw, 32, size)
		p, err := b.compare(ctx, job(d, j), job(reference, j), job(control, j))
		if err != nil {
			return nil, err
		}
		r := p.row("null volume, NBD 4 KiB depth 32 "+rw+", against nbdkit null", "iops", "requests/s", 1, 1, false)
		rows = append(rows, p.with(r, "CPU", "cpu/request", "µs/request", 1e6))
		if err := b.profile(ctx, "null "+rw, d, j); err != nil {
			return nil, err
		}
	}
	return rows, d.close()
}

// firstPass has a daemon take from the kernel the memory that it will use, as
// nbdkitMemory does: that takes several times as long as using it, but happens
// once.
func (b *bench) firstPass(ctx context.Context, d *daemon) error {
	_, err := d.fio(ctx, fioJob{rw: "randwrite", bs: 64 * kib, depth: 8, size: b.region, ios: 512 * mib / (64 * kib), flushed: true})
	return err
}

// measureRandomWrite measures writes of 4 KiB against nbdkit's memory.
func measureRandomWrite(ctx context.Context, b *bench) (rows []row, err error) {
	reference, err := b.nbdkitMemory(ctx, b.region)
	if err != nil {
		return nil, err
	}
	defer reference.kill()
	j := random4K("randwrite", 32, b.region)
	for _, put := range []time.Duration{0, slowPut} {
		fresh := func(ctx context.Context) (f figures, err error) {
			if err := b.store.latency(ctx, 0, put); err != nil {
				return nil, err
			}
			err = b.onFresh(ctx, nil, func(d *daemon) error {
				if err := b.firstPass(ctx, d); err != nil {
					return err
				}
				f, err = job(d, j)(ctx)
				return err
			})
			return f, err
		}
		p, err := b.compare(ctx, fresh, job(reference, j), job(reference, j))
		if err != nil {
			return nil, err
		}
		at := fmt.Sprintf(" at PUT latency %v", put)
		r := p.row("4 KiB random write depth 32 into S3"+at+", against nbdkit memory", "iops", "requests/s", 1, 0.7, false)
		r = p.with(r, "p50", "p50", "µs", 1e-3)
		rows = append(rows, p.with(r, "p99.9", "p999", "µs", 1e-3),
			p.row("CPU of the daemon, 4 KiB random write depth 32"+at+", per request, against nbdkit memory", "cpu/request", "µs", 1e6, 1.25, true))
		if err := b.store.latency(ctx, 0, put); err != nil {
			return nil, err
		}
		err = b.onFresh(ctx, nil, func(d *daemon) error {
			if err := b.firstPass(ctx, d); err != nil {
				return err
			}
			return b.profile(ctx, "random write"+at, d, j)
		})
		if err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// measureSequentialWrite measures writes through NBD into the store against these
// two stages one after the other.
func measureSequentialWrite(ctx context.Context, b *bench) ([]row, error) {
	reference, err := b.nbdkitMemory(ctx, b.sequential)
	if err != nil {
		return nil, err
	}
	defer reference.kill()
	j := fioJob{rw: "write", bs: mib, depth: 4, size: b.sequential, flushed: true}
	ours := func(ctx context.Context) (f figures, err error) {
		if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
			return nil, err
		}
		err = b.onFresh(ctx, nil, func(d *daemon) error {
			f, err = job(d, j)(ctx)
			return err
		})
		return f, err
	}
	both := func(ctx context.Context) (figures, error) {
		memory, err := job(reference, j)(ctx)
		if err != nil {
			return nil, err
		}
		put, err := b.rawPut(ctx, 32, objectSize(mib), slowPut)
		if err != nil {
			return nil, err
		}
		rate := put.rate * 4 * mib
		return figures{
			"bytes": harmonic(memory["bytes"], rate), "cpu/byte": put.cpu / (4 * mib),
			"memory": memory["bytes"], "put": rate,
		}, nil
	}
	p, err := b.compare(ctx, ours, both, both)
	if err != nil {
		return nil, err
	}
	r := p.row(fmt.Sprintf("sequential 1 MiB write into S3 at PUT latency %v, against nbdkit memory and the raw PUT loop one after the other", slowPut),
		"bytes", "MB/s", 1e-6, 0.9, false)
	r.Details = append(r.Details,
		detail{"nbdkit memory", 1e-6 * median(all(p.reference, "memory")), "MB/s"},
		detail{"raw PUT", 1e-6 * median(all(p.reference, "put")), "MB/s"})
	cpu := p.row("CPU of the daemon, sequential write, per GB, against the signed PUT alone", "cpu/byte", "s/GB", 1e9, 2, true)
	err = b.onFresh(ctx, nil, func(d *daemon) error { return b.profile(ctx, "sequential write", d, j) })
	return []row{r, cpu}, err
}

// measureColdRead measures random reads, every one of which has to ask the store.
func measureColdRead(ctx context.Context, b *bench) (rows []row, err error) {
	size := b.sequential / 2
	bucket, err := b.prepared(ctx, size)
	if err != nil {
		return nil, err
	}
	j := random4K("randread", 32, size)
	j.once = true
	for _, c := range []struct {
		latency time.Duration
		target  float64
	}{{slowGet, 0.95}, {0, 0.5}} {
		ours := func(ctx context.Context) (f figures, err error) {
			if err := b.store.latency(ctx, c.latency, c.latency); err != nil {
				return nil, err
			}
			err = b.onPrepared(ctx, bucket, nil, func(d *daemon) error {
				f, err = job(d, j)(ctx)
				return err
			})
			return f, err
		}
		raw := func(ctx context.Context) (figures, error) {
			l, err := b.rawGet(ctx, 32, 4*kib, c.latency)
			return figures{"iops": l.rate, "cpu/request": l.cpu, "p50": l.latency.P50, "p999": l.latency.P999}, err
		}
		p, err := b.compare(ctx, ours, raw, raw)
		if err != nil {
			return nil, err
		}
		r := p.row(fmt.Sprintf("cold 4 KiB random read depth 32 at GET latency %v, against the raw signed GET loop, 32 at once", c.latency),
			"iops", "requests/s", 1, c.target, false)
		r = p.with(r, "p50", "p50", "µs", 1e-3)
		r = p.with(r, "p99.9", "p999", "µs", 1e-3)
		r = p.with(r, "CPU", "cpu/request", "µs/request", 1e6)
		r.Details = append(r.Details, detail{"reference CPU", 1e6 * median(all(p.reference, "cpu/request")), "µs/request"})
		rows = append(rows, r)
		if err := b.store.latency(ctx, c.latency, c.latency); err != nil {
			return nil, err
		}
		err = b.onPrepared(ctx, bucket, nil, func(d *daemon) error {
			return b.profile(ctx, fmt.Sprintf("cold random read at GET latency %v", c.latency), d, j)
		})
		if err != nil {
			return nil, err
		}
	}
	return rows, b.store.drop(ctx, bucket)
}

// measureColdSequential measures readahead for one reader.
func measureColdSequential(ctx context.Context, b *bench) ([]row, error) {
	size := b.sequential / 2
	bucket, err := b.prepared(ctx, size)
	if err != nil {
		return nil, err
	}
	reference, err := b.nbdkitMemory(ctx, size)
	if err != nil {
		return nil, err
	}
	defer reference.kill()
	const first = 64 * mib // until the window has grown
	j := fioJob{rw: "read", bs: 128 * kib, depth: 1, offset: first, size: size - first}
	head := fioJob{rw: "read", bs: 128 * kib, depth: 1, size: first}
	ours := func(ctx context.Context) (f figures, err error) {
		if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
			return nil, err
		}
		err = b.onPrepared(ctx, bucket, nil, func(d *daemon) error {
			if _, err := d.fio(ctx, head); err != nil {
				return err
			}
			asked, err := d.counted(ctx, func() (err error) {
				f, err = job(d, j)(ctx)
				return err
			})
			if err == nil {
				f["fetched"] = float64(asked.Out) / float64(j.size)
			}
			return err
		})
		return f, err
	}
	both := func(ctx context.Context) (figures, error) {
		memory, err := job(reference, j)(ctx)
		if err != nil {
			return nil, err
		}
		get, err := b.rawGet(ctx, 16, 4*mib, slowGet)
		if err != nil {
			return nil, err
		}
		rate := get.rate * 4 * mib
		return figures{"bytes": harmonic(memory["bytes"], rate), "memory": memory["bytes"], "get": rate}, nil
	}
	p, err := b.compare(ctx, ours, both, both)
	if err != nil {
		return nil, err
	}
	r := p.row(fmt.Sprintf("cold sequential 128 KiB read depth 1 at GET latency %v after its first 64 MiB, against nbdkit memory and the raw 4 MiB GET loop, 16 at once, one after the other", slowGet),
		"bytes", "MB/s", 1e-6, 0.7, false)
	r.Details = append(r.Details,
		detail{"nbdkit memory", 1e-6 * median(all(p.reference, "memory")), "MB/s"},
		detail{"raw GET", 1e-6 * median(all(p.reference, "get")), "MB/s"})
	r = p.with(r, "fetched", "fetched", "bytes for each byte read", 1)
	if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
		return nil, err
	}
	err = b.onPrepared(ctx, bucket, nil, func(d *daemon) error { return b.profile(ctx, "cold sequential read", d, j) })
	if err != nil {
		return nil, err
	}
	return []row{r}, b.store.drop(ctx, bucket)
}

// measureWarmRead measures reads that the memory cache answers.
func measureWarmRead(ctx context.Context, b *bench) ([]row, error) {
	const size = 128 * mib // half of the cache
	bucket, err := b.prepared(ctx, size)
	if err != nil {
		return nil, err
	}
	reference, err := b.nbdkitMemory(ctx, size)
	if err != nil {
		return nil, err
	}
	defer reference.kill()
	d, err := b.bs3(ctx, bucket, nil)
	if err != nil {
		return nil, err
	}
	defer d.kill()
	if _, err := d.fio(ctx, fioJob{rw: "read", bs: mib, depth: 4, size: size}); err != nil {
		return nil, err
	}
	j := random4K("randread", 32, size)
	var p paired
	asked, err := d.counted(ctx, func() error {
		p, err = b.compare(ctx, job(d, j), job(reference, j), job(reference, j))
		return err
	})
	if err != nil {
		return nil, err
	}
	r := p.row("warm 4 KiB random read depth 32 (memory cache), against nbdkit memory", "iops", "requests/s", 1, 1, false)
	r = p.with(r, "CPU", "cpu/request", "µs/request", 1e6)
	r = p.with(r, "p99.9", "p999", "µs", 1e-3)
	r.Details = append(r.Details, detail{"misses", float64(asked.Get), "GETs in all runs"})
	cpu := p.row("CPU of the daemon, warm 4 KiB random read depth 32, per request, against nbdkit memory", "cpu/request", "µs", 1e6, 1.25, true)
	if err := b.profile(ctx, "warm random read", d, j); err != nil {
		return nil, err
	}
	if err := d.close(); err != nil {
		return nil, err
	}
	return []row{r, cpu}, b.store.drop(ctx, bucket)
}
