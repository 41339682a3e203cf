package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/objproxy/dir"
)

// makeVolume leaves a small volume with a checkpoint in a directory.
func makeVolume(t *testing.T, path string) {
	t.Helper()
	store, err := dir.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	const blockSize = 4096
	e, err := bs3.Open(t.Context(), bs3.Options{
		Store: store, Log: zerolog.Nop(), Host: bs3.Host{ID: "m", Name: "m"},
		Size: 1 << 20, BlockSize: blockSize, ChunkSize: 4 * blockSize, Memory: 1 << 20, Uploaders: 1, Durable: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.WriteAt(t.Context(), []byte(strings.Repeat("data", 3*blockSize/4)), 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFsck(t *testing.T) {
	work := t.TempDir()
	store := filepath.Join(work, "store")
	env := []string{"BS3_STORE=dir", "BS3_DIR_PATH=" + store}
	check := func(code int, args ...string) (stdout, stderr string) {
		t.Helper()
		got, stdout, stderr := bs3Main(t, work, env, append([]string{"fsck"}, args...)...)
		if got != code {
			t.Errorf("bs3 fsck %v: exit code %d, not %d\n%s%s", args, got, code, stdout, stderr)
		}
		return stdout, stderr
	}
	if _, stderr := check(exitOther); !strings.Contains(stderr, "no volume here") {
		t.Errorf("without a volume: %s", stderr)
	}
	if _, err := os.Stat(store); err == nil {
		t.Error("fsck made the directory of the store")
	}
	makeVolume(t, store)
	if out, stderr := check(exitOK, "--data"); !strings.Contains(out, "0 errors") || stderr != "" {
		t.Errorf("of a whole volume: %s%s", out, stderr)
	}
	if out, _ := check(exitOK, "--quiet"); out != "" {
		t.Errorf("quiet: %s", out)
	}

	// Damage of each kind of file, one after the other.
	hurt := 0
	err := filepath.Walk(store, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || strings.Contains(path, ".bs3") {
			return err
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		hurt++
		damaged := slices.Clone(whole)
		damaged[len(damaged)/2] ^= 1
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			return err
		}
		out, stderr := check(exitDamaged, "--data", "--json")
		var report fsck.Report
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Errorf("%s: %v: %s", path, err, out)
		} else if report.Errors == 0 || len(report.Findings) == 0 || report.Findings[0].Name == "" {
			t.Errorf("%s: %s", path, out)
		}
		if !strings.Contains(stderr, "damaged") {
			t.Errorf("%s: %s", path, stderr)
		}
		if out, _ := check(exitDamaged, "--data", "-q"); !strings.HasPrefix(out, "error: ") || strings.Contains(out, "live data") {
			t.Errorf("%s: quiet: %s", path, out)
		}
		return os.WriteFile(path, whole, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if hurt < 5 { // record, checkpoint, pack, fence, data
		t.Errorf("only %d files were damaged", hurt)
	}
	check(exitOK, "--data")
}

func TestRebuildRecord(t *testing.T) {
	work := t.TempDir()
	store := filepath.Join(work, "store")
	config := filepath.Join(work, "bs3.toml")
	if err := os.WriteFile(config, []byte("size = 1\nstore = \"dir\"\n[dir]\npath = \""+store+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(code int, args ...string) (stdout, stderr string) {
		t.Helper()
		got, stdout, stderr := bs3Main(t, work, nil, append([]string{"fsck", "-c", config}, args...)...)
		if got != code {
			t.Errorf("bs3 fsck %v: exit code %d, not %d\n%s%s", args, got, code, stdout, stderr)
		}
		return stdout, stderr
	}
	run(exitOther, "--rebuild-record")
	run(exitOther, "--write")
	makeVolume(t, store)
	if _, stderr := run(exitRefused, "--rebuild-record"); !strings.Contains(stderr, "none is ever replaced") {
		t.Errorf("of a whole volume: %s", stderr)
	}
	file := filepath.Join(store, "vo", "l", "volume")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(exitDamaged); !strings.Contains(out, "--rebuild-record") {
		t.Errorf("fsck does not say what to do: %s", out)
	}
	out, stderr := run(exitOK, "--rebuild-record")
	for _, text := range []string{"1048576 bytes", "correct that", "0 errors", "--takeover"} {
		if !strings.Contains(out, text) {
			t.Errorf("it does not say %q: %s", text, out)
		}
	}
	if !strings.Contains(stderr, "nothing was stored") {
		t.Errorf("it says %s", stderr)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the record was stored unasked")
	}
	out, _ = run(exitOK, "--rebuild-record", "--json")
	var r fsck.Rebuilt
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Record.Size != 1<<20 || len(r.Values) == 0 || len(r.Unknown) == 0 || r.Report == nil {
		t.Errorf("%v: %s", err, out)
	}
	if !strings.Contains(string(before), r.Record.UUID.String()) {
		t.Errorf("the UUID is %v", r.Record.UUID)
	}
	run(exitRefused, "--rebuild-record", "--size", "2")
	if out, _ := run(exitOK, "--rebuild-record", "--write", "-q"); out != "" {
		t.Errorf("quiet: %s", out)
	}
	run(exitRefused, "--rebuild-record", "--write")
	run(exitOK, "--data")
}
