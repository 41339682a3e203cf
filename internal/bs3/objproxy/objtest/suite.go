package objtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
)

// Suite is the contract of objproxy.Store as a test. open returns an empty store.
// Suite leaves out the tests named in without; the caller must state why.
func Suite(t *testing.T, open func(t *testing.T) objproxy.Store, without ...string) {
	for _, c := range []struct {
		name string
		test func(*testing.T, objproxy.Store)
	}{
		{"RoundTrip", testRoundTrip},
		{"Range", testRange},
		{"Suffix", testSuffix},
		{"PastTheEnd", testPastTheEnd},
		{"NotFound", testNotFound},
		{"Replace", testReplace},
		{"IfAbsent", testIfAbsent},
		{"IfVersion", testIfVersion},
		{"Race", testRace},
		{"Count", testCount},
		{"ReadersAndWriter", testReadersAndWriter},
		{"List", testList},
		{"Delete", testDelete},
		{"DeleteMany", testDeleteMany},
		{"Cancelled", testCancelled},
		{"BodyClosed", testBodyClosed},
		{"Probe", testProbe},
	} {
		if !slices.Contains(without, c.name) {
			t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
		}
	}
}

// random returns n bytes that depend only on seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

func mustPut(t *testing.T, s objproxy.Store, name string, data []byte) objproxy.Version {
	t.Helper()
	v, err := s.Put(t.Context(), name, objproxy.Body{Data: data}, objproxy.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// mustHold checks the whole object, which it reads with one byte to spare.
func mustHold(t *testing.T, s objproxy.Store, name string, want []byte) objproxy.Info {
	t.Helper()
	p := make([]byte, len(want)+1)
	n, info, err := s.Get(t.Context(), name, p, -1)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p[:n], want) {
		t.Fatalf("%s holds %d bytes, not the %d that were put", name, n, len(want))
	}
	if info.Size != int64(len(want)) || info.Version == "" {
		t.Fatalf("%s: info is %+v, want size %d and a version", name, info, len(want))
	}
	return info
}

func testRoundTrip(t *testing.T, s objproxy.Store) {
	const chunk = 4 << 20
	for _, c := range []struct {
		name       string
		data, tail int
	}{
		{"volume", 700, 0},
		{"00000000/00000000", 0, 0},
		{"80000000/00000000", 1, 0},
		{"40000000/00000000", 0, 1},
		{"ffffffff/000000ff", 4096, 64},
		{"c0000000/00000000", chunk, 33000},
		{"checkpoint/17-2-1", 65537, 0},
		{"map/2-15", 1000, 1000},
		{"snapshot/before update_1.0-2-3", 31, 0},
		{objproxy.ProbePrefix + "4f2a", 5, 5},
	} {
		data, tail := random(1, c.data), random(2, c.tail)
		v, err := s.Put(t.Context(), c.name, objproxy.Body{Data: data, Tail: tail}, objproxy.IfAbsent())
		if err != nil {
			t.Fatal(err)
		}
		info := mustHold(t, s, c.name, append(data, tail...))
		if info.Version != v {
			t.Errorf("%s: Put said version %q, Get says %q", c.name, v, info.Version)
		}
		if info.Name != c.name {
			t.Errorf("%s: Get calls it %q", c.name, info.Name)
		}
	}
}

func testRange(t *testing.T, s objproxy.Store) {
	data := random(3, 100_000)
	v := mustPut(t, s, "00000000/00000000", data)
	for _, c := range []struct{ off, n int }{
		{0, 1}, {0, 100_000}, {1, 99_999}, {99_999, 1}, {4096, 4096}, {50_000, 33_333}, {70, 0}, {100_000, 0},
	} {
		p := make([]byte, c.n)
		n, info, err := s.Get(t.Context(), "00000000/00000000", p, int64(c.off))
		if err != nil {
			t.Fatalf("%d bytes at %d: %v", c.n, c.off, err)
		}
		if n != c.n || !bytes.Equal(p, data[c.off:c.off+c.n]) {
			t.Errorf("%d bytes at %d: got %d bytes, or other ones", c.n, c.off, n)
		}
		if info.Size != 100_000 || info.Version != v {
			t.Errorf("%d bytes at %d: info is %+v, want size 100000, version %q", c.n, c.off, info, v)
		}
	}
}

func testSuffix(t *testing.T, s objproxy.Store) {
	for _, size := range []int{0, 1, 1000, 40_000} {
		name := fmt.Sprintf("map/1-%d", size)
		data := random(4, size)
		v := mustPut(t, s, name, data)
		for _, n := range []int{0, 1, 999, 1000, 1001, 39_999, 40_000, 40_001, 1 << 20} {
			p := bytes.Repeat([]byte{0xee}, n)
			got, info, err := s.Get(t.Context(), name, p, -1)
			if err != nil {
				t.Fatalf("last %d bytes of %d: %v", n, size, err)
			}
			want := data[max(0, size-n):]
			if !bytes.Equal(p[:got], want) {
				t.Errorf("last %d bytes of %d: got %d bytes, or other ones", n, size, got)
			}
			if info.Size != int64(size) || info.Version != v {
				t.Errorf("last %d bytes of %d: info is %+v, want version %q", n, size, info, v)
			}
		}
	}
}

func testPastTheEnd(t *testing.T, s objproxy.Store) {
	mustPut(t, s, "full", random(5, 1000))
	mustPut(t, s, "empty", nil)
	for _, c := range []struct {
		name   string
		off, n int
	}{{"full", 0, 1001}, {"full", 999, 2}, {"full", 1000, 1}, {"full", 5000, 10}, {"full", 1001, 0}, {"empty", 0, 1}, {"empty", 7, 1}} {
		_, _, err := s.Get(t.Context(), c.name, make([]byte, c.n), int64(c.off))
		if !errors.Is(err, objproxy.ErrRange) || errors.Is(err, objproxy.ErrNotFound) || errors.Is(err, objproxy.ErrTransient) {
			t.Errorf("%s: %d bytes at %d: want ErrRange, got %v", c.name, c.n, c.off, err)
		}
	}
}

func testNotFound(t *testing.T, s objproxy.Store) {
	for _, off := range []int64{0, 4096, -1} {
		_, _, err := s.Get(t.Context(), "00000000/00000000", make([]byte, 16), off)
		if !errors.Is(err, objproxy.ErrNotFound) {
			t.Errorf("get of nothing at %d: want ErrNotFound, got %v", off, err)
		}
	}
	_, _, err := s.Get(t.Context(), "00000000/00000000", nil, 0)
	if !errors.Is(err, objproxy.ErrNotFound) {
		t.Errorf("get of no bytes of nothing: want ErrNotFound, got %v", err)
	}
}

func testReplace(t *testing.T, s objproxy.Store) {
	seen := make(map[objproxy.Version]int)
	for i := range 5 {
		data := random(uint64(10+i), 5000-i*1000)
		v := mustPut(t, s, "volume", data)
		if info := mustHold(t, s, "volume", data); info.Version != v {
			t.Errorf("put %d: Put said version %q, Get says %q", i, v, info.Version)
		}
		// The same bytes may have the same version (an ETag), other bytes never.
		if j, again := seen[v]; again {
			t.Errorf("put %d has the version of put %d", i, j)
		}
		seen[v] = i
	}
}

func testIfAbsent(t *testing.T, s objproxy.Store) {
	first := random(20, 3000)
	if _, err := s.Put(t.Context(), "40000000/00000000", objproxy.Body{Data: first}, objproxy.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{random(21, 3000), first, nil} {
		_, err := s.Put(t.Context(), "40000000/00000000", objproxy.Body{Data: data}, objproxy.IfAbsent())
		if !errors.Is(err, objproxy.ErrExists) {
			t.Fatalf("second put: want ErrExists, got %v", err)
		}
		mustHold(t, s, "40000000/00000000", first)
	}
	if err := s.Delete(t.Context(), []string{"40000000/00000000"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "40000000/00000000", objproxy.Body{Data: []byte("new")}, objproxy.IfAbsent()); err != nil {
		t.Fatalf("put after delete: %v", err)
	}
	mustHold(t, s, "40000000/00000000", []byte("new"))
}

func testIfVersion(t *testing.T, s objproxy.Store) {
	put := func(data string, v objproxy.Version) (objproxy.Version, error) {
		return s.Put(t.Context(), "volume", objproxy.Body{Data: []byte(data)}, objproxy.IfVersion(v))
	}
	a := mustPut(t, s, "volume", []byte("generation 1"))
	b, err := put("generation 2", a)
	if err != nil {
		t.Fatal(err)
	}
	for _, stale := range []objproxy.Version{a, "", "no such version", `"00000000000000000000000000000000"`} {
		if _, err := put("generation 3", stale); !errors.Is(err, objproxy.ErrExists) {
			t.Fatalf("put over version %q: want ErrExists, got %v", stale, err)
		}
		if info := mustHold(t, s, "volume", []byte("generation 2")); info.Version != b {
			t.Fatalf("refused put changed the version from %q to %q", b, info.Version)
		}
	}
	if _, err := put("generation 3", mustHold(t, s, "volume", []byte("generation 2")).Version); err != nil {
		t.Fatalf("put over the version that Get gave: %v", err)
	}
	mustHold(t, s, "volume", []byte("generation 3"))
	if err := s.Delete(t.Context(), []string{"volume"}); err != nil {
		t.Fatal(err)
	}
	if _, err := put("generation 4", b); !errors.Is(err, objproxy.ErrExists) {
		t.Fatalf("put over a version of nothing: want ErrExists, got %v", err)
	}
	if _, _, err := s.Get(t.Context(), "volume", nil, -1); !errors.Is(err, objproxy.ErrNotFound) {
		t.Fatalf("refused put left something: %v", err)
	}
}

// testRace checks that of many conditional puts at once exactly one wins, and
// that its bytes are the ones stored.
func testRace(t *testing.T, s objproxy.Store) {
	const rounds, racers = 8, 16
	name := "volume"
	cond := objproxy.IfAbsent()
	for round := range rounds {
		won := make([]objproxy.Version, racers)
		errs := make([]error, racers)
		data := func(i int) []byte { return random(uint64(100*round+i), 2000+i) }
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				// A busy store may refuse some of the puts that race (S3: 409).
				retry := objproxy.NewRetry(s, objproxy.RetryOptions{First: time.Millisecond})
				won[i], errs[i] = retry.Put(t.Context(), name, objproxy.Body{Data: data(i)}, cond)
			})
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: racers %d and %d both won", round, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, objproxy.ErrExists):
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won", round)
		}
		if info := mustHold(t, s, name, data(winner)); info.Version != won[winner] {
			t.Fatalf("round %d: version is %q, the winner has %q", round, info.Version, won[winner])
		}
		cond = objproxy.IfVersion(won[winner])
	}
}

