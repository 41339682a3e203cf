package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// warmUpFor is how long hits are waited for.
	warmUpFor = 20 * time.Second
	// hitsEvery is how often hits are counted.
	hitsEvery = 500 * time.Millisecond
	// enoughHits is the share of hits by which a cache is warm.
	enoughHits = 0.9
)

// soFar is what a job has read until a time.
type soFar struct {
	after       time.Duration // its beginning
	reads, fast float64       // fast is faster than the store
}

// timeline reads the reports that fio makes while it runs.
func timeline(r io.Reader) (times []soFar, err error) {
	for d := json.NewDecoder(r); ; {
		var report struct {
			Jobs []struct {
				Error int
				Read  struct {
					Runtime float64 // ms
					Total   float64 `json:"total_ios"`
				}
				Slow map[string]float64 `json:"latency_ms"` // % of the requests, by the most that they took
			}
		}
		switch err := d.Decode(&report); {
		case errors.Is(err, io.EOF):
			return times, nil
		case err != nil:
			return nil, fmt.Errorf("fio's reports: %w", err)
		case len(report.Jobs) != 1 || report.Jobs[0].Error != 0:
			return nil, errors.New("fio reports that requests failed")
		}
		j := report.Jobs[0]
		slow := 0.0
		for most, share := range j.Slow {
			if ms, err := strconv.Atoi(most); err != nil || ms > 10 { // "2000" is followed by ">=2000"
				slow += share / 100
			}
		}
		times = append(times, soFar{time.Duration(j.Read.Runtime) * time.Millisecond, j.Read.Total, j.Read.Total * (1 - slow)})
	}
}

// warmAfter returns after which time enough of the reads of an interval were fast, or
// the length of the job if that never was so, and the share of fast ones in the last
// interval.
func warmAfter(times []soFar) (after time.Duration, last float64) {
	warm := false
	var before soFar
	for _, t := range times {
		if t.reads > before.reads && t.after-before.after >= hitsEvery/2 { // the last one may be short
			last = (t.fast - before.fast) / (t.reads - before.reads)
			if !warm {
				after, warm = t.after, last >= enoughHits
			}
		}
		before = t
	}
	return after, last
}

// warmUp reads at random, at most slowGet from the store, and returns what came of it
// as time went by.
func (d *daemon) warmUp(ctx context.Context) (times []soFar, err error) {
	out := filepath.Join(d.b.tmp, d.b.name("fio")+".json")
	defer os.Remove(out)
	_, err = command(ctx, "fio", "--name=bench", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+d.socket, "--rw=randread", "--bs=4096", "--iodepth=32",
		"--size="+strconv.FormatInt(d.b.region, 10), "--norandommap", "--randrepeat=0", "--time_based", "--runtime="+milliseconds(warmUpFor),
		"--group_reporting", "--status-interval="+milliseconds(hitsEvery), "--output-format=json", "--output="+out)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, d.output())
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	// Warnings may come first.
	if i := strings.IndexByte(string(text), '{'); i > 0 {
		text = text[i:]
	}
	times, err = timeline(strings.NewReader(string(text)))
	if err == nil && len(times) == 0 {
		err = errors.New("fio reports nothing")
	}
	return times, errors.Join(err, d.healthy())
}

// measureWarmUp measures cold random reads of what was written at random: until a
// cache that has room for all is warm, and with one that has not.
func measureWarmUp(ctx context.Context, b *bench) (rows []row, err error) {
	bucket, err := b.scattered(ctx)
	if err != nil {
		return nil, err
	}
	room := byHand().with(settings{"read.cache_size": b.region * 3 / 2 / mib})
	warm := func(ctx context.Context) (figures, error) {
		f := figures{}
		if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
			return nil, err
		}
		err := b.onCopy(ctx, bucket, room, func(d *daemon) error {
			asked, err := d.counted(ctx, func() error {
				times, err := d.warmUp(ctx)
				if err == nil {
					after, last := warmAfter(times)
					f["after"], f["last"], f["reads"] = after.Seconds(), last, times[len(times)-1].reads
				}
				return err
			})
			f["fetched"] = float64(asked.Out) / float64(b.region)
			f["gets"] = float64(asked.Get)
			return err
		})
		return f, err
	}
	p, err := b.compareSome(ctx, slowPairs(b.pairs), warm, nil, nil)
	if err != nil {
		return nil, err
	}
	r := p.plain(fmt.Sprintf("scattered volume, large cache: cold random reads, until %.0f %% are hits", 100*enoughHits), "after", "s", 1, 10)
	r = p.with(r, "hits at the end", "last", "of the reads", 1)
	r = p.with(r, "fetched", "fetched", "bytes for each byte of the volume", 1)
	rows = append(rows, p.with(r, "in all", "gets", "GETs", 1))

	// A volume ten times the cache.
	little := byHand().with(settings{"read.cache_size": max(1, b.region/10/mib)})
	j := random4K("randread", 32, b.region)
	j.cold, j.most = true, 4*b.runtime // long enough that fetching more than was asked for would show
	ours := func(ctx context.Context) (f figures, err error) {
		if err := b.store.latency(ctx, slowGet, slowPut); err != nil {
			return nil, err
		}
		err = b.onCopy(ctx, bucket, little, func(d *daemon) error {
			var s sample
			asked, err := d.counted(ctx, func() (err error) {
				s, err = d.fio(ctx, j)
				return err
			})
			f = of(s)
			f["fetched"], f["gets"] = float64(asked.Out)/s.Moved, float64(asked.Get)/s.Requests
			return err
		})
		return f, err
	}
	raw := func(ctx context.Context) (figures, error) {
		l, err := b.rawGet(ctx, 32, 4*kib, slowGet)
		return figures{"iops": l.rate}, err
	}
	if p, err = b.compareSome(ctx, slowPairs(b.pairs), ours, raw, raw); err != nil {
		return nil, err
	}
	const name = "scattered volume, cache of a tenth: cold random reads, "
	r = p.row(name+"against the raw signed GET loop, 32 at once", "iops", "requests/s", 1, 0.95, false)
	r = p.with(r, "GETs", "gets", "for each read", 1)
	rows = append(rows, r, p.plain(name+"bytes fetched for each byte read", "fetched", "", 1, 1.1))
	return rows, b.store.drop(ctx, bucket)
}
