package cli

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/config"
)

// Another host takes the volume over; the daemon learns of it when it next needs
// the store, at the latest when it stops.
func TestFencedDaemon(t *testing.T) {
	path := t.TempDir()
	d := startDaemon(t, path, nil, "--local")
	d.expect("serving")

	store, err := dir.Open(t.Context(), filepath.Join(path, ".bs3/store"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	other, err := bs3.Open(t.Context(), bs3.Options{
		Store: store, Host: bs3.Host{ID: "other-machine", Name: "other-host"}, Takeover: true,
		Size: 8 * config.GB, BlockSize: 4096, ChunkSize: 4 * config.MB, Memory: 16 * config.MB, Uploaders: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Close(t.Context()); err != nil {
			t.Errorf("close the other writer: %v", err)
		}
	}()

	d.signal(syscall.SIGTERM)
	line := d.expect("other-host")
	if !strings.Contains(line, "epoch 2") {
		t.Errorf("the epoch that took over is not named: %s", line)
	}
	if code := d.wait(); code != exitFenced {
		t.Errorf("exit %d", code)
	}
}
