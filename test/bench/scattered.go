package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// scanLimit bounds a read of a volume in order: what it has read by then counts.
const scanLimit = 20 * time.Second

// scan is a way to read a volume in order, with nothing of it cached and slowGet.
type scan struct {
	name string
	job  fioJob
}

func (b *bench) scans() [2]scan {
	return [2]scan{
		{"1 MiB depth 4", fioJob{rw: "read", bs: mib, depth: 4, size: b.region, most: scanLimit}},
		{"128 KiB depth 1", fioJob{rw: "read", bs: 128 * kib, depth: 1, size: b.region, most: scanLimit}},
	}
}

// scan reads the volume in order, and puts into f what that took.
func (d *daemon) scan(ctx context.Context, j fioJob, f figures, name string) error {
	if err := d.b.store.latency(ctx, slowGet, slowPut); err != nil {
		return err
	}
	var s sample
	asked, err := d.counted(ctx, func() (err error) {
		s, err = d.fio(ctx, j)
		return err
	})
	f[name+"/bytes"] = s.Bytes
	f[name+"/gets"] = 1e6 * float64(asked.Get) / s.Moved
	f[name+"/fetched"] = float64(asked.Out) / s.Moved
	f[name+"/read"] = s.Moved / float64(d.b.region)
	return err
}

// scanCold returns a trial of all scans of a volume with settings s, each with nothing
// cached.
func (b *bench) scanCold(bucket string, s settings) trial {
	return func(ctx context.Context) (figures, error) {
		f := figures{}
		for _, c := range b.scans() {
			if err := b.onCopy(ctx, bucket, s, func(d *daemon) error { return d.scan(ctx, c.job, f, c.name) }); err != nil {
				return nil, err
			}
		}
		return f, nil
	}
}

// scanTwice returns a trial of two scans of a volume, the second one with nothing
// cached either: what is faster about it the first one has written.
func (b *bench) scanTwice(bucket string, s settings) trial {
	return func(ctx context.Context) (figures, error) {
		to, f, j := b.name("bucket"), figures{}, b.scans()[0].job
		if err := b.store.copyTo(ctx, bucket, to); err != nil {
			return nil, err
		}
		for _, name := range []string{"first", "second"} {
			d, err := b.bs3(ctx, to, s.with(settings{"takeover": "auto"}))
			if err != nil {
				return nil, err
			}
			err = d.scan(ctx, j, f, name)
			if err == nil {
				_, err = d.silent(ctx, 2*time.Second, time.Minute)
			}
			if err != nil {
				d.kill()
				return nil, err
			}
			if err := d.close(); err != nil {
				return nil, err
			}
		}
		return f, b.store.drop(ctx, to)
	}
}

// slowPairs is how many of pairs are made where one takes a minute.
func slowPairs(pairs int) int { return min(pairs, 3) }

// scanRows returns the rows of the scans of a comparison, rates and GETs, of a
// scattered volume in the state that how says.
func (b *bench) scanRows(p paired, how string, rates [2]float64, gets float64) (rows []row) {
	for i, c := range b.scans() {
		name := fmt.Sprintf("scattered volume, %s: scan %s, ", how, c.name)
		r := p.row(name+"against one of a volume written in order", c.name+"/bytes", "MB/s", 1e-6, rates[i], false)
		r = p.with(r, "read", c.name+"/read", "of the volume", 1)
		r = p.with(r, "fetched", c.name+"/fetched", "bytes for each byte read", 1)
		rows = append(rows, r, p.plain(name+"GETs", c.name+"/gets", "GETs/MB", 1, gets))
	}
	return rows
}

// measureScattered measures reads in order of what was written at random.
func measureScattered(ctx context.Context, b *bench) (rows []row, err error) {
	ordered, err := b.written(ctx, byHand(), []fioJob{b.inOrder()}, nil)
	if err != nil {
		return nil, err
	}
	bucket, err := b.scattered(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name  string
		cache int64      // bytes: the default one is a quarter of the region, also in short runs
		rates [2]float64 // of the scans
		gets  float64
	}{
		{"large cache", b.region * 3 / 2, [2]float64{0.2, 0.2}, 2},
		// Twice the rate, and half of the GETs, of reads that fetch block by block.
		{"default cache", b.region / 4, [2]float64{2 * 0.02, 2 * 0.01}, 240. / 2},
	} {
		s := byHand().with(settings{"read.cache_size": c.cache / mib})
		p, err := b.compareSome(ctx, slowPairs(b.pairs), b.scanCold(bucket, s), b.scanCold(ordered, s), b.scanCold(ordered, s))
		if err != nil {
			return nil, err
		}
		rows = append(rows, b.scanRows(p, c.name, c.rates, c.gets)...)
	}
	p, err := b.compareSome(ctx, slowPairs(b.pairs), b.scanTwice(bucket, byHand().with(settings{"read.cache_size": b.region / 4 / mib})), nil, nil)
	if err != nil {
		return nil, err
	}
	single := ratios(all(p.ours, "second/bytes"), all(p.ours, "first/bytes"))
	twice := row{
		Name:   fmt.Sprintf("scattered volume, default cache: second scan %s, against the first", b.scans()[0].name),
		Target: 2, Value: median(single), Single: single,
		Details: []detail{
			{"second", 1e-6 * median(all(p.ours, "second/bytes")), "MB/s"}, {"first", 1e-6 * median(all(p.ours, "first/bytes")), "MB/s"},
			{"second", median(all(p.ours, "second/gets")), "GETs/MB"}, {"first", median(all(p.ours, "first/gets")), "GETs/MB"},
		},
	}
	return append(rows, twice), b.dropAll(ctx, ordered, bucket)
}

