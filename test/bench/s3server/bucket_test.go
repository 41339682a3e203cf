package s3server

import "testing"

// A put that ends after its bucket was dropped keeps none of the server's memory.
func TestLatePut(t *testing.T) {
	p, err := newPages(4 * pageSize)
	if err != nil {
		t.Fatal(err)
	}
	b := &bucket{pages: p, objects: make(map[string]*object)}
	o := &object{pages: [][]byte{p.get()}, size: pageSize}
	b.empty()
	if b.put("late", o, false, "") {
		t.Error("stored in a bucket that is gone")
	}
	p.put(o) // as servePut does
	if len(p.free) != 4 {
		t.Errorf("%d of 4 pages are free", len(p.free))
	}
}

// A copy keeps what its original drops or replaces, and nothing once it is gone too.
func TestCopy(t *testing.T) {
	p, err := newPages(4 * pageSize)
	if err != nil {
		t.Fatal(err)
	}
	from, to := &bucket{pages: p, objects: make(map[string]*object)}, &bucket{pages: p, objects: make(map[string]*object)}
	put := func(b *bucket, name string) {
		b.put(name, &object{pages: [][]byte{p.get()}, size: pageSize}, false, "")
	}
	put(from, "a")
	put(from, "b")
	from.copyTo(to)
	put(from, "a")
	from.empty()
	if got := to.kept(); got != (Kept{2, 2 * pageSize}) || len(p.free) != 2 {
		t.Errorf("the copy has %+v, %d of 4 pages are free", got, len(p.free))
	}
	to.empty()
	if len(p.free) != 4 {
		t.Errorf("%d of 4 pages are free", len(p.free))
	}
}
