package objtest

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"bs3/internal/bs3/objproxy"
)

// Damaged is the contract of objproxy.Store for objects that somebody changed
// behind the store's back. open returns an empty store whose objects are files,
// and a function that returns the path of the file of an object.
//
// A damaged object is there: it is listed, a Put on condition that it is not
// there fails, it can be removed. What a Get returns is a definite answer, so
// that a Retry does not ask for ever: ErrDamaged if the store can tell,
// otherwise ErrRange or what there is, with its size.
func Damaged(t *testing.T, open func(t *testing.T) (s objproxy.Store, file func(name string) string)) {
	const name, size = "40000000/00000000", 5000
	for _, d := range []struct {
		name   string
		damage func(file []byte) []byte
	}{
		{"CutByOne", func(b []byte) []byte { return b[:len(b)-1] }},
		{"CutInHalf", func(b []byte) []byte { return b[:len(b)/2] }},
		{"CutToNothing", func([]byte) []byte { return nil }},
		{"ExtendedByOne", func(b []byte) []byte { return append(b, 'x') }},
		{"Doubled", func(b []byte) []byte { return append(b, b...) }},
		{"Foreign", func([]byte) []byte { return []byte("written by somebody else") }},
	} {
		t.Run(d.name, func(t *testing.T) {
			s, file := open(t)
			path := file(name)
			content := random(40, size)
			damage := func() []byte {
				t.Helper()
				mustPut(t, s, name, content)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				b = d.damage(b)
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return b
			}
			untouched := func(want []byte) {
				t.Helper()
				if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
					t.Fatalf("the damaged object was changed: %d bytes, were %d, %v", len(b), len(want), err)
				}
			}
			list := func() (names []string) {
				t.Helper()
				infos, err := s.List(t.Context(), name[:1], "", 10)
				if err != nil {
					t.Fatal(err)
				}
				for _, i := range infos {
					names = append(names, i.Name)
				}
				return names
			}

			hurt := damage()
			for _, c := range []struct{ n, off int }{{size, 0}, {10, 0}, {10, size - 10}, {100, -1}, {2 * size, -1}, {0, 0}} {
				n, info, err := s.Get(t.Context(), name, make([]byte, c.n), int64(c.off))
				switch {
				case errors.Is(err, objproxy.ErrDamaged):
				case errors.Is(err, objproxy.ErrRange) && c.off >= 0:
				case err != nil:
					t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
				case info.Size == size:
					t.Errorf("%d bytes at %d: its size is said to be that of before", c.n, c.off)
				case c.off >= 0 && n != c.n || c.off < 0 && int64(n) != min(int64(c.n), info.Size):
					t.Errorf("%d bytes at %d of %d: it brings %d", c.n, c.off, info.Size, n)
				}
			}
			if names := list(); !slices.Equal(names, []string{name}) {
				t.Errorf("List returns %s", strings.Join(names, ", "))
			}
			other := objproxy.Body{Data: []byte("other")}
			if _, err := s.Put(t.Context(), name, other, objproxy.IfAbsent()); !errors.Is(err, objproxy.ErrExists) {
				t.Errorf("put if absent: %v", err)
			}
			untouched(hurt)
			_, err := s.Put(t.Context(), name, other, objproxy.IfVersion("no such version"))
			if !errors.Is(err, objproxy.ErrExists) && !errors.Is(err, objproxy.ErrDamaged) {
				t.Errorf("put over another version: %v", err)
			}
			untouched(hurt)

			mustPut(t, s, name, content)
			mustHold(t, s, name, content)
			damage()
			if err := s.Delete(t.Context(), []string{name}); err != nil {
				t.Errorf("delete: %v", err)
			}
			if _, _, err := s.Get(t.Context(), name, make([]byte, 1), 0); !errors.Is(err, objproxy.ErrNotFound) {
				t.Errorf("get after delete: %v", err)
			}
			if names := list(); names != nil {
				t.Errorf("List after delete returns %s", strings.Join(names, ", "))
			}
		})
	}
}
