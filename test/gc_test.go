package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const exitNoDaemon = 75

// call runs a command that asks the running daemon and has to succeed, and
// decodes what it prints.
func (v *volume) call(result any, args ...string) {
	v.t.Helper()
	code, out, errs := run(v.t, v.command(args...))
	if code != 0 {
		v.t.Fatalf("bs3 %s: exit code %d\n%s", strings.Join(args, " "), code, errs)
	}
	if result == nil {
		return
	}
	if err := json.Unmarshal([]byte(out), result); err != nil {
		v.t.Fatalf("bs3 %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// status is part of what `bs3 status --json` prints.
type status struct {
	Epoch        uint64
	Mode         string
	Objects      int
	StoredBytes  int64 `json:"stored_bytes"`
	LiveBytes    int64 `json:"live_bytes"`
	LogObjects   int   `json:"log_objects"`
	WrittenBytes int64 `json:"written_bytes"`
	Collected    gcReport
	LocalLog     *struct{ Failed string } `json:"local_log"`
	DiskCache    *struct {
		Hits, Misses uint64
		Failed       string
	} `json:"disk_cache"`
	Store struct {
		Where        string
		WaitingSince *time.Time `json:"waiting_since"`
		LastError    string     `json:"last_error"`
	}
}

func (v *volume) status() (s status) {
	v.t.Helper()
	v.call(&s, "status", "--json")
	return s
}

// gcReport is what `bs3 gc --json` prints.
type gcReport struct {
	Compacted   int
	MovedBytes  int64 `json:"moved_bytes"`
	Deleted     int
	FreedBytes  int64 `json:"freed_bytes"`
	FailedReads int   `json:"failed_reads"`
}

// stored counts the files of a directory store and their bytes.
func (v *volume) stored() (files int, size int64) {
	v.t.Helper()
	err := filepath.WalkDir(v.config["dir.path"].(string), func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			return nil
		case err == nil && info.Mode().IsRegular():
			files, size = files+1, size+info.Size()
		}
		return err
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return files, size
}

// litter fills the first n bytes of the volume, overwrites them in small pieces
// in random order, four times over, and returns what they hold then.
func litter(t testing.TB, c *client, n int64) []byte {
	t.Helper()
	const piece = 64 << 10
	want := make([]byte, n)
	for round := range 5 {
		for _, i := range rand.Perm(int(n / piece)) {
			if round > 0 && i%5 == 0 {
				continue // so that a little of the first objects stays alive
			}
			p := randomBytes(piece)
			copy(want[int64(i)*piece:], p)
			c.write(int64(i)*piece, p)
		}
	}
	c.flush()
	return want
}

// However a collection is started, it shrinks the store to little more than the
// live data and loses nothing.
func TestGarbageCollection(t *testing.T) {
	const live = 16 * mib
	for name, test := range map[string]struct {
		keys    map[string]any
		collect func(v *volume, d *daemon)
	}{
		"verb": {nil, func(v *volume, _ *daemon) {
			objects := v.status().Objects
			var plan, done, again gcReport
			v.call(&plan, "gc", "--dry-run", "--json")
			if now := v.status().Objects; now != objects || plan.Compacted == 0 || plan.FreedBytes == 0 {
				v.t.Errorf("%d objects after a dry run, %d before; it reports %+v", now, objects, plan)
			}
			v.call(&done, "gc", "--json")
			if done != plan {
				v.t.Errorf("planned %+v, done %+v", plan, done)
			}
			if v.call(&again, "gc", "--json"); again != (gcReport{}) {
				v.t.Errorf("a second collection found %+v", again)
			}
		}},
		"SIGUSR1": {nil, func(v *volume, d *daemon) {
			d.signal(syscall.SIGUSR1)
			d.expect(`"garbage collection"`)
		}},
		"by itself": {map[string]any{"gc.wait": 1, "gc.idle_timeout": 0, "checkpoint.interval": 1}, func(v *volume, d *daemon) {
			d.waitFor("the store to shrink", func() bool {
				_, size := v.stored()
				return size < 5*live/2
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, onDir).with("write.chunk_size", 1).with("write.memory", 16).with("gc.wait", 0).with("gc.live_data", 0.5)
			for key, value := range test.keys {
				v.with(key, value)
			}
			d := v.start()
			want := litter(t, dial(t, v.socket), live)
			files, before := v.stored()
			test.collect(v, d)
			left, after := v.stored()
			t.Logf("%d files with %d MB became %d with %d MB", files, before/mib, left, after/mib)
			// By itself it may have begun earlier.
			if after > 5*live/2 || name != "by itself" && left >= files {
				t.Errorf("%d files with %d MB are left for %d MB of live data", left, after/mib, live/mib)
			}
			if !bytes.Equal(dial(t, v.socket).read(0, int(live)), want) {
				t.Error("other data than was written")
			}
			d.kill()
			v.wipeState()
			d = v.start()
			if !bytes.Equal(dial(t, v.socket).read(0, int(live)), want) {
				t.Error("after a restart on nothing but the store: other data than was written")
			}
			d.stop()
		})
	}
}

// What was written at random is put in order: a plan says so first and changes
// nothing, status, plans and info say how scattered it is before and after, and nothing
// is lost.
func TestDefrag(t *testing.T) {
	const live = 16 * mib
	type spread struct {
		Objects      int
		Full         int `json:"full_objects"`
		Requests     int
		FullRequests int `json:"full_requests"`
	}
	v := newVolume(t, onDir).with("write.chunk_size", 1).with("write.memory", 16).with("gc.wait", 0)
	d := v.start()
	want := litter(t, dial(t, v.socket), live)
	files, _ := v.stored()
	var plan struct {
		spread
		Passes     int
		Bytes      int64
		Gets, Puts int
		Price      struct{ USD float64 }
	}
	v.call(&plan, "gc", "--defrag", "--dry-run", "--json")
	if now, _ := v.stored(); now != files || plan.Passes != 1 || plan.Bytes < live*9/10 || plan.Requests < 4*plan.FullRequests || plan.Puts < 15 || plan.Gets < 15 || plan.Price.USD <= 0 {
		t.Errorf("%d files after a dry run, %d before; it reports %+v", now, files, plan)
	}
	var done struct {
		gcReport
		Spread spread
	}
	v.call(&done, "gc", "--defrag", "--json")
	if s := done.Spread; 2*s.Requests > 3*s.FullRequests || s.FullRequests != 16 || done.MovedBytes < live*9/10 || done.MovedBytes > 2*plan.Bytes {
		t.Errorf("done: %+v", done)
	}
	var status struct{ Spread *spread }
	if v.call(&status, "status", "--json"); status.Spread == nil || *status.Spread != done.Spread {
		t.Errorf("status: %+v", status.Spread)
	}
	if !bytes.Equal(dial(t, v.socket).read(0, int(live)), want) {
		t.Error("other data than was written")
	}
	d.stop()
	var info struct {
		Objects int `json:"live_objects"`
		Pieces  int
	}
	if v.call(&info, "info", "--json"); info.Objects != done.Spread.Objects || info.Pieces > 100 {
		t.Errorf("info: %+v", info)
	}
	d = v.start()
	if !bytes.Equal(dial(t, v.socket).read(0, int(live)), want) {
		t.Error("after a restart: other data than was written")
	}
	d.stop()
}

// What status reports of a running daemon, and what the verbs say if none runs.
func TestStatus(t *testing.T) {
	v, p := newProxiedVolume(t)
	d := v.start()
	c := dial(t, v.socket)
	c.write(0, randomBytes(3*mib))
	c.flush()
	s := v.status()
	if s.Epoch != 1 || s.Mode != "durable" || s.LiveBytes != 3*mib || s.StoredBytes < 3*mib || s.LogObjects == 0 ||
		!strings.Contains(s.Store.Where, "bucket bs3-e2e") || s.Store.WaitingSince != nil {
		t.Errorf("status: %+v", s)
	}
	v.call(nil, "checkpoint")
	if s := v.status(); s.LogObjects != 0 {
		t.Errorf("after a checkpoint a start would read %d objects", s.LogObjects)
	}

	before := time.Now()
	p.spoil(always(answer(503, "SlowDown")))
	c.write(0, randomBytes(mib))
	flush := c.send(nbdFlush, 0, 0, nil)
	d.waitFor("the status to show that the store does not answer", func() bool { return v.status().Store.WaitingSince != nil })
	s = v.status()
	if since := *s.Store.WaitingSince; since.Before(before) || since.After(time.Now()) || !strings.Contains(s.Store.LastError, "SlowDown") {
		t.Errorf("the store failed at %v; status: %+v", before, s.Store)
	}
	if code, out, _ := run(t, v.command("status")); code != 0 || !strings.Contains(out, "SlowDown") {
		t.Errorf("in plain text: exit code %d, output %s", code, out)
	}
	p.heal()
	c.must("flush", flush)
	if s := v.status(); s.Store.WaitingSince != nil {
		t.Errorf("the store answers; status: %+v", s.Store)
	}
	d.stop()

	for _, verb := range []string{"status", "gc", "checkpoint"} {
		code, _, errs := run(t, v.command(verb))
		if code != exitNoDaemon || !strings.Contains(errs, v.config["control.socket"].(string)) || !strings.Contains(errs, "bs3 run -c "+filepath.Join(v.dir, "vm.toml")) {
			t.Errorf("%s without a daemon: exit code %d, stderr %s", verb, code, errs)
		}
	}
}

// A daemon can be started before its store is there: it waits, and can be
// stopped meanwhile.
func TestStoreComesLater(t *testing.T) {
	v := newVolume(t, onDir).with("write.linger", 600_000)
	d := v.start()
	want := randomBytes(mib)
	dial(t, v.socket).write(0, want)
	d.kill()
	path := v.config["dir.path"].(string)
	all := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	all(os.Rename(path, path+"-hidden"), os.Symlink(path+"-nowhere", path)) // a link that leads nowhere, yet
	d = v.launch()
	if line := d.expect("trying again"); !strings.Contains(line, path) {
		t.Errorf("the log does not name what the daemon waits for: %s", line)
	}
	d.stop()
	d = v.launch()
	d.expect("trying again")
	all(os.Remove(path), os.Rename(path+"-hidden", path))
	d.expect(`"serving"`)
	if !bytes.Equal(dial(t, v.socket).read(0, len(want)), want) {
		t.Error("other data than was acknowledged")
	}
	d.stop()
}
