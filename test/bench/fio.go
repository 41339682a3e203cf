package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// fioJob is one run of fio with its nbd engine.
type fioJob struct {
	rw      string
	bs      int64 // bytes
	depth   int
	jobs    int           // processes, each with a connection; 0 = one
	offset  int64         // bytes
	size    int64         // bytes
	timed   bool          // over and over for the time of a run; else once through size
	cold    bool          // a timed job without a ramp
	ios     int64         // the most requests; 0 = no limit
	total   int64         // bytes to move, if not size
	rate    int64         // bytes a second, the most; 0 = no limit
	most    time.Duration // it ends then; 0 = the time of a run if it is timed, else no limit
	mix     int           // percentage of reads of a mixed job
	fsync   bool          // after each write
	flushed bool          // a flush at the end is part of the job
	once    bool          // no block twice in a random job
}

// latency is a distribution, in nanoseconds.
type latency struct{ P50, P99, P999, Mean float64 }

// sample is the result of one job.
type sample struct {
	IOPS     float64 // requests a second, reads and writes
	Bytes    float64 // a second
	Requests float64
	Moved    float64 // bytes
	Read     latency
	Write    latency
	Sync     latency
	Syncs    float64
	SyncRate float64 // flushes a second

	// Processor time of the server, in seconds.
	CPURequest, CPUByte float64
}

// fio runs a job against what server exports on a unix socket.
func (b *bench) fio(ctx context.Context, server *process, socket string, j fioJob) (s sample, err error) {
	before, err := server.cpu()
	if err != nil {
		return s, err
	}
	// Of a job with a ramp only the time after that counts, so the server is watched
	// during the job.
	watched := make(chan error, 1)
	var share float64 // processors in use
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	ramped := j.timed && !j.cold
	if ramped {
		go func() {
			var err error
			share, err = server.share(watch, b.ramp+b.runtime/4, b.runtime/2)
			watched <- err
		}()
	}
	if s, err = b.runFio(ctx, socket, j); err != nil {
		return s, err
	}
	if err := server.healthy(); err != nil {
		return s, err
	}
	if ramped {
		if err := <-watched; err != nil {
			return s, err
		}
		s.CPURequest, s.CPUByte = share/s.IOPS, share/s.Bytes
		return s, nil
	}
	after, err := server.cpu()
	used := (after - before).Seconds()
	s.CPURequest, s.CPUByte = used/s.Requests, used/s.Moved
	return s, err
}

func (b *bench) runFio(ctx context.Context, socket string, j fioJob) (s sample, err error) {
	out := filepath.Join(b.tmp, b.name("fio")+".json")
	defer os.Remove(out)
	args := []string{
		"--name=bench", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket, "--rw=" + j.rw, "--bs=" + strconv.FormatInt(j.bs, 10),
		"--iodepth=" + strconv.Itoa(j.depth), "--numjobs=" + strconv.Itoa(max(1, j.jobs)), "--group_reporting",
		"--offset=" + strconv.FormatInt(j.offset, 10), "--size=" + strconv.FormatInt(j.size, 10),
		"--randrepeat=0", "--lat_percentiles=1", "--percentile_list=50:99:99.9", "--output-format=json", "--output=" + out,
	}
	if j.timed {
		args = append(args, "--time_based")
		if j.most == 0 {
			j.most = b.runtime
		}
		if !j.cold {
			args = append(args, "--ramp_time="+milliseconds(b.ramp))
		}
	}
	if !j.once {
		args = append(args, "--norandommap")
	}
	if j.ios > 0 {
		args = append(args, "--number_ios="+strconv.FormatInt(j.ios, 10))
	}
	if j.total > 0 {
		args = append(args, "--io_size="+strconv.FormatInt(j.total, 10))
	}
	if j.rate > 0 {
		args = append(args, "--rate="+strconv.FormatInt(j.rate, 10))
	}
	if j.most > 0 {
		args = append(args, "--runtime="+milliseconds(j.most))
	}
	if j.mix > 0 {
		args = append(args, "--rwmixread="+strconv.Itoa(j.mix))
	}
	if j.fsync {
		args = append(args, "--fsync=1")
	}
	if j.flushed {
		args = append(args, "--end_fsync=1")
	}
	if _, err := command(ctx, "fio", args...); err != nil {
		return s, err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return s, err
	}
	return parseFio(text)
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// parseFio reads fio's report of one group.
func parseFio(text []byte) (s sample, err error) {
	type times struct {
		Mean       float64
		Percentile map[string]float64
	}
	type direction struct {
		IOPS       float64
		BW         float64 `json:"bw_bytes"`
		Runtime    float64 // ms
		Total      float64 `json:"total_ios"`
		Moved      float64 `json:"io_bytes"`
		Latency    times   `json:"lat_ns"`
		ShortOrBad float64 `json:"short_ios"`
	}
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write direction
			Runtime     float64 `json:"job_runtime"` // ms, of all processes
			Sync        struct {
				Total   float64 `json:"total_ios"`
				Latency times   `json:"lat_ns"`
			}
		}
	}
	// Warnings may come first.
	if i := strings.IndexByte(string(text), '{'); i > 0 {
		text = text[i:]
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return s, fmt.Errorf("fio's report: %w", err)
	}
	if len(report.Jobs) != 1 {
		return s, fmt.Errorf("fio reports %d groups", len(report.Jobs))
	}
	j := report.Jobs[0]
	if j.Error != 0 || j.Read.ShortOrBad+j.Write.ShortOrBad > 0 {
		return s, fmt.Errorf("requests failed: fio reports errno %d, %v short", j.Error, j.Read.ShortOrBad+j.Write.ShortOrBad)
	}
	of := func(t times) latency {
		return latency{P50: t.Percentile["50.000000"], P99: t.Percentile["99.000000"], P999: t.Percentile["99.900000"], Mean: t.Mean}
	}
	s = sample{
		IOPS: j.Read.IOPS + j.Write.IOPS, Bytes: j.Read.BW + j.Write.BW,
		Requests: j.Read.Total + j.Write.Total, Moved: j.Read.Moved + j.Write.Moved,
		Read: of(j.Read.Latency), Write: of(j.Write.Latency),
		Sync: of(j.Sync.Latency), Syncs: j.Sync.Total,
	}
	if s.Requests == 0 || s.IOPS == 0 {
		return s, errors.New("fio made no request")
	}
	if ms := max(j.Read.Runtime, j.Write.Runtime); ms > 0 {
		s.SyncRate = j.Sync.Total / ms * 1000
	}
	return s, nil
}
