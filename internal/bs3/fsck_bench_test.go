package bs3_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/objproxy/objtest"
)

// BenchmarkFsck checks a volume with 10,000 objects, of which half are above
// its only checkpoint, at 15 ms an answer.
func BenchmarkFsck(b *testing.B) {
	const bs, perObject, objects = 4096, 16, 10_000
	memory := objtest.NewMemory()
	e, err := bs3.Open(b.Context(), bs3.Options{
		Store: memory, Log: zerolog.Nop(), Host: bs3.Host{ID: "bench"},
		Size: 64 << 30, BlockSize: bs, ChunkSize: perObject * bs, Memory: 16 << 20, Uploaders: 4,
	})
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, bs)
	for i := range objects * perObject {
		if i == objects*perObject/2 {
			if err := e.Checkpoint(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		if err := e.WriteAt(b.Context(), p, rnd.Int64N(64<<30/bs)*bs); err != nil {
			b.Fatal(err)
		}
	}
	store := delayed(memory.Clone(), 15*time.Millisecond) // the writer does not close it
	kill(b, e)
	for name, data := range map[string]bool{"all but data": false, "data": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r, err := fsck.Check(b.Context(), store, fsck.Options{Data: data})
				if err != nil || r.Err() != nil || r.Objects < objects-100 {
					b.Fatalf("%v, %+v", err, r)
				}
			}
		})
	}
}
