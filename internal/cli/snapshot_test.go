package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/volume"
	"bs3/internal/daemon"
)

// snapshotVerb is bs3 snapshot for one volume.
type snapshotVerb struct {
	t   *testing.T
	dir string
	env []string
}

// run demands an exit code.
func (v snapshotVerb) run(want int, args ...string) (stdout, stderr string) {
	v.t.Helper()
	code, stdout, stderr := bs3Main(v.t, v.dir, v.env, append([]string{"snapshot", "--local"}, args...)...)
	if code != want {
		v.t.Errorf("bs3 snapshot %v: exit code %d, not %d\n%s%s", args, code, want, stdout, stderr)
	}
	if lines := strings.Count(stderr, "\n"); lines > 1 {
		v.t.Errorf("bs3 snapshot %v: it says %d lines: %s", args, lines, stderr)
	}
	return stdout, stderr
}

// says demands an exit code, and a text on standard error, which is empty if that is.
func (v snapshotVerb) says(want int, text string, args ...string) {
	v.t.Helper()
	if _, stderr := v.run(want, args...); !strings.Contains(stderr, text) || (text == "") != (stderr == "") {
		v.t.Errorf("bs3 snapshot %v: no %q in %q", args, text, stderr)
	}
}

// names are those that list prints, and info and list for programs.
func (v snapshotVerb) names() []string {
	v.t.Helper()
	out, _ := v.run(exitOK, "list", "--json")
	var l struct {
		UUID      string
		Snapshots []struct {
			Name    string
			Created time.Time
			Key     *uint64
		}
	}
	strict := json.NewDecoder(strings.NewReader(out))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&l); err != nil || l.UUID == "" || l.Snapshots == nil {
		v.t.Fatalf("%v in %s", err, out)
	}
	plain, _ := v.run(exitOK, "list")
	rows := strings.Split(plain, "\n")
	if got := strings.Fields(rows[0]); !slices.Equal(got, []string{"NAME", "CREATED", "KEY"}) || len(rows) != len(l.Snapshots)+2 {
		v.t.Fatalf("the list is %s", plain)
	}
	info := volumeInfo(v.t, v.dir)
	if len(info.Snapshots) != len(l.Snapshots) {
		v.t.Fatalf("info has %v, list has %v", info.Snapshots, l.Snapshots)
	}
	names := []string{}
	for i, s := range l.Snapshots {
		if s.Created.IsZero() || s.Key == nil {
			v.t.Errorf("it lacks something: %s", out)
		}
		if !strings.HasPrefix(rows[i+1], s.Name+" ") || !strings.Contains(rows[i+1], s.Created.Format(time.RFC3339)) {
			v.t.Errorf("row %q is not that of %+v", rows[i+1], s)
		}
		if in := info.Snapshots[i]; in.Name != s.Name || !in.Created.Equal(s.Created) || in.Key != *s.Key {
			v.t.Errorf("info has %+v, list %+v", in, s)
		}
		names = append(names, s.Name)
	}
	return names
}

