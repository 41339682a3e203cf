package listen

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, _, err := Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if _, _, err := Listen(t.Context(), "unix", path); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("a second listener beside a live one: %v", err)
	}
	if err := l.Close(); err != nil { // as if the process had died: the file stays
		t.Fatal(err)
	}
	l, release, err := Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("in place of a dead one: %v", err)
	}
	if _, err := net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	release()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("the socket is still there: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Listen(t.Context(), "unix", path); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("over a plain file: %v", err)
	}
}
