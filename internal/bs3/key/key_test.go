package key

import (
	"cmp"
	"errors"
	"math/bits"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		key  Key
		name string
	}{
		{0, "00000000/00000000"},
		{1, "80000000/00000000"},
		{2, "40000000/00000000"},
		{3, "c0000000/00000000"},
		{0x12345678, "1e6a2c48/00000000"},
		{1<<32 - 1, "ffffffff/00000000"},
		{1 << 32, "00000000/00000001"},
		{1<<33 + 1, "80000000/00000002"},
		{Max, "7fffffff/000000ff"},
	} {
		if got := c.key.Name(); got != c.name {
			t.Errorf("name of %d: %q, not %q", c.key, got, c.name)
		}
		if got, err := Parse(c.name); err != nil || got != c.key {
			t.Errorf("key of %q: %d, %v, not %d", c.name, got, err, c.key)
		}
	}
}

func keys() *rapid.Generator[Key] {
	return rapid.Custom(func(t *rapid.T) Key {
		return Key(rapid.Uint64Range(0, uint64(Max)).Draw(t, "key"))
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := keys().Draw(t, "k")
		if got, err := Parse(k.Name()); err != nil || got != k {
			t.Fatalf("%d is named %q, which is %d, %v", k, k.Name(), got, err)
		}
	})
}

// A store lists names in byte order: that of the reversed low half, and the
// high half within.
func TestNamesSort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := keys().Draw(t, "a"), keys().Draw(t, "b")
		if rapid.Bool().Draw(t, "same low half") {
			b = b&^(1<<32-1) | a&(1<<32-1)
		}
		want := cmp.Or(
			cmp.Compare(bits.Reverse32(uint32(a)), bits.Reverse32(uint32(b))),
			cmp.Compare(a>>32, b>>32),
		)
		if got := strings.Compare(a.Name(), b.Name()); got != want {
			t.Fatalf("%q and %q compare as %d, not %d", a.Name(), b.Name(), got, want)
		}
	})
}

func TestNeighboursDifferInFirstCharacter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := keys().Draw(t, "k")
		seen := map[byte]bool{}
		for i := range Key(16) {
			seen[(k + i).Name()[0]] = true
		}
		if len(seen) != 16 {
			t.Fatalf("16 keys from %d have %d first characters", k, len(seen))
		}
	})
}

// notNames are names that Parse refuses.
func notNames() []string {
	return []string{
		"",
		"volume",
		"00000000",
		"00000000/0000000",
		"00000000/000000000",
		"00000000000000000",
		"00000000-00000000",
		"0000000/000000000",
		"8000000g/00000000",
		"80000000/0000000G",
		"8000000A/00000000", // upper case
		"80000000/000000FF",
		"+8000000/00000000", // what ParseUint might let pass
		"0x000000/00000000",
		"1_000000/00000000",
		"00000000/-0000001",
		" 0000000/00000000",
		"ffffffff/000000ff", // 1<<40 - 1, one more than Max
		"00000000/00000100", // 1<<40
		"ffffffff/ffffffff",
		"00000000/00000000/",
		"prefix/00000000/00000000",
	}
}

func TestParseRejects(t *testing.T) {
	for _, name := range notNames() {
		k, err := Parse(name)
		if !errors.Is(err, ErrName) {
			t.Errorf("%q is taken for %d, error %v", name, k, err)
		} else if name != "" && !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %q: %v", name, err)
		}
	}
}

// What parses is a name that Name returns.
func FuzzParse(f *testing.F) {
	for _, name := range notNames() {
		f.Add(name)
	}
	for _, k := range []Key{0, 1, 1 << 32, Max} {
		f.Add(k.Name())
	}
	f.Fuzz(func(t *testing.T, name string) {
		k, err := Parse(name)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Errorf("%q: %v is not ErrName", name, err)
			}
			return
		}
		if k > Max || k.Name() != name {
			t.Errorf("%q is taken for %d, whose name is %q", name, k, k.Name())
		}
	})
}

func TestAllocator(t *testing.T) {
	a := NewAllocator(7)
	for want := Key(7); want < 10; want++ {
		if next := a.Next(); next != want {
			t.Errorf("next is %d, not %d", next, want)
		}
		if got := a.Take(); got != want {
			t.Errorf("took %d, not %d", got, want)
		}
	}
}
