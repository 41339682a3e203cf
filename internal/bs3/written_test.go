package bs3_test

import (
	"bytes"
	"testing"
	"testing/synctest"

	"bs3/internal/bs3/objproxy/objtest"
)

// TestWrittenBlocksStayCached: small writes are in the read cache once they are
// in the store; large ones and zeros between them are not, and cost what lies
// beside them nothing.
func TestWrittenBlocksStayCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bs, large = 4096, 128 << 10
		o := options(t, objtest.NewMemory())
		o.Size, o.BlockSize, o.ChunkSize, o.Memory, o.ReadCache = 64<<20, bs, 1<<20, 8<<20, 16<<20
		o.StatePath = ""
		e := open(t, o)
		write := func(off int64, n int, with byte) {
			t.Helper()
			if err := e.WriteAt(t.Context(), bytes.Repeat([]byte{with}, n), off); err != nil {
				t.Fatal(err)
			}
		}
		hit := func(off int64, n int, with byte) bool {
			t.Helper()
			p := make([]byte, n)
			if !e.TryReadAt(p, off) {
				return false
			}
			if !bytes.Equal(p, bytes.Repeat([]byte{with}, n)) {
				t.Errorf("other bytes at %d", off)
			}
			return true
		}
		write(0, 3*bs, 1)
		write(8<<20, bs, 2)
		write(16<<20, large, 3)
		if err := e.Discard(t.Context(), 32<<20, 1<<20); err != nil {
			t.Fatal(err)
		}
		write(24<<20, 2*bs, 4)
		write(17<<20, large-bs, 5)
		if err := e.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the uploader has let go of the chunk
		if !hit(0, 3*bs, 1) || !hit(8<<20, bs, 2) || !hit(24<<20, 2*bs, 4) || !hit(17<<20, large-bs, 5) {
			t.Error("a small write is not in the cache")
		}
		if hit(16<<20, bs, 3) {
			t.Error("a large write is in the cache")
		}
		p := make([]byte, large)
		if err := e.ReadAt(t.Context(), p, 16<<20); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{3}, large)) {
			t.Errorf("the large write cannot be read: %v", err)
		}
		shut(t, e)
	})
}