// testCount checks that no update is lost if each replaces only what was read.
func testCount(t *testing.T, s objproxy.Store) {
	const counters, each = 6, 8
	mustPut(t, s, "volume", []byte("0"))
	var wg sync.WaitGroup
	for range counters {
		wg.Go(func() {
			for range each {
				if err := increment(t.Context(), s, "volume"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	mustHold(t, s, "volume", []byte(strconv.Itoa(counters*each)))
}

// increment adds one to the number in an object.
func increment(ctx context.Context, s objproxy.Store, name string) error {
	for {
		p := make([]byte, 20)
		n, info, err := s.Get(ctx, name, p, -1)
		if err != nil {
			return err
		}
		number, err := strconv.Atoi(string(p[:n]))
		if err != nil {
			return err
		}
		_, err = s.Put(ctx, name, objproxy.Body{Data: []byte(strconv.Itoa(number + 1))}, objproxy.IfVersion(info.Version))
		if err == nil {
			return nil
		}
		// A busy store may refuse some of the puts that race (S3: 409); it has
		// stored nothing then.
		if !errors.Is(err, objproxy.ErrExists) && !errors.Is(err, objproxy.ErrTransient) {
			return err
		}
	}
}

// testReadersAndWriter checks that a reader sees whole objects, and the version
// of what it sees, while they are replaced.
func testReadersAndWriter(t *testing.T, s objproxy.Store) {
	const writes = 30
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 10_000+100*i) }
	var mu sync.Mutex
	versions := make(map[objproxy.Version]byte)
	note := func(v objproxy.Version, b byte) {
		mu.Lock()
		defer mu.Unlock()
		if old, seen := versions[v]; seen && old != b {
			t.Errorf("version %q belongs to writes %d and %d", v, old, b)
		}
		versions[v] = b
	}
	note(mustPut(t, s, "volume", content(0)), 0)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 20_000)
			for ctx.Err() == nil {
				n, info, err := s.Get(ctx, "volume", p, -1)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p[:n], content(int(p[0]))) || info.Size != int64(n) {
					t.Errorf("read a mixture: %d bytes of %d, the first %d", n, info.Size, p[0])
					return
				}
				note(info.Version, p[0])
			}
		})
	}
	for i := range writes {
		v, err := s.Put(t.Context(), "volume", objproxy.Body{Data: content(i + 1)}, objproxy.Condition{})
		if err != nil {
			t.Error(err)
			break
		}
		note(v, byte(i+1))
	}
	stop()
	wg.Wait()
}

