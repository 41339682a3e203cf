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
