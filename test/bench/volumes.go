package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
	"bs3/internal/bs3/volume"
)

// byHand are settings by which nothing is collected unless somebody asks for it.
func byHand() settings { return settings{"gc.wait": 0} }

// byTime are settings by which a daemon collects what it can every so many seconds.
func byTime(wait int) settings { return settings{"gc.wait": wait, "checkpoint.interval": 1} }

// written makes a bucket with a volume of a daemon with settings s that fill wrote to,
// and calls after, unless it is nil, before that daemon is stopped cleanly.
func (b *bench) written(ctx context.Context, s settings, fill []fioJob, after func(*daemon) error) (bucket string, err error) {
	bucket = b.name("bucket")
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return "", err
	}
	d, err := b.bs3(ctx, bucket, s)
	if err != nil {
		return "", err
	}
	for _, j := range fill {
		if _, err := d.fio(ctx, j); err != nil {
			d.kill()
			return "", err
		}
	}
	if after != nil {
		if err := after(d); err != nil {
			d.kill()
			return "", err
		}
	}
	return bucket, d.close()
}

// inOrder writes the region once from its beginning to its end.
func (b *bench) inOrder() fioJob {
	return fioJob{rw: "write", bs: mib, depth: 8, size: b.region, flushed: true}
}

// atRandom overwrites the region, 4 KiB at a time, with twice its size.
func (b *bench) atRandom() fioJob {
	return fioJob{rw: "randwrite", bs: 4 * kib, depth: 32, size: b.region, total: 2 * b.region, flushed: true}
}

// scattered makes a bucket with a volume that was written in order and then
// overwritten at random. Nothing of it was collected.
func (b *bench) scattered(ctx context.Context) (bucket string, err error) {
	return b.written(ctx, byHand(), []fioJob{b.inOrder(), b.atRandom()}, nil)
}

// onCopy calls f with a new daemon of a copy of a bucket's volume, which has nothing
// cached. What f writes is gone afterwards.
func (b *bench) onCopy(ctx context.Context, bucket string, s settings, f func(*daemon) error) error {
	to := b.name("bucket")
	if err := b.store.copyTo(ctx, bucket, to); err != nil {
		return err
	}
	if err := b.onPrepared(ctx, to, s, f); err != nil {
		return err
	}
	return b.store.drop(ctx, to)
}

// status is what `bs3 status` says, as far as measurements use it. What a version
// does not say is zero.
type status struct {
	Objects      int   `json:"objects"`
	StoredBytes  int64 `json:"stored_bytes"`
	LiveBytes    int64 `json:"live_bytes"`
	WrittenBytes int64 `json:"written_bytes"`
	MapBytes     int64 `json:"map_bytes"`
	Collected    struct {
		MovedBytes int64 `json:"moved_bytes"`
	} `json:"collected"`
	DiskCache struct {
		Hits    uint64 `json:"hits"`
		Misses  uint64 `json:"misses"`
		Dropped uint64 `json:"dropped"`
	} `json:"disk_cache"`
}

func (d *daemon) status(ctx context.Context) (s status, err error) {
	text, err := d.verb(ctx, "status", "--json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(text), &s)
}

// amplification returns how many bytes were moved for each byte written.
func (s status) amplification() float64 {
	return float64(s.Collected.MovedBytes) / float64(max(1, s.WrittenBytes))
}

// collectingFor bounds how long collections by time are waited for.
const collectingFor = 2 * time.Minute

// collected waits until a daemon byTime(wait) neither moves nor deletes anything any
// more, and returns how it is then, and how long that took.
func (d *daemon) collected(ctx context.Context, wait int) (s status, took time.Duration, err error) {
	quiet := 5 * time.Second * time.Duration(wait) / 2 // two collections at least
	began := time.Now()
	silent, err := d.silent(ctx, quiet, collectingFor)
	if err != nil {
		return s, 0, err
	}
	took = time.Since(began)
	if silent {
		took -= quiet
	}
	s, err = d.status(ctx)
	return s, took, err
}

// knows reports whether this version has the settings.
func (b *bench) knows(ctx context.Context, s settings) (bool, error) {
	err := b.onFresh(ctx, s, func(*daemon) error { return nil })
	if err == nil {
		return true, nil
	}
	for key := range s {
		if strings.Contains(err.Error(), key) {
			return false, nil
		}
	}
	return false, err
}

// mapBytes returns the memory that the map of a released volume takes when it is
// opened.
func (b *bench) mapBytes(ctx context.Context, bucket string) (int64, error) {
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return 0, err
	}
	plain, err := s3.New(ctx, b.s3Options(bucket))
	if err != nil {
		return 0, err
	}
	store := objproxy.NewRetry(plain, objproxy.RetryOptions{Log: zerolog.Nop()})
	v, _, err := volume.ReadRecord(ctx, store)
	if err != nil {
		return 0, err
	}
	if !v.Writer.Released || len(v.Checkpoints) == 0 {
		return 0, fmt.Errorf("the volume in %s was not released", bucket)
	}
	maps := mapproxy.New(uint64(v.Size) / uint64(v.BlockSize))
	if _, err := volume.LoadMap(ctx, store, v.UUID, v.Checkpoints[len(v.Checkpoints)-1], maps); err != nil {
		return 0, err
	}
	return maps.Bytes(), nil
}