func testList(t *testing.T, s objproxy.Store) {
	names := []string{"volume", "checkpoint/1-1-1", "checkpoint/2-1-2", "map/1-1", objproxy.ProbePrefix + "x", "v", "vol", "volume2", "snapshot/a b%c-1-1"}
	for i := range 30 {
		names = append(names, fmt.Sprintf("%08x/%08x", i*0x7654321, i%3))
	}
	for i, name := range names {
		mustPut(t, s, name, make([]byte, i))
	}
	sizes := make(map[string]int64)
	for i, name := range names {
		sizes[name] = int64(i)
	}
	slices.Sort(names)
	for _, c := range []struct {
		prefix, after string
		limit         int
	}{
		{"", "", 1000}, {"", "", 1}, {"", "", 39}, {"", "", 40}, {"", "checkpoint/", 7},
		{"checkpoint/", "", 10}, {"checkpoint/", "checkpoint/1-1-1", 10}, {"checkpoint/", "a", 1}, {"checkpoint/", "z", 10},
		{"vol", "", 10}, {"volume", "volume", 10}, {"nothing", "", 10}, {"0", "", 100}, {"0000", "", 5}, {"", "zzz", 5},
		{"snapshot/a b", "", 3}, {"m", "", 3},
	} {
		infos, err := s.List(t.Context(), c.prefix, c.after, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, name := range names {
			if strings.HasPrefix(name, c.prefix) && name > c.after && len(want) < c.limit {
				want = append(want, name)
			}
		}
		var got []string
		for _, info := range infos {
			got = append(got, info.Name)
			if info.Size != sizes[info.Name] {
				t.Errorf("%s has %d bytes, List says %d", info.Name, sizes[info.Name], info.Size)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("prefix %q after %q limit %d:\ngot  %q\nwant %q", c.prefix, c.after, c.limit, got, want)
		}
	}
	// Everything, page by page.
	var got []string
	for after := ""; ; after = got[len(got)-1] {
		infos, err := s.List(t.Context(), "", after, 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			got = append(got, info.Name)
		}
		if len(infos) < 7 {
			break
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("by pages:\ngot  %q\nwant %q", got, names)
	}
}

func testDelete(t *testing.T, s objproxy.Store) {
	mustPut(t, s, "map/1-1", []byte("a"))
	mustPut(t, s, "map/1-2", []byte("b"))
	if err := s.Delete(t.Context(), nil); err != nil {
		t.Fatalf("delete of nothing: %v", err)
	}
	if err := s.Delete(t.Context(), []string{"map/1-1", "map/1-3", "volume"}); err != nil {
		t.Fatalf("delete, two of them not there: %v", err)
	}
	if _, _, err := s.Get(t.Context(), "map/1-1", make([]byte, 1), 0); !errors.Is(err, objproxy.ErrNotFound) {
		t.Errorf("deleted object: want ErrNotFound, got %v", err)
	}
	mustHold(t, s, "map/1-2", []byte("b"))
}

// testDeleteMany deletes more names than one request of S3 takes, and lists more
// objects than one answer of S3 holds.
func testDeleteMany(t *testing.T, s objproxy.Store) {
	const n = 1200
	names := make([]string, n)
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	for i := range n {
		names[i] = fmt.Sprintf("%08x/00000000", i*0x1f3a7)
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			if i%100 == 99 {
				return // it does not exist when it is deleted
			}
			if _, err := s.Put(t.Context(), names[i], objproxy.Body{}, objproxy.IfAbsent()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mustPut(t, s, "volume", []byte("stays"))
	infos, err := s.List(t.Context(), "", "", 5000)
	if err != nil {
		t.Fatal(err)
	}
	if want := n - n/100 + 1; len(infos) != want {
		t.Fatalf("%d objects are listed, want %d", len(infos), want)
	}
	if err := s.Delete(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	infos, err = s.List(t.Context(), "", "", 5000)
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 1 || infos[0].Name != "volume" {
		t.Fatalf("%d objects are left, want volume alone", len(infos))
	}
}

func testCancelled(t *testing.T, s objproxy.Store) {
	mustPut(t, s, "volume", []byte("stays"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: want context.Canceled, got %v", what, err)
		}
	}
	_, err := s.Put(ctx, "new", objproxy.Body{Data: []byte("x")}, objproxy.IfAbsent())
	check("put", err)
	_, _, err = s.Get(ctx, "volume", make([]byte, 5), 0)
	check("get", err)
	_, _, err = s.Get(ctx, "nothing", make([]byte, 5), -1)
	check("get of nothing", err)
	_, err = s.List(ctx, "", "", 10)
	check("list", err)
	check("delete", s.Delete(ctx, []string{"volume"}))
	infos, err := s.List(t.Context(), "", "", 10)
	if err != nil || len(infos) != 1 || infos[0].Name != "volume" {
		t.Errorf("cancelled requests changed the store: %v, %v", infos, err)
	}
}

// testBodyClosed checks that every reader of a body is closed, also by puts that
// fail or are cancelled, so that its memory can be used again.
func testBodyClosed(t *testing.T, s objproxy.Store) {
	data := random(30, 3<<20)
	var b BodyWatch
	put := func(ctx context.Context, cond objproxy.Condition) error {
		_, err := s.Put(ctx, "00000000/00000000", b.Body(data, data[:5000]), cond)
		return err
	}
	if err := put(t.Context(), objproxy.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	if b.Readers() == 0 {
		t.Error("the store read the body without opening it")
	}
	b.WaitClosed(t)
	if err := put(t.Context(), objproxy.IfAbsent()); !errors.Is(err, objproxy.ErrExists) {
		t.Fatalf("want ErrExists, got %v", err)
	}
	b.WaitClosed(t)
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
		err := put(ctx, objproxy.Condition{})
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("want a deadline, got %v", err)
		}
		b.WaitClosed(t)
	}
}

func testProbe(t *testing.T, s objproxy.Store) {
	if err := objproxy.Probe(t.Context(), s, "1234"); err != nil {
		t.Fatal(err)
	}
	infos, err := s.List(t.Context(), "", "", 10)
	if err != nil || len(infos) != 0 {
		t.Errorf("the probe left %v, %v", infos, err)
	}
}
