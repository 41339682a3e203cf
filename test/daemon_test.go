package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bs3/internal/bs3/objproxy/objtest"
)

// The kinds of store that tests run on.
const (
	onDir       = "dir"
	onVersitygw = "versitygw" // a real S3 server
)

// volume is a volume's configuration and the directory that holds all of it.
// go test -artifacts keeps that directory.
type volume struct {
	t      testing.TB
	dir    string
	socket string         // of its NBD server
	config map[string]any // keys of the configuration and their values
}

// newVolume configures a volume of 1 GB in a store that lives as long as the test.
func newVolume(t testing.TB, store string) *volume {
	t.Helper()
	if store == onDir {
		v := emptyVolume(t)
		v.config["store"], v.config["dir.path"] = "dir", filepath.Join(v.dir, "store")
		return v
	}
	endpoint, access, secret := objtest.StartVersitygw(t)
	v := emptyVolume(t)
	v.config["store"], v.config["s3.remote"] = "s3", endpoint
	v.config["s3.access_key"], v.config["s3.secret_key"] = access, secret
	v.config["s3.bucket"], v.config["s3.prefix"] = "bs3-e2e", "vol"
	return v
}

func emptyVolume(t testing.TB) *volume {
	t.Helper()
	dir, err := os.MkdirTemp(t.ArtifactDir(), "volume-")
	if err != nil {
		t.Fatal(err)
	}
	sockets := t.TempDir() // their names must be short
	socket := filepath.Join(sockets, "nbd.sock")
	return &volume{t: t, dir: dir, socket: socket, config: map[string]any{
		"size":           1,
		"transport":      "nbd",
		"state.path":     filepath.Join(dir, "state"),
		"nbd.listen":     "unix:" + socket,
		"control.socket": filepath.Join(sockets, "control.sock"),
		"log.pretty":     false,
	}}
}

// with sets a key for the starts that follow.
func (v *volume) with(key string, value any) *volume {
	v.config[key] = value
	return v
}

func (v *volume) uri() string { return "nbd+unix:///?socket=" + v.socket }

// wipeState leaves the volume with nothing but its store.
func (v *volume) wipeState() {
	v.t.Helper()
	if err := os.RemoveAll(filepath.Join(v.dir, "state")); err != nil {
		v.t.Fatal(err)
	}
}

// The modes: what a flush waits for.
const (
	durable  = "durable"
	localLog = "local log"
	barrier  = "barrier"
)

// inMode sets the mode.
func (v *volume) inMode(mode string) *volume {
	if mode == localLog {
		v.with("cache.path", v.cache()).with("cache.size", 1)
	}
	return v.with("write.durable", mode == durable)
}

func (v *volume) cache() string { return filepath.Join(v.dir, "cache") }

// loseDisk leaves the volume without its local log.
func (v *volume) loseDisk() {
	v.t.Helper()
	if err := os.RemoveAll(v.cache()); err != nil {
		v.t.Fatal(err)
	}
}

// command returns bs3 with the volume's configuration.
func (v *volume) command(args ...string) *exec.Cmd {
	v.t.Helper()
	var text strings.Builder
	for key, value := range v.config {
		fmt.Fprintf(&text, "%s = %#v\n", key, value)
	}
	file := filepath.Join(v.dir, "vm.toml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		v.t.Fatal(err)
	}
	return bs3(v.dir, append([]string{"-c", file}, args...)...)
}

// bs3 returns the program under test, in dir, with none of our variables set.
func bs3(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Getenv(binaryEnv), args...)
	cmd.Dir = dir
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BS3_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	return cmd
}

// daemon is a running bs3.
type daemon struct{ *process }

// launch starts a daemon that may never get as far as serving.
func (v *volume) launch(args ...string) *daemon {
	v.t.Helper()
	return &daemon{start(v.t, "bs3", v.command(args...))}
}

// start starts a daemon and waits until it serves.
func (v *volume) start(args ...string) *daemon {
	v.t.Helper()
	d := v.launch(args...)
	d.expect(`"serving"`)
	return d
}

// stop stops it cleanly.
func (d *daemon) stop() {
	d.t.Helper()
	d.signal(syscall.SIGINT)
	if code := d.wait(); code != 0 {
		d.t.Fatalf("a clean stop: exit code %d", code)
	}
}

// info is part of what `bs3 info --json` prints.
type info struct {
	Size   int64
	Epoch  uint64
	Writer struct{ Released bool }
}

func (v *volume) info() info {
	v.t.Helper()
	code, out, errs := run(v.t, v.command("info", "--json"))
	if code != 0 {
		v.t.Fatalf("bs3 info: exit code %d\n%s", code, errs)
	}
	var i info
	if err := json.Unmarshal([]byte(out), &i); err != nil {
		v.t.Fatalf("bs3 info: %v in %s", err, out)
	}
	return i
}
