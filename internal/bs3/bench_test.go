package bs3_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// sink is a store that drops the objects of the log, so that a benchmark of
// writes is one of the engine.
type sink struct{ *objtest.Memory }

func (s sink) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if isObject(objtest.Op{Name: name}) {
		return "v", nil
	}
	return s.Memory.Put(ctx, name, body, cond)
}

func benchEngine(b *testing.B, store objproxy.Store) *bs3.Engine {
	const size = 4 << 30
	o := bigOptions(b, store, size)
	o.Memory, o.Log = 64<<20, zerolog.Nop()
	e, err := bs3.Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return e
}

func BenchmarkWrite4K(b *testing.B) {
	e := benchEngine(b, sink{objtest.NewMemory()})
	p := make([]byte, 4096)
	rnd := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(4096)
	b.ReportAllocs()
	waits := 0
	for b.Loop() {
		off := int64(rnd.Uint64N(1<<20)) * 4096
		if !e.TryWriteAt(p, off) {
			waits++
			if err := e.WriteAt(b.Context(), p, off); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(waits)/float64(b.N), "waits/op")
}

func BenchmarkReadHit4K(b *testing.B) {
	e := benchEngine(b, objtest.NewMemory())
	p := make([]byte, 4096)
	if !e.TryWriteAt(p, 0) {
		b.Fatal("no room")
	}
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if !e.TryReadAt(p, 0) {
			b.Fatal("a miss")
		}
	}
}
