package dir

import (
	"errors"
	"strings"
	"testing"

	"bs3/internal/bs3/key"
)

func TestLocate(t *testing.T) {
	for _, c := range []struct{ name, path string }{
		{"c0000000/00000000", "c0/0/c0000000%2F00000000"},
		{"volume", "vo/l/volume"},
		{"checkpoint/17-2-1", "ch/e/checkpoint%2F17-2-1"},
		{"v", "v/%/v"},
		{"vo", "vo/%/vo"},
		{"../../etc/passwd", "%2E%2E/%2F/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd"},
		{".bs3", "%2Eb/s/%2Ebs3"},
		{"%", "%25/%/%25"},
		{"ü%2F\x00", "%C3%BC/%25/%C3%BC%252F%00"},
	} {
		loc, err := locate(c.name)
		if err != nil {
			t.Errorf("%q: %v", c.name, err)
		}
		if loc.path() != c.path {
			t.Errorf("%q is at %s, want %s", c.name, loc.path(), c.path)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", 256), strings.Repeat("/", 86)} {
		if _, err := locate(bad); !errors.Is(err, errName) {
			t.Errorf("name of %d bytes: want errName, got %v", len(bad), err)
		}
	}
	if _, err := locate(strings.Repeat("x", 255)); err != nil {
		t.Error(err)
	}
}

// TestSpread checks that the objects of a log fill the directories evenly.
func TestSpread(t *testing.T) {
	count := make(map[string]int)
	const objects = 1 << 17
	for k := range key.Key(objects) {
		loc, err := locate(k.Name())
		if err != nil {
			t.Fatal(err)
		}
		count[loc.dir()]++
	}
	if len(count) != 4096 {
		t.Errorf("%d directories, want 4096", len(count))
	}
	for d, n := range count {
		if n != objects/4096 {
			t.Errorf("directory %s has %d objects, want %d", d, n, objects/4096)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "volume", "%", "%2F", "%2f", "%61", "a%", "ü/.", "%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if back, ok := unescape(escape(s)); !ok || back != s {
			t.Errorf("%q comes back as %q, %v", s, back, ok)
		}
		if strings.ContainsAny(escape(s), "/.\x00") {
			t.Errorf("%q is escaped to %q", s, escape(s))
		}
		// No two file names stand for one object.
		if name, ok := unescape(s); ok && escape(name) != s {
			t.Errorf("%q is taken for %q, which is %q", s, name, escape(name))
		}
	})
}
