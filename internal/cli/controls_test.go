package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
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
	var r gc.Report
	if err := json.Unmarshal([]byte(out), &r); code != exitOK || err != nil || errs != "" {
		t.Errorf("gc --dry-run: exit %d, %v in %s%s", code, err, out, errs)
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
	for _, args := range [][]string{{"gc"}, {"gc", "--dry-run"}, {"checkpoint"}} {
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
		daemon.CallGC: func(context.Context) (any, error) {
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
			NextKey: 12, DurableKey: 9, ChunksInMemory: 2, FreeSlots: 38, Slots: 40, WritersWaiting: 3,
			Objects: 10, StoredBytes: 40 << 20, LiveBytes: 30 << 20, LogObjects: 5, LogBytes: 20 << 20,
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
		"5 objects, 20 MB", "64 MB written by clients and 16 MB more by garbage collection (amplification 1.25), which deleted 9 objects with 36 MB", "next key 12, all below 10 are in the store",
		"38 of 40 slots are free, 2 objects are not in the store, 3 writers wait",
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
