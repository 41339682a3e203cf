package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Sizes, in bytes.
const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// The latencies of the slow store.
const (
	slowGet = 15 * time.Millisecond
	slowPut = 25 * time.Millisecond
)

// bench has what measurements share.
type bench struct {
	options
	tmp      string // on a tmpfs: sockets, states, configurations
	disk     string // on a disk
	store    *store
	names    int // used so far
	profiles []profile
	// amplified is the table of the measurement of that name.
	amplified []amplified

	// How long and how large.
	runtime, ramp time.Duration
	sequential    int64 // bytes of a sequential job
	region        int64 // bytes that random writes go to
	idle          time.Duration
	mapped        int64 // bytes of the volume whose map is weighed
}

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{
		options: o,
		runtime: 5 * time.Second, ramp: time.Second,
		sequential: 4 * gib, region: gib, idle: time.Minute, mapped: 1 << 40,
	}
	reserve := int64(5 * gib)
	if o.quick {
		b.runtime, b.ramp = time.Second, 200*time.Millisecond
		b.sequential, b.region, b.idle, b.mapped = 256*mib, 128*mib, 3*time.Second, 1<<36
		reserve = 512 * mib
	}
	var err error
	if b.binary, err = filepath.Abs(o.binary); err != nil {
		return nil, err
	}
	// Chunk memory belongs on a tmpfs, where it is by default.
	if b.tmp, err = os.MkdirTemp("/dev/shm", "bs3-bench-"); err != nil {
		return nil, err
	}
	if b.disk, err = os.MkdirTemp(o.dir, "bs3-bench-"); err != nil {
		return nil, err
	}
	if b.store, err = startStore(ctx, reserve); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// close removes everything but the results.
func (b *bench) close() {
	if b.store != nil {
		b.store.stop()
	}
	for _, dir := range []string{b.tmp, b.disk} {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}

// name returns an unused name.
func (b *bench) name(kind string) string {
	b.names++
	return fmt.Sprintf("%s-%d", kind, b.names)
}

// measurement is one part of the suite; it makes rows.
type measurement struct {
	name string
	run  func(context.Context, *bench) ([]row, error)
}

func measurements() []measurement {
	return []measurement{
		{"null", measureNull},
		{"random-write", measureRandomWrite},
		{"sequential-write", measureSequentialWrite},
		{"cold-read", measureColdRead},
		{"cold-sequential", measureColdSequential},
		{"warm-read", measureWarmRead},
		{"fsync", measureFsync},
		{"local-log", measureLocalLog},
		{"scattered", measureScattered},
		{"collected", measureCollected},
		{"small-objects", measureSmallObjects},
		{"warm-up", measureWarmUp},
		{"disk-cache-write", measureDiskCacheWrite},
		{"amplification", measureAmplification},
		{"store", measureStore},
		{"memory", measureMemory},
		{"idle", measureIdle},
	}
}

// jobsName is the name of the table of jobs for -run.
const jobsName = "jobs"

// measure makes the measurements whose names match only, and puts them into all.
func (b *bench) measure(ctx context.Context, only *regexp.Regexp, all *results) error {
	all.Machine, all.Version, all.Quick, all.Pairs, all.Taken = thisMachine(ctx, b), b.version, b.quick, b.pairs, time.Now().UTC()
	all.Config = describe(baseConfig())
	for _, m := range measurements() {
		if !only.MatchString(m.name) {
			continue
		}
		began := time.Now()
		rows, err := m.run(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		for _, r := range rows {
			r.Measurement = m.name
			all.put(r)
			fmt.Println(r)
		}
		fmt.Printf("%s took %v\n", m.name, time.Since(began).Round(time.Second))
	}
	for _, p := range b.profiles {
		all.putProfile(p)
	}
	if b.amplified != nil {
		all.Amplified = b.amplified
	}
	if only.MatchString(jobsName) {
		jobs, err := measureJobs(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", jobsName, err)
		}
		all.Jobs = jobs
	}
	return nil
}
