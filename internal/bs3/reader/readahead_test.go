package reader

import "testing"

// A stream that has passed its mark before that was there goes on with its next
// window, and is not taken for another one.
func TestReaderBeforeItsMark(t *testing.T) {
	const request, piece, size = 128 << 10, 1 << 20, 1 << 30
	r := newReadahead(0)
	at := int64(0)
	read := func() {
		r.passed(at, request)
		r.missed(at, request)
		at += request
	}
	due := func() int {
		select {
		case i := <-r.due:
			return i
		default:
			t.Fatal("no window is due")
			return 0
		}
	}
	read()
	read()
	first := due()
	for range 3 { // before the window is there
		read()
	}
	r.extend(first, 8<<20, 0, piece, size)
	read()
	read()
	if next := due(); next != first {
		t.Fatalf("stream %d goes on, not %d", next, first)
	}
	if off, n := r.extend(first, 8<<20, 0, piece, size); off < at-request || n <= 0 {
		t.Fatalf("the next window is %d bytes at %d, but %d are read already", n, off, at)
	}
	if len(r.due) > 0 {
		t.Fatal("another stream was made of it")
	}
}

// Reads at random beside a stream do not make it forgotten, nor keep it from
// being recognised.
func TestStreamAmongRandomReads(t *testing.T) {
	const request, most, piece, size = 128 << 10, 8 << 20, 1 << 20, 1 << 40
	r := newReadahead(0)
	fetched := make(map[int64]bool) // pieces
	misses := 0
	random := int64(size / 2)
	for at := int64(0); at < 64<<20; at += request {
		r.passed(at, request)
		if !fetched[at/piece] {
			misses++
			r.missed(at, request)
		}
		for range streams + 4 {
			random += 10 << 20
			r.missed(random, 4096)
		}
		for len(r.due) > 0 {
			for off, n := r.extend(<-r.due, most, 0, piece, size); n > 0; off, n = off+piece, n-piece {
				fetched[(off+piece-1)/piece] = true // what was read of its first piece is there already
				fetched[off/piece] = true
			}
		}
	}
	if misses > 10 {
		t.Fatalf("of %d reads in a stream %d were misses", 64<<20/request, misses)
	}
}
