package s3_test

import (
	"testing"

	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/objproxy/s3"
)

// BenchmarkVersitygw measures client and server together.
func BenchmarkVersitygw(b *testing.B) {
	endpoint, access, secret := objtest.StartVersitygw(b)
	objtest.Benchmark(b, open(b, s3.Options{Endpoint: endpoint, AccessKey: access, SecretKey: secret, Bucket: "bucket"}))
}
