package objproxy_test

import (
	"context"
	"errors"
	"testing"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// TestUnfenced checks that a put is made whose condition holds, whatever the store
// says of it, and that one whose condition does not hold is refused where the
// store has conditions.
func TestUnfenced(t *testing.T) {
	type m = *objtest.Memory
	type put = func(m m, ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error)
	refuses := func(what func(objproxy.Condition) bool, err error) put {
		return func(m m, ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
			if what(cond) {
				return "", err
			}
			return m.Put(ctx, name, body, cond)
		}
	}
	conditional := func(c objproxy.Condition) bool { _, is := c.Version(); return is || c.Absent() }
	for name, inner := range map[string]put{
		"honours":              m.Put,
		"contradicts itself":   refuses(conditional, objproxy.ErrExists),
		"denies every version": refuses(func(c objproxy.Condition) bool { _, is := c.Version(); return is }, objproxy.ErrExists),
		"knows no conditions":  refuses(conditional, errors.ErrUnsupported),
	} {
		t.Run(name, func(t *testing.T) {
			s := objproxy.Unfenced(careless{objtest.NewMemory(), inner})
			put := func(data string, cond objproxy.Condition) error {
				_, err := s.Put(t.Context(), "volume", objproxy.Body{Data: []byte(data)}, cond)
				return err
			}
			version := func() objproxy.Version {
				_, info, err := s.Get(t.Context(), "volume", nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				return info.Version
			}
			if err := put("a", objproxy.IfAbsent()); err != nil {
				t.Fatal(err)
			}
			old := version()
			if err := put("b", objproxy.IfVersion(old)); err != nil {
				t.Fatal(err)
			}
			if name == "knows no conditions" {
				return // then nobody looks
			}
			if err := put("c", objproxy.IfVersion(old)); !errors.Is(err, objproxy.ErrExists) {
				t.Errorf("an old version: %v", err)
			}
			if err := put("c", objproxy.IfAbsent()); !errors.Is(err, objproxy.ErrExists) {
				t.Errorf("it is there: %v", err)
			}
			if err := put("c", objproxy.IfVersion(version())); err != nil {
				t.Error(err)
			}
		})
	}
}
