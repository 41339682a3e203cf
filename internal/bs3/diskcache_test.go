package bs3

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/objtest"
)

// withDisk is a change of options: a disk cache of so many sets on the host.
func (w *ruleWorld) withDisk(host string, sets int64) func(*Options) {
	head := layout.CacheHeader{BlockSize: simBlockSize}
	return func(o *Options) {
		o.CachePath, o.DiskCache = w.cache(host), layout.CacheHeaderSize+sets*head.SetSize()
	}
}

// gets counts the requests for data of objects from now on.
func (x *ruleWriter) gets() *atomic.Int64 {
	var n atomic.Int64
	after := x.way.After
	x.way.After = func(ctx context.Context, op objtest.Op, err error) error {
		if _, e := key.Parse(op.Name); e == nil && op.Kind == objtest.Get {
			n.Add(1)
		}
		return after(ctx, op, err)
	}
	return &n
}

// TestDiskCache: what was written, or read from the store, is read from the
// disk from then on, also by the next daemon.
func TestDiskCache(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(8) {
			a.write(1+i, i)
		}
		a.flush()
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
		look := func(want int64, what string) {
			t.Helper()
			a = w.open("a", w.withDisk("a", 4))
			n := a.gets()
			for range 2 {
				for i := range uint64(8) {
					a.holds(1+i, i)
					synctest.Wait() // it is written in the background, and a set that is being written is passed by
				}
			}
			if n.Load() != want {
				t.Errorf("%s: %d requests for data, not %d", what, n.Load(), want)
			}
			if s := a.e.Status().DiskCache; s.Failed != "" || s.Dropped != 0 || s.Hits+uint64(want) != 16 {
				t.Errorf("%s: %+v", what, s)
			}
		}
		look(8, "nothing cached")
		a.write(1, 0)
		a.flush()
		synctest.Wait()
		a.kill()
		look(0, "the next daemon")
		a.kill()

		// A disk that returns other blocks than were written.
		path := filepath.Join(w.cache("a"), diskCacheFile)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		head := layout.CacheHeader{BlockSize: simBlockSize}
		for set := layout.CacheHeaderSize; set < len(b); set += int(head.SetSize()) {
			for at := layout.CacheSetSize; at < int(head.SetSize()); at += simBlockSize {
				b[set+at+9] ^= 0x10
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		look(8, "damaged blocks")
		if n := a.e.Status().DiskCache.Damaged; n != 8 {
			t.Errorf("%d blocks were found damaged", n)
		}
		a.kill()

		// One that lost parts of it, or has another file there.
		for at := layout.CacheHeaderSize + 9; at < len(b); at += 300 {
			b[at] ^= 0x10
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		look(8, "damaged")
		a.kill()
		if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		look(8, "another file")
		a.kill()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		a = w.open("a", w.withDisk("a", 4))
		for i := range uint64(8) {
			a.holds(1+i, i)
		}
		if a.e.Status().DiskCache != nil {
			t.Error("there is a disk cache in a directory's place")
		}
	})
}

// TestDiskCacheReplaces: a cache much smaller than what is read never shows
// anything else.
func TestDiskCacheReplaces(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", w.withDisk("a", 1))
		for round := range uint64(3) {
			for i := range uint64(700) {
				a.write(1+i+1000*round, i)
			}
			a.flush()
			for i := range uint64(700) {
				a.holds(1+i+1000*round, i)
				if i%50 == 0 {
					synctest.Wait()
				}
			}
		}
	})
}

// TestRuleCACHED: a cache that outlives the daemon holds nothing of an object
// that the durable key did not cover, and knows an object by its epoch.
func TestRuleCACHED(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", w.withDisk("a", 4))
		first := a.hold(on(objtest.Put, key.Key(1).Name()))
		a.write(1, 0, 1) // object 1
		a.write(2, 2, 3) // object 2
		first.wait(t)
		synctest.Wait()
		if w.object(2) == nil {
			t.Fatal("object 2 is not stored")
		}
		a.kill()
		a = w.open("a", w.withDisk("a", 4)) // fence at 1; object 2 is what object 1 was
		synctest.Wait()
		for range 2 {
			a.holds(1, 0)
			a.holds(1, 1)
			a.holds(2, 2)
			a.holds(2, 3)
			synctest.Wait()
		}
		if o := w.object(2); o.Epoch != 2 {
			t.Fatalf("object 2 is of epoch %d", o.Epoch)
		}
	})
}
