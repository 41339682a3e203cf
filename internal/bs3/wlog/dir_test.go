package wlog

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// TestInMemory checks that statfs(2) agrees with the table of mounts.
func TestInMemory(t *testing.T) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	kinds := map[string]string{} // of file systems, by where they are; what was mounted last lies on top
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 {
			kinds[fields[1]] = fields[2]
		}
	}
	for _, path := range []string{"/", "/proc", "/dev/shm"} {
		if kind := kinds[path]; kind != "" {
			if got, want := (&Dir{path: path}).InMemory(), kind == "tmpfs" || kind == "ramfs"; got != want {
				t.Errorf("%s is a %s: in memory: %v", path, kind, got)
			}
		}
	}
	if (&Dir{path: t.TempDir() + "/missing"}).InMemory() {
		t.Error("what is not there is in memory")
	}
}
