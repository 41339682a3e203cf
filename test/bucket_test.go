package test

import (
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
)

// bucket accesses the store of a volume without the daemon.
type bucket struct{ store *s3.Store }

func (v *volume) bucket() bucket {
	v.t.Helper()
	store, err := s3.New(patience, s3.Options{
		Bucket: "bs3-e2e", Endpoint: v.config["s3.remote"].(string), Region: "us-east-1", Workers: 1,
		AccessKey: v.config["s3.access_key"].(string), SecretKey: v.config["s3.secret_key"].(string),
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return bucket{store}
}

// objects lists all objects.
func (b bucket) objects(t testing.TB) map[string]objproxy.Info {
	t.Helper()
	found := map[string]objproxy.Info{}
	for after := ""; ; {
		const most = 1000
		list, err := b.store.List(patience, "", after, most)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range list {
			info.Modified = time.Time{}
			found[info.Name] = info
			after = info.Name
		}
		if len(list) < most {
			break
		}
	}
	return found
}

func (b bucket) get(t testing.TB, name string) []byte {
	t.Helper()
	p := make([]byte, 4*mib) // more than any object in the tests has
	n, info, err := b.store.Get(patience, name, p, -1)
	if err != nil || info.Size != int64(n) {
		t.Fatalf("get %d bytes of %s: %v", n, name, err)
	}
	return p[:n]
}

func (b bucket) put(t testing.TB, name string, data []byte) {
	t.Helper()
	if _, err := b.store.Put(patience, name, objproxy.Body{Data: data}, objproxy.Condition{}); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}
