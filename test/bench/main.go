// Bench measures bs3 against the raw limits of the machine it runs on, and writes
// the results to docs/PERFORMANCE.md. `make bench` runs it.
//
// What is compared is measured in one run, in turns, between the same two ends: an
// S3 server of our own in another process (s3server), nbdkit for what NBD and fio
// cost, plain HTTP requests for what the store allows, a file for what the disk
// allows. A ratio is the median over pairs of adjacent runs. Beside it is a
// control, the reference measured against itself in the same way, which shows how
// far from 1 a ratio may be by chance.
//
// Any failed request fails the whole run.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		if err := serveStore(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: S3 server:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	quick   bool
	pairs   int
	binary  string
	dir     string
	only    string
	results string
	doc     string
	version string
}

func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "short runs that show that the suite works; the figures mean little")
	f.IntVar(&o.pairs, "pairs", 0, "pairs of runs for each ratio (5, or 1 with -quick)")
	f.StringVar(&o.binary, "bs3", "./bs3", "the program to measure")
	f.StringVar(&o.dir, "dir", "", "directory on the disk of the local log, for files (default a temporary one)")
	f.StringVar(&o.only, "run", ".", "measure only what this regular expression matches")
	f.StringVar(&o.results, "results", "", "keep the figures in this file; with -run, the figures of other measurements in it stay")
	f.StringVar(&o.doc, "doc", "", "write the report into this Markdown file and its plots beside it")
	f.StringVar(&o.version, "version", "unknown", "version of bs3 for the report")
	if err := f.Parse(args); err != nil {
		return err
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if o.pairs == 0 {
		o.pairs = 5
		if o.quick {
			o.pairs = 1
		}
	}
	all := &results{}
	if o.results != "" && o.only != "." {
		if all, err = loadResults(o.results); err != nil {
			return err
		}
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	err = b.measure(ctx, only, all)
	b.close()
	if err != nil {
		return err
	}
	all.print(os.Stdout)
	if o.results != "" {
		if err := all.save(o.results); err != nil {
			return err
		}
	}
	if o.doc != "" {
		return all.write(o.doc)
	}
	return nil
}

// results are everything that was measured.
type results struct {
	Machine   machine
	Config    string // of the daemon
	Version   string
	Quick     bool
	Pairs     int
	Taken     time.Time
	Rows      []row
	Jobs      []jobResult
	Profiles  []profile
	Amplified []amplified
}

func loadResults(path string) (*results, error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return &results{}, nil
	}
	if err != nil {
		return nil, err
	}
	r := &results{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func (r *results) save(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
