package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	pprof "github.com/google/pprof/profile"
)

// profile says where a daemon's processor time went during a job.
type profile struct {
	Name  string
	Parts []share // most first
}

// share is a part of the processor time, 0 to 1.
type share struct {
	Name string
	Of   float64
}

// parts classify the samples of a profile: a sample belongs to the first part whose
// text is in the name of any function on its stack.
var parts = []struct{ name, function string }{
	{"receiving from the store", "net/http.(*persistConn).readLoop"},
	{"sending to the store", "net/http.(*persistConn).writeLoop"},
	{"signing", "v4.Signer.SignHTTP"},
	{"receiving from the store", "io.ReadFull-s3"}, // see about
	{"requests to the store", "objproxy/s3.(*Store)"},
	{"filling the read cache", "rcache.(*Cache).Put"},
	{"hits of the read cache", "rcache.(*Cache).Get"},
	{"checksums", "layout.CRC"},
	{"copying into chunk memory", "wlog.(*Slot).Add"},
	{"the map", "internal/bs3/mapproxy"},
	{"footers", "layout.AppendTail"},
	{"receiving from the client", "nbd.(*conn).Read"},
	{"receiving from the client", "io.ReadFull-nbd"},
	{"sending to the client", "nbd.(*sender)"},
	{"the local log", "internal/bs3/wlog"},
	{"the engine", "internal/bs3."},
	{"NBD", "internal/device/nbd"},
	{"Go's garbage collector", "runtime.gcBgMarkWorker"},
	{"Go's garbage collector", "runtime.bgsweep"},
	{"Go's garbage collector", "runtime.bgscavenge"},
	{"Go's scheduler", "runtime.schedule"},
	{"Go's scheduler", "runtime.mcall"},
	{"Go's scheduler", "runtime.mstart"},
}

// about returns the part that a stack belongs to.
func about(stack []string) string {
	reads := slices.Contains(stack, "io.ReadFull") || slices.Contains(stack, "io.ReadAtLeast")
	for _, p := range parts {
		name, in, both := strings.Cut(p.function, "-")
		for _, f := range stack {
			if both && reads && strings.Contains(f, in+".(") || !both && strings.Contains(f, name) {
				return p.name
			}
		}
	}
	return "the rest"
}

// profile runs a job again and records where the daemon spends its time.
func (b *bench) profile(ctx context.Context, name string, d *daemon, j fioJob) error {
	ran := make(chan error, 1)
	go func() {
		_, err := d.fio(ctx, j)
		ran <- err
	}()
	got, err := d.fetchProfile(ctx, b.ramp, max(time.Second, b.runtime/2))
	if e := <-ran; e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("profile of %s: %w", name, err)
	}
	b.profiles = append(b.profiles, summarize(name, got))
	return nil
}

func (d *daemon) fetchProfile(ctx context.Context, wait, length time.Duration) (*pprof.Profile, error) {
	if err := pause(ctx, wait); err != nil {
		return nil, err
	}
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", d.profiler, int(length.Seconds()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the profiler answered %s", answer.Status)
	}
	return pprof.Parse(answer.Body)
}

// summarize adds up the samples of a profile by parts.
func summarize(name string, got *pprof.Profile) profile {
	sums := map[string]float64{}
	total := 0.0
	for _, s := range got.Sample {
		var stack []string
		for _, l := range s.Location {
			for _, line := range l.Line {
				stack = append(stack, line.Function.Name)
			}
		}
		n := float64(s.Value[len(s.Value)-1])
		sums[about(stack)] += n
		total += n
	}
	p := profile{Name: name}
	for part, n := range sums {
		p.Parts = append(p.Parts, share{part, n / max(total, 1)})
	}
	slices.SortFunc(p.Parts, func(a, b share) int { return cmp.Or(cmp.Compare(b.Of, a.Of), cmp.Compare(a.Name, b.Name)) })
	return p
}

func (p profile) String() string {
	var text []string
	for _, s := range p.Parts {
		if s.Of >= 0.01 {
			text = append(text, fmt.Sprintf("%s %.0f %%", s.Name, 100*s.Of))
		}
	}
	return strings.Join(text, ", ")
}

// putProfile adds a profile, or replaces that of the same name.
func (r *results) putProfile(p profile) {
	for i := range r.Profiles {
		if r.Profiles[i].Name == p.Name {
			r.Profiles[i] = p
			return
		}
	}
	r.Profiles = append(r.Profiles, p)
}

// put adds a row, or replaces that of the same name.
func (r *results) put(w row) {
	for i := range r.Rows {
		if r.Rows[i].Name == w.Name {
			r.Rows[i] = w
			return
		}
	}
	r.Rows = append(r.Rows, w)
}
