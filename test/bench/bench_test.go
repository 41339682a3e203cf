package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// requireEnv, if 1, makes a missing program a failure.
const requireEnv = "BS3_REQUIRE_TOOLS"

// smallBench returns a bench with short runs and no store.
func smallBench(t *testing.T) *bench {
	t.Helper()
	for _, name := range []string{"fio", "nbdkit"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv(requireEnv) == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	return &bench{tmp: t.TempDir(), disk: t.TempDir(), runtime: 300 * time.Millisecond, ramp: 100 * time.Millisecond, region: 16 * mib}
}

// A job whose requests fail has no result.
func TestFailedRequests(t *testing.T) {
	b := smallBench(t)
	for name, args := range map[string][]string{
		"reads":   {"--filter=error", "memory", "64M", "error-pread=EIO", "error-pread-rate=0.01"},
		"writes":  {"--filter=error", "memory", "64M", "error-pwrite=EIO", "error-pwrite-rate=0.01"},
		"flushes": {"eval", "get_size=echo 64M", "can_write=exit 0", "pwrite=cat >/dev/null", "can_flush=exit 0", "flush=echo EIO >&2; exit 1"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(b.tmp, name+".sock")
			p, err := start(t.Context(), "nbdkit", append([]string{"-f", "-U", socket}, args...)...)
			if err != nil {
				t.Fatal(err)
			}
			defer p.kill()
			if err := p.waitSocket(t.Context(), socket); err != nil {
				t.Fatal(err)
			}
			j := random4K(map[string]string{"reads": "randread", "writes": "randwrite", "flushes": "randwrite"}[name], 4, 16*mib)
			j.fsync = name == "flushes"
			if s, err := b.fio(t.Context(), p, socket, j); err == nil {
				t.Errorf("no error, but %+v", s)
			}
		})
	}
}