// With a daemon, without one, and beside one that is not asked.
func TestSnapshotVerbs(t *testing.T) {
	v := snapshotVerb{t: t, dir: t.TempDir()}
	expect := func(want ...string) {
		t.Helper()
		if got := v.names(); !slices.Equal(got, want) {
			t.Errorf("there are %v, not %v", got, want)
		}
	}
	for _, args := range [][]string{{"create", "x"}, {"create", "x", "--offline"}, {"list"}, {"list", "--json"}, {"delete", "x"}, {"delete", "x", "--offline"}} {
		v.says(exitOther, "no volume here", args...)
	}
	for _, bad := range []string{"", ".x", "a/b", "a b", strings.Repeat("x", 64)} {
		for _, args := range [][]string{{"create", bad}, {"create", "--offline", bad}, {"delete", bad}} {
			v.says(exitOther, "is no name of a snapshot", args...)
		}
	}
	for _, args := range [][]string{{}, {"make", "x"}, {"create"}, {"create", "x", "y"}, {"delete"}, {"list", "x"}, {"list", "--offline"}} {
		v.says(exitOther, "bs3: ", args...)
	}
	if names, _ := os.ReadDir(v.dir); len(names) != 0 {
		t.Errorf("it made %v", names)
	}

	d := startDaemon(t, v.dir, nil, "--local")
	d.expect("serving")
	expect()
	writer := chooseExport(t, filepath.Join(v.dir, ".bs3/nbd.sock"), "")
	write := func(b byte) { writer.must(nbdWrite, 0, 1<<20, bytes.Repeat([]byte{b}, 1<<20)) }
	write(1)
	v.says(exitOK, "", "create", "one") // nobody has flushed
	if out, _ := v.run(exitOK, "list"); !strings.Contains(out, "one") {
		t.Errorf("it is not there: %s", out)
	}
	v.says(exitOther, "there is a snapshot of that name: one, of 20", "create", "one")
	v.says(exitOther, "there is a snapshot of that name: one, of 20", "create", "one", "--offline")
	write(2)
	writer.must(nbdFlush, 0, 0, nil)
	const alone = "made from the store alone: it holds what was durable there\n"
	if _, stderr := v.run(exitOK, "create", "two", "--offline"); stderr != alone {
		t.Errorf("it says %q", stderr)
	}
	v.says(exitOther, "there is a snapshot of that name: two", "create", "two")
	v.says(exitOK, "", "create", "three")
	expect("one", "two", "three")
	code, out, errs := bs3Main(t, v.dir, nil, "status", "--local", "--json")
	var s daemon.Status
	if err := json.Unmarshal([]byte(out), &s); code != exitOK || err != nil || !slices.Equal(s.Snapshots, []string{"one", "two", "three"}) {
		t.Errorf("status: exit %d, %v in %s%s", code, err, out, errs)
	}
	for _, args := range [][]string{{"delete", "four"}, {"delete", "four", "--offline"}} {
		v.says(exitOther, "there is no snapshot of that name: four", args...)
	}
	if out, stderr := v.run(exitOK, "delete", "two"); out != "snapshot two deleted\n" || stderr != "" {
		t.Errorf("deleted: %q, %q", out, stderr)
	}
	v.says(exitOK, "deleted from the store alone", "delete", "one", "--offline")
	expect("three")
	v.says(exitOther, "there is no snapshot of that name: one", "delete", "one")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}

	if out, stderr := v.run(exitOK, "create", "four"); stderr != "no daemon answers at .bs3/state/control.sock; "+alone || !strings.HasPrefix(out, "snapshot four created, with all objects up to ") {
		t.Errorf("without a daemon: %q, %q", out, stderr)
	}
	v.says(exitOther, "there is a snapshot of that name: four", "create", "four")
	expect("three", "four")
	v.says(exitOK, "no daemon answers at .bs3/state/control.sock; deleted", "delete", "three")
	v.says(exitOther, "there is no snapshot of that name: three", "delete", "three")
	expect("four")
	code, out, errs = bs3Main(t, v.dir, nil, "info", "--local")
	if code != exitOK || !strings.Contains(out, "snapshots         1\n") {
		t.Errorf("info: exit %d, %s%s", code, out, errs)
	}
	if code, out, errs := bs3Main(t, v.dir, nil, "fsck", "--local"); code != exitOK || !strings.Contains(out, "0 errors") {
		t.Errorf("fsck: exit %d, %s%s", code, out, errs)
	}
}

// A writer with a local log may have flushed more than the store has.
func TestSnapshotOfLocalLog(t *testing.T) {
	v := snapshotVerb{t: t, dir: t.TempDir()}
	makeVolume(t, filepath.Join(v.dir, ".bs3/store"))
	store, err := dir.Open(t.Context(), filepath.Join(v.dir, ".bs3/store"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	change := func(f func(*layout.Volume)) {
		t.Helper()
		err := volume.ChangeRecord(t.Context(), store, zerolog.Nop(), func(v *layout.Volume) error { f(v); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(v *layout.Volume) { v.LocalLog = &layout.LocalLog{Host: "m", Hostname: "n", Path: "/p"} })
	v.says(exitOK, "the volume has a local log, so it may be behind its writer\n", "create", "x")
	change(func(v *layout.Volume) { v.Deleted = true })
	v.says(exitRefused, "was deleted", "create", "y")
}

// The daemon of such a volume may not name a checkpoint.
func TestSnapshotWithoutCheckpoints(t *testing.T) {
	v := snapshotVerb{t: t, dir: t.TempDir(), env: []string{"BS3_SKIP=true"}}
	d := startDaemon(t, v.dir, v.env, "--local")
	d.expect("serving")
	v.says(exitOther, "skip_checkpoint", "create", "one")
	v.says(exitOK, "from the store alone", "create", "one", "--offline")
	v.says(exitOK, "from the store alone", "create", "two", "--offline")
	v.says(exitOK, "", "delete", "one")
	if got := v.names(); !slices.Equal(got, []string{"two"}) {
		t.Errorf("there are %v", got)
	}
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	d = startDaemon(t, v.dir, v.env, "--local")
	d.expect("serving")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("the second time: exit %d", code)
	}
}

func TestSnapshotOfNull(t *testing.T) {
	v := snapshotVerb{t: t, dir: t.TempDir(), env: []string{"BS3_NULL=true"}}
	for _, args := range [][]string{{"create", "x"}, {"create", "x", "--offline"}, {"list"}, {"delete", "x"}} {
		v.says(exitOther, "null = true", args...)
	}
}

func TestSnapshotErrorsAreNotTheStores(t *testing.T) {
	for _, err := range []error{bs3.ErrSnapshotExists, bs3.ErrNoSnapshot, bs3.ErrMostSnapshots} {
		if got := exitCode(explain("here", err)); got != exitOther {
			t.Errorf("%v: exit code %d", err, got)
		}
	}
}
