package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// profile is where a daemon's processor time went during a job.
type profile struct {
	Name string
	Top  []string // function and its own share, most first
}

// profile runs a job once more and asks the daemon where its time goes.
func (b *bench) profile(ctx context.Context, name string, d *daemon, j fioJob) error {
	ran := make(chan error, 1)
	go func() {
		_, err := d.fio(ctx, j)
		ran <- err
	}()
	file := filepath.Join(b.tmp, b.name("profile"))
	defer os.Remove(file)
	err := d.fetchProfile(ctx, b.ramp, max(time.Second, b.runtime/2), file)
	if e := <-ran; e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("profile of %s: %w", name, err)
	}
	const functions = 10
	out, err := command(ctx, "go", "tool", "pprof", "-top", fmt.Sprintf("-nodecount=%d", functions), b.binary, file)
	if err != nil {
		return err
	}
	p := profile{Name: name}
	for line := range strings.Lines(out) {
		// flat flat% sum% cum cum% function
		if f := strings.Fields(line); len(f) >= 6 && strings.HasSuffix(f[1], "%") {
			p.Top = append(p.Top, f[1]+" "+f[5])
		}
	}
	b.profiles = append(b.profiles, p)
	return nil
}

func (d *daemon) fetchProfile(ctx context.Context, wait, length time.Duration, file string) error {
	if err := pause(ctx, wait); err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", d.profiler, int(length.Seconds()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, body)
	}
	return os.WriteFile(file, body, 0o600)
}

// putProfile takes a profile, in place of an earlier one of that name.
func (r *results) putProfile(p profile) {
	for i := range r.Profiles {
		if r.Profiles[i].Name == p.Name {
			r.Profiles[i] = p
			return
		}
	}
	r.Profiles = append(r.Profiles, p)
}

// put takes a row, in place of an earlier one of that name.
func (r *results) put(w row) {
	for i := range r.Rows {
		if r.Rows[i].Name == w.Name {
			r.Rows[i] = w
			return
		}
	}
	r.Rows = append(r.Rows, w)
}
