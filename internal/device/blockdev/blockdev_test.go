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
