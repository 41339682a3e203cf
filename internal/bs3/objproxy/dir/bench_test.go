package dir_test

import (
	"testing"

	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/objtest"
)

func BenchmarkDir(b *testing.B) {
	s, err := dir.Open(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	objtest.Benchmark(b, s)
	if err := s.Close(); err != nil {
		b.Error(err)
	}
}
