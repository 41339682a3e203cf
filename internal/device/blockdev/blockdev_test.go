package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestScheduler(t *testing.T) {
	for _, test := range []struct {
		list string
		on   bool
		want string
	}{
		{"[none] mq-deadline kyber", false, ""},
		{"[none] mq-deadline kyber", true, "mq-deadline"},
		{"none [mq-deadline] kyber", true, ""},
		{"none [mq-deadline] kyber", false, "none"},
		{"none mq-deadline [kyber]", true, ""},
		{"[none] kyber bfq", true, "kyber"},
		{"[none]", true, ""},
		{"[none]", false, ""},
	} {
		if got := scheduler(strings.Fields(test.list), test.on); got != test.want {
			t.Errorf("%s, on %v: %q, want %q", test.list, test.on, got, test.want)
		}
	}
}

func TestNoSuchDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nothing")
	if err := WriteBack(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := SetScheduler(path, true); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteBack(path); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a plain file: %v", err)
	}
}

// Another process waits, which has none of this one's files open.
func TestWriteBackElsewhere(t *testing.T) {
	dir := t.TempDir()
	state, err := os.Open(dir) // as the daemon has its device and its state
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	tool := "#!/bin/sh\necho \"$@\" > " + dir + "/called\nls -l /proc/$$/fd > " + dir + "/open\n"
	if err := os.WriteFile(filepath.Join(dir, "blockdev"), []byte(tool), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	path := filepath.Join(dir, "device")
	if err := WriteBack(path); err != nil {
		t.Errorf("the tool succeeded: %v", err)
	}
	if called, err := os.ReadFile(filepath.Join(dir, "called")); err != nil || string(called) != "--flushbufs "+path+"\n" {
		t.Errorf("called with %q, %v", called, err)
	}
	if open, err := os.ReadFile(filepath.Join(dir, "open")); err != nil || len(open) == 0 || strings.Contains(string(open), dir+"\n") {
		t.Errorf("the tool has open: %s, %v", open, err)
	}

	// If the tool fails, WriteBack does it itself.
	if err := os.WriteFile(filepath.Join(dir, "blockdev"), []byte("#!/bin/sh\nkill -9 $$\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteBack(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tool was killed: %v", err)
	}
}
