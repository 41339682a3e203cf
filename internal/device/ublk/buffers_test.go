package ublk

import (
	"sync"
	"testing"
)

func TestBuffers(t *testing.T) {
	var b buffers
	defer b.release()
	for _, c := range []struct{ n, mem int }{
		{1, 4096}, {512, 4096}, {4096, 4096}, {4097, 8192}, {1 << 20, 1 << 20}, {1<<20 + 512, 2 << 20}, {32 << 20, 32 << 20},
	} {
		buf, err := b.get(c.n)
		if err != nil {
			t.Fatal(err)
		}
		if len(buf.p) != c.n || len(buf.mem) != c.mem || buf.address()%4096 != 0 {
			t.Errorf("%d bytes: got %d of %d at %#x", c.n, len(buf.p), len(buf.mem), buf.address())
		}
		buf.p[c.n-1] = 1
		b.put(buf)
		if again, err := b.get(c.mem); err != nil || again != buf || len(again.p) != c.mem {
			t.Errorf("%d bytes: the buffer is not used again (%v)", c.n, err)
		}
		b.put(buf)
	}
	b.put(nil)
}

// What is kept is bounded.
func TestBuffersAreGivenBack(t *testing.T) {
	var b buffers
	defer b.release()
	var list []*buffer
	for range 2*keepBytes>>20 + 1 {
		buf, err := b.get(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, buf)
	}
	for _, buf := range list {
		b.put(buf)
	}
	if b.kept != keepBytes {
		t.Errorf("%d bytes are kept, want %d", b.kept, keepBytes)
	}
	b.release()
	if b.kept != 0 {
		t.Errorf("%d bytes are kept after a release", b.kept)
	}
}

// No buffer has two owners.
func TestBuffersConcurrently(t *testing.T) {
	var b buffers
	defer b.release()
	var wg sync.WaitGroup
	for id := range byte(8) {
		wg.Go(func() {
			for i := range 500 {
				n := 1 + (i*7919+int(id)*104729)%20000
				buf, err := b.get(n)
				if err != nil {
					t.Error(err)
					return
				}
				for at := range buf.p {
					buf.p[at] = id
				}
				for at, got := range buf.p {
					if got != id {
						t.Errorf("byte %d of a buffer of %d is also %d's", at, id, got)
						return
					}
				}
				b.put(buf)
			}
		})
	}
	wg.Wait()
}
