package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/gc"
	"bs3/internal/control"
	"bs3/internal/daemon"
)

func TestControlVerbs(t *testing.T) {
	dir := t.TempDir()
	for _, verb := range []string{"status", "gc", "checkpoint"} {
		code, _, errs := bs3Main(t, dir, nil, verb, "--local")
		if code != exitNoDaemon || !strings.Contains(errs, ".bs3/state/control.sock") || !strings.Contains(errs, "bs3 run --local") {
			t.Errorf("%s without a daemon: exit %d, %s", verb, code, errs)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("asking made %v", names)
	}

	d := startDaemon(t, dir, nil, "--local")
	d.expect("serving")
	socket := filepath.Join(dir, ".bs3/state/control.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	code, out, errs := bs3Main(t, dir, nil, "status", "--local")
	if code != exitOK || !strings.Contains(out, "durable: a flush waits for the store\n") || !strings.Contains(out, "directory .bs3/store\n") ||
		!strings.Contains(out, "  nbd+unix:///?socket="+dir) {
		t.Errorf("status: exit %d, %s%s", code, out, errs)
	}
	code, out, errs = bs3Main(t, dir, nil, "status", "--local", "--json")
	var s daemon.Status
	if err := json.Unmarshal([]byte(out), &s); code != exitOK || err != nil || s.Epoch != 1 || s.Slots != 40 || s.Store.WaitingSince != nil ||
		s.Transport != (daemon.Transport{Name: "nbd", NBD: "nbd+unix:///?socket=" + filepath.Join(dir, ".bs3/nbd.sock")}) {
		t.Errorf("status: exit %d, %v in %s%s", code, err, out, errs)
	}
	if code, out, errs := bs3Main(t, dir, nil, "checkpoint", "--local"); code != exitOK || out != "checkpoint written\n" {
		t.Errorf("checkpoint: exit %d, %s%s", code, out, errs)
	}
	code, out, errs = bs3Main(t, dir, nil, "gc", "--local")
	if code != exitOK || out != "moved 0 B of live data out of 0 objects\ndeleted 0 objects, 0 B of data\n" || !strings.Contains(errs, "Ctrl-C") {
		t.Errorf("gc: exit %d, %s%s", code, out, errs)
	}
	code, out, errs = bs3Main(t, dir, nil, "gc", "--local", "--dry-run", "--json")
	var r daemon.Collection
	if err := json.Unmarshal([]byte(out), &r); code != exitOK || err != nil || errs != "" || r.Spread == nil {
		t.Errorf("gc --dry-run: exit %d, %v in %s%s", code, err, out, errs)
	}
	for want, args := range map[string][]string{"nothing would be gained\n": {"--dry-run"}, "0 objects hold live data": nil} {
		code, out, errs = bs3Main(t, dir, nil, append([]string{"gc", "--local", "--defrag"}, args...)...)
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("gc --defrag: exit %d, %s%s", code, out, errs)
		}
	}
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// Without checkpoints nothing can be deleted; and with one the volume would be
// refused at the next start.
func TestControlVerbsWithoutCheckpoints(t *testing.T) {
	dir := t.TempDir()
	env := []string{"BS3_SKIP=true"}
	d := startDaemon(t, dir, env, "--local")
	d.expect("serving")
	for _, args := range [][]string{{"gc"}, {"gc", "--dry-run"}, {"gc", "--defrag"}, {"gc", "--defrag", "--dry-run"}, {"checkpoint"}} {
		if code, _, errs := bs3Main(t, dir, env, append(args, "--local")...); code != exitOther || !strings.Contains(errs, "skip_checkpoint") {
			t.Errorf("%v: exit %d, %s", args, code, errs)
		}
	}
	d.signal(syscall.SIGUSR1)
	d.expect("no garbage collection")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	d = startDaemon(t, dir, env, "--local")
	d.expect("serving")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("the second time: exit %d", code)
	}
}

func TestControlVerbsOfNull(t *testing.T) {
	dir, env := t.TempDir(), []string{"BS3_NULL=true"}
	d := startDaemon(t, dir, env, "--local")
	d.expect("serving")
	if code, _, errs := bs3Main(t, dir, env, "status", "--local"); code != exitOther || !strings.Contains(errs, "null = true") {
		t.Errorf("status: exit %d, %s", code, errs)
	}
	d.signal(syscall.SIGUSR1)
	d.expect("no garbage to collect")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
}

// A control socket that cannot be made is reported before anything is served,
// and the volume is released.
func TestControlSocketInTheWay(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		code, out, errs := bs3Main(t, dir, []string{"BS3_CONTROL_SOCKET=" + path}, "--local")
		if code != exitOther || !strings.Contains(errs, file) || strings.Contains(errs, "serving") {
			t.Errorf("%s: exit %d, %s%s", path, code, out, errs)
		}
		if info := volumeInfo(t, dir); !info.Writer.Released {
			t.Errorf("%s: the volume is not released: %+v", path, info)
		}
	}
}