// measureCollected measures reads in order, and the map, of what was written at
// random and then put in order.
func measureCollected(ctx context.Context, b *bench) (rows []row, err error) {
	ordered, err := b.written(ctx, byHand(), []fioJob{b.inOrder()}, nil)
	if err != nil {
		return nil, err
	}
	scattered, err := b.scattered(ctx)
	if err != nil {
		return nil, err
	}
	before, err := b.mapBytes(ctx, scattered)
	if err != nil {
		return nil, err
	}
	inOrderAgain, gets := [2]float64{0.7, 0.7}, 1. // of the scans
	judge := func(name string, c tidied) error {
		after, err := b.mapBytes(ctx, c.bucket)
		if err != nil {
			return err
		}
		p, err := b.compare(ctx, b.scanCold(c.bucket, byHand()), b.scanCold(ordered, byHand()), b.scanCold(ordered, byHand()))
		if err != nil {
			return err
		}
		rows = append(rows, b.scanRows(p, "after "+name, inOrderAgain, gets)...)
		rows = append(rows, row{
			Name:   "scattered volume, after " + name + ": memory of the map, against before",
			Target: 0.2, AtMost: true, Value: float64(after) / float64(before),
			Details: []detail{
				{"before", float64(before) / mib, "MiB"}, {"after", float64(after) / mib, "MiB"},
				{"in the daemon that did it", float64(c.end.MapBytes) / mib, "MiB"},
				{"moved", float64(c.end.Collected.MovedBytes) / float64(3*b.region), "bytes for each byte written"}, {"it took", c.took.Seconds(), "s"},
			},
		})
		return b.store.drop(ctx, c.bucket)
	}

	const wait = 5 // most of it is written before the second collection
	var c tidied
	c.bucket, err = b.written(ctx, byTime(wait), []fioJob{b.inOrder(), b.atRandom()}, func(d *daemon) (err error) {
		c.end, c.took, err = d.collected(ctx, wait)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := judge("collections by time", c); err != nil {
		return nil, err
	}

	const asked = "gc --defrag"
	c, err = b.defragged(ctx, scattered)
	switch {
	case errors.Is(err, errNoDefrag):
		for _, r := range b.scanRows(paired{}, "after "+asked, inOrderAgain, gets) {
			r.Note = err.Error()
			rows = append(rows, r)
		}
	case err != nil:
		return nil, err
	default:
		if err := judge(asked, c); err != nil {
			return nil, err
		}
	}
	return rows, b.dropAll(ctx, ordered, scattered)
}

// tidied is a volume that was put in order.
type tidied struct {
	bucket string
	end    status
	took   time.Duration
}

var errNoDefrag = errors.New("this version has no gc --defrag")

// defragged puts a copy of a volume in order. Errors: errNoDefrag.
func (b *bench) defragged(ctx context.Context, bucket string) (c tidied, err error) {
	c.bucket = b.name("bucket")
	if err := b.store.copyTo(ctx, bucket, c.bucket); err != nil {
		return c, err
	}
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return c, err
	}
	d, err := b.bs3(ctx, c.bucket, byHand())
	if err != nil {
		return c, err
	}
	began := time.Now()
	if _, err = d.verb(ctx, "gc", "--defrag"); err == nil {
		c.took = time.Since(began)
		c.end, err = d.status(ctx)
	} else if strings.Contains(err.Error(), "unknown flag") {
		err = errors.Join(errNoDefrag, b.store.drop(ctx, c.bucket))
	}
	if err != nil {
		d.kill()
		return c, err
	}
	return c, d.close()
}

// dropAll removes buckets.
func (b *bench) dropAll(ctx context.Context, buckets ...string) error {
	for _, bucket := range buckets {
		if err := b.store.drop(ctx, bucket); err != nil {
			return err
		}
	}
	return nil
}
