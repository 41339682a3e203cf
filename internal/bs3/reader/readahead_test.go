package reader

import (
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

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

// A read at random within the windows of a stream is none of the stream, and does not
// move it.
func TestRandomReadsInAWindow(t *testing.T) {
	const request, reach, piece, size = 128 << 10, 512 << 20, 1 << 20, 1 << 40
	r := newReadahead(0)
	r.missed(0, request)
	r.missed(request, request)
	for range 4 {
		r.extend(<-r.due, 8<<20, reach, piece, size)
		r.observe(0, true)
		r.tell(0)
	}
	s := &r.mu.streams[0]
	if s.ahead-s.start < 256<<20 {
		t.Fatalf("the last window has %d bytes", s.ahead-s.start)
	}
	at := s.start
	for i := range int64(100) {
		if !r.missed(at, request) {
			t.Fatalf("a read of the stream at %d is none", at)
		}
		at += request
		if r.missed(s.start+100<<20+i*(1<<20), 4096) {
			t.Fatalf("a read at random is one of the stream")
		}
	}
	if !r.missed(at-2*request, request) {
		t.Error("a read of the stream that comes late is none")
	}
}

// Two small reads that happen to follow each other are no stream, three are; and so are
// two large ones.
func TestWhatBeginsAStream(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		reads int
	}{{4 << 10, 3}, {16 << 10, 3}, {32 << 10, 2}, {1 << 20, 2}} {
		r := newReadahead(0)
		for i := range c.reads {
			r.missed(1<<30, c.bytes) // another one
			if is := r.missed(int64(i)*c.bytes, c.bytes); is != (i == c.reads-1) {
				t.Errorf("%d reads of %d bytes: %v", i+1, c.bytes, is)
			}
		}
	}
}

// Reads that are under way side by side, and come out of turn just behind what was read
// ahead, are of that stream, and begin none of their own.
func TestReadsBehindAWindow(t *testing.T) {
	const read = 128 << 10
	r := newReadahead(0)
	r.missed(0, read)
	r.missed(read, read)
	off, n := r.extend(0, 8<<20, 0, 1<<20, 1<<30)
	for i := range int64(4) {
		if at := off + n + (4-i)*read; !r.missed(at, read) {
			t.Errorf("a read at %d is of no stream", at)
		}
	}
	if r.missed(off+n+1<<26, read) || r.mu.streams[1].window > 0 {
		t.Error("there is another stream")
	}
}

// Whether a stream is over scattered blocks does not depend on how large its window is.
func TestScattered(t *testing.T) {
	const piece = 1024
	r := New(Config{BlockSize: 4096})
	// volume returns the misses of a window of so many pieces, each of so many objects
	// whose blocks take turns.
	volume := func(pieces, objects int) (misses []miss) {
		for b := range uint64(pieces * piece) {
			wide := b / (4 * piece) * 100 // each object goes on for four pieces
			k := key.Key(wide + b%uint64(objects))
			misses = append(misses, miss{block: b, loc: layout.Loc(k, uint32(b%(4*piece))/uint32(objects)), n: 1})
		}
		return misses
	}
	for _, c := range []struct {
		objects int
		want    bool
	}{{1, false}, {2, false}, {4, false}, {5, true}, {8, true}} {
		for _, pieces := range []int{1, 8, 32} {
			if got := r.scattered(volume(pieces, c.objects), piece); got != c.want {
				t.Errorf("%d pieces of %d objects: %v", pieces, c.objects, got)
			}
		}
	}
	if r.scattered(nil, piece) {
		t.Error("nothing is scattered")
	}
}

// A large window is worth while only over a volume of which it is a good part.
func TestReach(t *testing.T) {
	const blockSize, cache, chunk = 4096, 256 << 20, 1024
	maps := mapproxy.New(1 << 24)
	r := New(Config{Map: maps.View(), BlockSize: blockSize, CacheSize: cache, ChunkSize: chunk * blockSize})
	for k := range uint64(1 << 24 / chunk) {
		if k == 256 && r.reach() != cache/2 {
			t.Errorf("with 1 GiB mapped the window is %d bytes at most, not half of the cache", r.reach())
		}
		maps.AddObject(layout.ObjectInfo{Key: key.Key(k + 1), Epoch: 1})
		maps.Write(k*chunk, chunk, layout.Loc(key.Key(k+1), 0))
	}
	if got := r.reach(); got != 0 {
		t.Errorf("with 64 GiB mapped the window is %d bytes at most", got)
	}
}
