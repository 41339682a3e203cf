package bs3

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
	r.extend(first, 8<<20, piece, size)
	read()
	read()
	if next := due(); next != first {
		t.Fatalf("stream %d goes on, not %d", next, first)
	}
	if off, n := r.extend(first, 8<<20, piece, size); off < at-request || n <= 0 {
		t.Fatalf("the next window is %d bytes at %d, but %d are read already", n, off, at)
	}
	if len(r.due) > 0 {
		t.Fatal("another stream was made of it")
	}
}
