package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The bench rewrites what is between these lines of the document.
const (
	beginMark = "<!-- begin: written by make bench -->"
	endMark   = "<!-- end: written by make bench -->"
)

// print writes the table of targets as text.
func (r *results) print(w io.Writer) {
	met, judged := 0, 0
	for _, row := range r.Rows {
		fmt.Fprintln(w, row)
		if !row.Free {
			judged++
			if row.Note == "" && row.met() {
				met++
			}
		}
	}
	fmt.Fprintf(w, "%d of %d targets are met\n", met, judged)
}

// write writes the report into a Markdown file, between the marks, and its plots
// into a directory beside it.
func (r *results) write(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), beginMark)
	_, after, closed := strings.Cut(rest, endMark)
	if !ok || !closed {
		return fmt.Errorf("%s has no lines %q and %q", path, beginMark, endMark)
	}
	dir := strings.TrimSuffix(path, filepath.Ext(path))
	dir = filepath.Join(filepath.Dir(dir), strings.ToLower(filepath.Base(dir)))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(before + beginMark + "\n\n")
	r.markdown(&b)
	for _, p := range r.plots() {
		if err := os.WriteFile(filepath.Join(dir, p.file), []byte(p.svg()), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&b, "![%s](%s/%s)\n\n", p.title, filepath.Base(dir), p.file)
	}
	r.profileTable(&b)
	b.WriteString(endMark + after)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// markdown writes the tables.
func (r *results) markdown(w io.Writer) {
	fmt.Fprintf(w, "bs3 %s, %s. %s.\n\n", r.Version, r.Taken.Format(time.DateOnly), r.Machine)
	fmt.Fprintf(w, "Configuration: the defaults, and `%s`.\n\n", strings.ReplaceAll(r.Config, ", ", "`, `"))
	if r.Quick {
		fmt.Fprint(w, "**A quick run, which shows that the suite works; its figures mean little.**\n\n")
	}
	fmt.Fprintf(w, "Medians of %d pairs, of %d where a run takes long (scans and warm-up of scattered volumes); *control* is the reference measured against itself.\n\n", r.Pairs, slowPairs(r.Pairs))
	fmt.Fprint(w, "| measurement | target | measured | control | details |\n|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		if !row.Free {
			row.markdown(w)
		}
	}
	fmt.Fprint(w, "\nWithout a target:\n\n| measurement | | measured | control | details |\n|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		if row.Free {
			row.markdown(w)
		}
	}
	if len(r.Amplified) > 0 {
		r.amplificationTable(w)
	}
	if len(r.Jobs) > 0 {
		r.jobTable(w)
	}
	fmt.Fprintln(w)
}

func (r row) markdown(w io.Writer) {
	var asked, measured, control string
	if !r.Free {
		asked = map[bool]string{true: "≤ ", false: "≥ "}[r.AtMost] + r.figure(r.Target)
	}
	switch {
	case r.Note != "":
		measured = r.Note
	case r.met():
		measured = r.figure(r.Value)
	default:
		measured = "**" + r.figure(r.Value) + "**, not met"
	}
	if r.Control != 0 {
		control = number(r.Control)
	}
	var from []string
	for _, d := range r.Details {
		from = append(from, d.String())
	}
	fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", r.Name, asked, measured, control, strings.Join(from, "; "))
}

// figure formats a value with the row's unit.
func (r row) figure(v float64) string { return strings.TrimSpace(number(v) + " " + r.Unit) }

// amplificationTable writes the steady states.
func (r *results) amplificationTable(w io.Writer) {
	fmt.Fprint(w, "\nAmplification in steady state: bytes put for each byte written, and bytes in the store for each live one,"+
		" in objects of the log. The bound is that of greedy cleaning of uniform overwrites.\n\n")
	fmt.Fprint(w, "| live data allowed | overwrites | write amplification | bound | moved for each byte written | space amplification |\n|---|---|---|---|---|---|\n")
	for _, a := range r.Amplified {
		bound := ""
		if a.Bound > 0 {
			bound = number(a.Bound)
		}
		fmt.Fprintf(w, "| %.0f %% | %s | %s | %s | %s | %s |\n", 100*a.Allowed, a.Pattern, number(a.Write), bound, number(a.Moved), number(a.Space))
	}
}

// jobTable writes the results of each job.
func (r *results) jobTable(w io.Writer) {
	fmt.Fprint(w, "\nEach job ran once. Latencies are in ms and those of requests, or of flushes in jobs that flush. Resident memory is"+
		" without chunk memory and with the read cache. Prices are those of S3 Standard in us-east-1.\n\n")
	fmt.Fprint(w, "| job | GET / PUT latency | requests/s | MB/s | p50 | p99 | p99.9 | CPU s/GB | resident MiB | requests to S3 per GB | price |\n")
	fmt.Fprint(w, "|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, j := range r.Jobs {
		gb := j.Sample.Moved / 1e9
		l := j.latency()
		cost := fmt.Sprintf("$%s per GB", number(price(j.Asked)/gb))
		rate := j.Sample.IOPS
		if j.Flushes {
			cost = fmt.Sprintf("$%s per 1,000 flushes", number(1000*price(j.Asked)/j.Sample.Syncs))
			rate = j.Sample.SyncRate
		}
		fmt.Fprintf(w, "| %s | %v / %v | %s | %s | %s | %s | %s | %s | %s | %s PUT, %s GET | %s |\n", j.Name, j.Get, j.Put,
			number(rate), number(j.Sample.Bytes/1e6), number(l.P50/1e6), number(l.P99/1e6), number(l.P999/1e6), number(1e9*j.Sample.CPUByte),
			number(float64(j.Resident)/mib), number(float64(j.Asked.Put)/gb), number(float64(j.Asked.Get)/gb), cost)
	}
}

// latency returns the latency that a job is about.
func (j jobResult) latency() latency {
	switch {
	case j.Flushes:
		return j.Sample.Sync
	case j.Writes && j.Sample.Read.P50 == 0:
		return j.Sample.Write
	default: // including that of the reads of a mixed job
		return j.Sample.Read
	}
}

func (r *results) profileTable(w io.Writer) {
	if len(r.Profiles) == 0 {
		return
	}
	fmt.Fprint(w, "Where the daemon's processor time goes:\n\n| measurement | share of the time |\n|---|---|\n")
	for _, p := range r.Profiles {
		fmt.Fprintf(w, "| %s | %s |\n", p.Name, p)
	}
	fmt.Fprintln(w)
}