// A collection that met damage is not a success.
func TestGCReportsDamage(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	server, err := control.Listen(t.Context(), socket, control.Calls{
		daemon.CallGC: func(context.Context, control.Argument) (any, error) {
			return gc.Report{Compacted: 1, MovedBytes: 4096, FailedReads: 2}, nil
		},
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	for _, format := range [][]string{nil, {"--json"}} {
		code, out, errs := bs3Main(t, t.TempDir(), []string{"BS3_CONTROL_SOCKET=" + socket}, append([]string{"gc", "--local"}, format...)...)
		if code != exitOther || !strings.Contains(out, "4096") || !strings.Contains(errs, "2 objects cannot be read or are damaged") {
			t.Errorf("exit %d, %s%s", code, out, errs)
		}
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestTakeoverFlag(t *testing.T) {
	for _, args := range [][]string{{"--takeover"}, {"run", "--takeover"}, {"--takeover", "run"}} {
		dir := t.TempDir()
		d := startDaemon(t, dir, nil, "--local")
		d.expect("serving")
		d.signal(syscall.SIGKILL)
		d.wait()
		elsewhere := []string{"BS3_STATE_PATH=elsewhere"}
		if code, _, errs := bs3Main(t, dir, elsewhere, "--local"); code != exitRefused || !strings.Contains(errs, dir+"/.bs3/state") {
			t.Errorf("without the flag: exit %d, %s", code, errs)
		}
		d = startDaemon(t, dir, elsewhere, append(args, "--local")...)
		d.expect("epoch=2")
		d.signal(syscall.SIGTERM)
		if code := d.wait(); code != exitOK {
			t.Errorf("%v: exit %d", args, code)
		}
	}
	if code, _, errs := bs3Main(t, t.TempDir(), nil, "info", "--takeover"); code != exitOther || !strings.Contains(errs, "takeover") {
		t.Errorf("info --takeover: exit %d, %s", code, errs)
	}
}

func TestPrintStatus(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	since, oldest := now.Add(-90*time.Second), now.Add(-95*time.Second)
	var out strings.Builder
	err := printStatus(&out, daemon.Status{
		Status: bs3.Status{
			UUID: "u-u-i-d", Epoch: 7, Mode: "barrier", Size: 8 << 30, BlockSize: 4096, Failed: "fenced by b",
			NextKey: 12, DurableKey: 9, ChunksInMemory: 2, FreeSlots: 38, Slots: 40, WritersWaiting: 3, MapBytes: 5 << 20,
			Objects: 10, StoredBytes: 40 << 20, LiveBytes: 30 << 20, FullObjects: 8, TidiedBytes: 7 << 20,
			Snapshots:  []string{"monday", "tuesday"},
			Spread:     &gc.Spread{Objects: 9, FullObjects: 8, Requests: 700, FullRequests: 8, At: since},
			Collection: &gc.Progress{Pass: 1, Passes: 2, MovedBytes: 3 << 20, TotalBytes: 30 << 20},
			LogObjects: 5, LogBytes: 20 << 20,
			WrittenBytes: 64 << 20, Collected: gc.Report{MovedBytes: 16 << 20, Deleted: 9, FreedBytes: 36 << 20},
			Undeleted: &bs3.Undeleted{Objects: 4, Checkpoints: 2, Since: since, Error: "403 AccessDenied"},
		},
		Store: daemon.StoreStatus{Where: "bucket b", WaitingSince: &since, LastError: "503 SlowDown", OldestRequest: &oldest},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"u-u-i-d, 8 GB in blocks of 4096 B", "barrier: a flush keeps the order", "fenced by b", "bucket b\n",
		"does not answer as it should since 2026-05-04T11:58:30Z (1m30s): 503 SlowDown", "the oldest request that it has not answered was made 1m35s ago", "10 objects, 40 MB of data, 30 MB of it live (25 % is garbage)",
		"4 objects and 2 old checkpoints that nothing needs stay there: the store does not delete them since 2026-05-04T11:58:30Z (1m30s): 403 AccessDenied",
		"8 full objects would hold what lives\n", "1m30s ago 9 objects hold live data, 8 full ones would do; a cold read of it in order takes about 700 requests, 8 if it lay in order\n",
		"snapshots         2\n", "putting blocks in order, pass 1 of 2: moved 3 MB of about 30 MB\n", "7 MB of that to merge small objects",
		"5 objects, 20 MB", "64 MB written by clients and 16 MB more by garbage collection (amplification 1.25), which deleted 9 objects with 36 MB", "next key 12, all below 10 are in the store",
		"38 of 40 slots are free, 2 objects are not in the store, 3 writers wait\n", "  the map takes 5 MB\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestPrintDevice(t *testing.T) {
	for want, shown := range map[string]daemon.Transport{
		"not shown yet":                       {},
		"/dev/ublkb0 (ublk)":                  {Name: "ublk", Device: "/dev/ublkb0"},
		"nbd://127.0.0.1:10809":               {Name: "nbd", NBD: "nbd://127.0.0.1:10809"},
		"/dev/nbd0 (nbd), and nbd+unix:///?s": {Name: "nbd", Device: "/dev/nbd0", NBD: "nbd+unix:///?s"},
	} {
		var out strings.Builder
		if err := printStatus(&out, daemon.Status{Transport: shown}, time.Now()); err != nil || !strings.Contains(out.String(), "  "+want+"\n") {
			t.Errorf("no %q in\n%s%v", want, out.String(), err)
		}
	}
}

func TestGCText(t *testing.T) {
	r := gc.Report{Compacted: 3, MovedBytes: 2 << 20, Deleted: 5, FreedBytes: 16 << 20}
	if got, want := gcText(r, false), "moved 2 MB of live data out of 3 objects\ndeleted 5 objects, 16 MB of data"; got != want {
		t.Errorf("done: %s", got)
	}
	if got, want := gcText(r, true), "would move 2 MB of live data out of 3 objects\nwould delete 5 objects, 16 MB of data"; got != want {
		t.Errorf("a plan: %s", got)
	}
}

func TestDefragVerb(t *testing.T) {
	spread := gc.Spread{Objects: 300, FullObjects: 256, Requests: 219700, FullRequests: 256}
	var plan atomic.Pointer[gc.DefragPlan]
	plan.Store(&gc.DefragPlan{Spread: spread, Passes: 2, Bytes: 2 << 30, Gets: 556, Puts: 512})
	socket := filepath.Join(t.TempDir(), "control.sock")
	server, err := control.Listen(t.Context(), socket, control.Calls{
		daemon.CallPlanDefrag: func(context.Context, control.Argument) (any, error) { return plan.Load(), nil },
		daemon.CallDefrag: func(context.Context, control.Argument) (any, error) {
			return daemon.Collection{Report: gc.Report{Compacted: 556, MovedBytes: 2 << 30, FailedReads: 1}, Spread: &spread}, nil
		},
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	verb := func(args ...string) (int, string, string) {
		return bs3Main(t, t.TempDir(), []string{"BS3_CONTROL_SOCKET=" + socket}, append([]string{"gc", "--local", "--defrag"}, args...)...)
	}
	const spreads = "300 objects hold live data, 256 full ones would do; a cold read of it in order takes about 219700 requests, 256 if it lay in order\n"

	code, out, errs := verb("--dry-run")
	if code != exitOK || errs != "" || out != spreads+"would read about 2 GB and write as much, in 2 passes, with 556 GETs and 512 PUTs\n"+
		"at $0.40 and $5.00 for a million of them that is $0.0028; what the transfer costs is not in it\n" {
		t.Errorf("a plan: exit %d, %s%s", code, out, errs)
	}
	code, out, errs = verb("--dry-run", "--json")
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK || errs != "" {
		t.Errorf("a plan: exit %d, %v, %s", code, err, errs)
	}
	price, _ := got["price"].(map[string]any)
	for name, want := range map[string]float64{"objects": 300, "full_objects": 256, "requests": 219700, "full_requests": 256, "passes": 2, "bytes": 2 << 30, "gets": 556, "puts": 512} {
		if got[name] != want {
			t.Errorf("%s is %v, not %v", name, got[name], want)
		}
	}
	for name, want := range map[string]float64{"usd_per_million_gets": 0.4, "usd_per_million_puts": 5, "usd": 0.0027824} {
		if price[name] != want {
			t.Errorf("%s is %v, not %v", name, price[name], want)
		}
	}
	code, out, errs = verb()
	if code != exitOther || out != "moved 2 GB of live data out of 556 objects\ndeleted 0 objects, 0 B of data\n"+spreads ||
		!strings.Contains(errs, "Ctrl-C") || !strings.Contains(errs, "1 objects cannot be read or are damaged") {
		t.Errorf("done: exit %d, %s%s", code, out, errs)
	}
	plan.Store(&gc.DefragPlan{Spread: spread})
	if code, out, _ := verb("--dry-run"); code != exitOK || out != spreads+"nothing would be gained\n" {
		t.Errorf("a plan of nothing: exit %d, %s", code, out)
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if code, _, errs := verb(); code != exitNoDaemon {
		t.Errorf("without a daemon: exit %d, %s", code, errs)
	}
}

// What a terminal shows of a collection comes from the daemon's status; where that
// does not answer, nothing is shown.
func TestWatchCollection(t *testing.T) {
	answers := []daemon.Status{
		{},
		{Status: bs3.Status{Collection: &gc.Progress{Pass: 1, Passes: 2, MovedBytes: 3 << 20, TotalBytes: 8 << 20}}},
		{Status: bs3.Status{Collection: &gc.Progress{MovedBytes: 1 << 20, TotalBytes: 1 << 20}}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	tick := make(chan time.Time)
	var shown []fsck.Progress
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchCollection(ctx, tick, func(context.Context) (daemon.Status, error) {
			if len(answers) == 0 {
				return daemon.Status{}, control.ErrNotRunning
			}
			s := answers[0]
			answers = answers[1:]
			return s, nil
		}, func(p fsck.Progress) { shown = append(shown, p) })
	}()
	for range 4 {
		tick <- time.Time{}
	}
	cancel()
	<-done
	want := []fsck.Progress{
		{Stage: "putting blocks in order, pass 1 of 2, MB", Done: 3, Total: 8},
		{Stage: "collecting garbage, MB", Done: 1, Total: 1},
	}
	if !slices.Equal(shown, want) {
		t.Errorf("shown: %+v", shown)
	}
}