// A job that succeeds returns figures.
func TestFio(t *testing.T) {
	b := smallBench(t)
	k, err := b.nbdkitMemory(t.Context(), 16*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer k.kill()
	s, err := k.fio(t.Context(), random4K("randrw", 4, 16*mib))
	if err != nil {
		t.Fatal(err)
	}
	if s.IOPS <= 0 || s.Bytes < 4096*s.IOPS*0.9 || s.Read.P50 <= 0 || s.Write.P999 < s.Write.P50 {
		t.Errorf("a mixed job: %+v", s)
	}
	if s, err = k.fio(t.Context(), b.syncing(2)); err != nil {
		t.Fatal(err)
	}
	if s.Syncs <= 0 || s.SyncRate <= 0 || s.Sync.P50 <= 0 {
		t.Errorf("a job that flushes: %+v", s)
	}
}

func TestLoop(t *testing.T) {
	l, err := loop(t.Context(), 4, 10*time.Millisecond, time.Second, func(int, int64) error {
		return pause(t.Context(), 10*time.Millisecond)
	})
	if err != nil {
		t.Fatal(err)
	}
	if l.latency.P50 < 10e6 || l.rate > 400 || l.rate <= 0 {
		t.Errorf("four at once, 10 ms each: %+v", l)
	}
	failure := errors.New("failed")
	if _, err := loop(t.Context(), 4, 10*time.Millisecond, time.Minute, func(_ int, n int64) error {
		if n == 17 {
			return failure
		}
		return nil
	}); !errors.Is(err, failure) {
		t.Errorf("a call failed, the loop returned %v", err)
	}
}

func TestRatios(t *testing.T) {
	p := paired{
		ours:      []figures{{"x": 10}, {"x": 30}, {"x": 20}},
		reference: []figures{{"x": 10}, {"x": 10}, {"x": 10}},
		control:   []figures{{"x": 11}, {"x": 9}, {"x": 10}},
	}
	r := p.row("row", "x", "s", 1, 2, false)
	if r.Value != 2 || r.Control != 1 || !r.met() {
		t.Errorf("%+v", r)
	}
	if r = p.row("row", "x", "s", 1, 1.9, true); r.met() {
		t.Errorf("2 is not at most 1.9: %+v", r)
	}
	if h := harmonic(3, 6); h != 2 {
		t.Errorf("harmonic of 3 and 6: %v", h)
	}
}

func TestProfileParts(t *testing.T) {
	for want, stack := range map[string][]string{
		"receiving from the client": {"syscall.read", "io.ReadAtLeast", "io.ReadFull", "bs3/internal/device/nbd.(*conn).write", "bs3/internal/device/nbd.(*conn).serve"},
		"receiving from the store":  {"runtime.memmove", "io.ReadFull", "bs3/internal/bs3/objproxy/s3.(*Store).getOnce", "bs3/internal/bs3.(*Engine).ReadAt", "bs3/internal/device/nbd.(*conn).run"},
		"checksums":                 {"hash/crc32.update", "bs3/internal/bs3/layout.CRC", "bs3/internal/bs3.(*Engine).TryWriteAt", "bs3/internal/device/nbd.(*conn).write"},
		"the engine":                {"sync.(*Mutex).Lock", "bs3/internal/bs3.(*Engine).TryWriteAt", "bs3/internal/device/nbd.(*conn).write"},
		"the rest":                  {"main.main"},
	} {
		if got := about(stack); got != want {
			t.Errorf("%v is about %s, want %s", stack, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	doc := filepath.Join(dir, "PAGE.md")
	r := &results{Rows: []row{
		{Name: "good & well", Target: 1, Value: 1.5},
		{Name: "bad", Target: 1, AtMost: true, Value: 1.5},
		{Name: "not there", Target: 1, Note: "for a reason"},
		{Name: "for information", Free: true, Value: 7},
	}, Jobs: []jobResult{
		{Name: "job", Sample: sample{IOPS: 1000, Moved: 1e9}},
		{Name: "job", Get: slowGet, Put: slowPut, Sample: sample{IOPS: 10, Moved: 1e9, Read: latency{P50: 1e6, P99: 2e6, P999: 3e6}}},
	}, Amplified: []amplified{{Pattern: "at times", Allowed: 0.7, Write: 1.84, Bound: 1.83, Space: 1.44}}, Profiles: []profile{{"job", []share{{"sleeping", 0.5}}}}}
	if err := r.write(doc); err == nil {
		t.Error("written without a page")
	}
	if err := os.WriteFile(doc, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time over its own output
		if err := r.write(doc); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n", "\nafter\n", "| good & well | ≥ 1.00 | 1.50 |", "**1.50**, not met", "for a reason", "| for information |", "sleeping 50 %", "| 70 % | at times | 1.84 | 1.83 |", "page/targets.svg"} {
		if strings.Count(string(text), want) != 1 {
			t.Errorf("%d times %q", strings.Count(string(text), want), want)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Error("the old report is still there")
	}
	plots, err := filepath.Glob(filepath.Join(dir, "page", "*.svg"))
	if err != nil || len(plots) != 3 {
		t.Fatalf("plots: %v, %v", plots, err)
	}
	for _, path := range plots {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d := xml.NewDecoder(f)
		for err == nil {
			_, err = d.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A job's reports tell when most of its reads were faster than the store.
func TestWarmAfter(t *testing.T) {
	report := func(ms, reads int, slow float64) string {
		return fmt.Sprintf(`{"jobs": [{"error": 0, "read": {"runtime": %d, "total_ios": %d}, "latency_ms": {"10": 1, "20": %v, ">=2000": 0}}]}`+"\n", ms, reads, slow)
	}
	// Of 100, 200 and 300 reads 100, 150 and 150 were slow.
	times, err := timeline(strings.NewReader(report(500, 100, 100) + report(1000, 200, 75) + report(1500, 300, 50)))
	if err != nil {
		t.Fatal(err)
	}
	if after, last := warmAfter(times); after != 1500*time.Millisecond || last != 1 {
		t.Errorf("warm after %v, %v at the end", after, last)
	}
	if after, last := warmAfter(times[:2]); after != time.Second || last != 0.5 {
		t.Errorf("never warm: after %v, %v at the end", after, last)
	}
	if _, err := timeline(strings.NewReader(`{"jobs": [{"error": 5}]}`)); err == nil {
		t.Error("no error where requests failed")
	}
}

// A steady state of the real engine: what is overwritten in turn dies object by
// object, and what is overwritten at random is moved.
func TestAmplify(t *testing.T) {
	for pattern, most := range map[string]float64{inTurn: 1.1, uniformly: 1.5 * greedyBound(0.7, steadyChunk)} {
		a, err := amplify(t.Context(), pattern, 0.7, 2)
		if err != nil {
			t.Fatal(err)
		}
		if a.Write < 1 || a.Write > most || a.Space < 1 || a.Space > 2 || (a.Moved > 0.1) != (pattern == uniformly) {
			t.Errorf("%+v", a)
		}
	}
}
