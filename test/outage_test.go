package test

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A store that fails while the volume is opened makes the daemon wait. Nothing
// of the volume is deleted or replaced, and all of it is there afterwards. (The
// original bs3 took any failing answer for the end of the log, and then deleted
// the rest.)
func TestFailingStoreAtOpen(t *testing.T) {
	onLog := func(f fault) rule { return where(f, func(r *http.Request) bool { return isRead(r) && isLogObject(r) }) }
	onReads := func(f fault) rule { return where(f, isRead) }
	for _, test := range []struct {
		name string
		rule rule
	}{
		{"log/503 SlowDown", onLog(answer(503, "SlowDown"))},
		{"log/500 without a body", onLog(answer(500, ""))},
		{"log/403 AccessDenied", onLog(answer(403, "AccessDenied"))},
		{"log/403 without a body", onLog(answer(403, ""))},
		{"log/404 without a body", onLog(answer(404, ""))},
		{"log/404 NoSuchBucket", onLog(answer(404, "NoSuchBucket"))},
		{"log/400 ExpiredToken", onLog(answer(400, "ExpiredToken"))},
		{"log/reset", onLog(reset)},
		{"log/cut off", onLog(cutOff)},
		{"reads/404 without a body", onReads(answer(404, ""))},
		{"reads/404 NoSuchBucket", onReads(answer(404, "NoSuchBucket"))},
		{"all/503 SlowDown", always(answer(503, "SlowDown"))},
		{"all/403 AccessDenied", always(answer(403, "AccessDenied"))},
		{"all/404 NoSuchBucket", always(answer(404, "NoSuchBucket"))},
		{"all/reset", always(reset)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			v, p := newProxiedVolume(t)
			v.with("write.chunk_size", 1)
			d := v.start()
			want := randomBytes(4 * mib)
			c := dial(t, v.socket)
			c.write(0, want)
			c.flush()
			d.kill() // so that there is no checkpoint and all of the log has to be read
			v.wipeState()

			bucket := v.bucket()
			before := bucket.objects(t)
			if len(before) < 5 {
				t.Fatalf("too short a log to lose anything of: %v", before)
			}
			p.spoil(test.rule)
			d = v.launch()
			d.waitFor("requests to fail", func() bool { return p.spoilt() >= 3 })
			prolongOutage(d)
			d.expect("trying again")
			if found := d.logged(`"serving"`); len(found) > 0 {
				t.Errorf("the daemon serves without its store: %s", found[0])
			}
			p.heal()
			d.expect(`"serving"`)
			if !bytes.Equal(dial(t, v.socket).read(0, len(want)), want) {
				t.Error("the volume has other data than before")
			}
			if deletes := p.requests(http.MethodDelete, http.MethodPost); len(deletes) > 0 {
				t.Errorf("it sent %v", deletes)
			}
			after := bucket.objects(t)
			for name, info := range before {
				if now, ok := after[name]; !ok || now != info && !strings.HasSuffix(name, "volume") {
					t.Errorf("%s was %v, is %v", name, info, now)
				}
			}
			d.stop()
		})
	}
}

// prolongOutage lets an outage that has begun last for a minute if tests may
// take long.
func prolongOutage(d *daemon) {
	d.t.Helper()
	if !*long {
		return
	}
	select {
	case <-d.ended:
		d.t.Fatal("the daemon ended while the store did not answer")
	case <-time.After(time.Minute):
	}
}

func randomBytes(n int64) []byte {
	p := make([]byte, n)
	seed := [32]byte{byte(rand.Uint32()), byte(rand.Uint32())}
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
	return p
}

// An upload that fails half-way is sent again from its beginning, and one whose
// answer was lost is recognised.
func TestBrokenUploads(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault fault
	}{
		{"reset half-way", afterHalf(reset)},
		{"503 half-way", afterHalf(answer(503, "SlowDown"))},
		{"500 at the end", afterAll(answer(500, "InternalError"))},
		{"400 IncompleteBody", afterAll(answer(400, "IncompleteBody"))},
		{"stored and the answer lost", lost},
		{"stored and answered 500", func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
			forward.ServeHTTP(httptest.NewRecorder(), r)
			answer(500, "InternalError")(w, r, forward)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, p := newProxiedVolume(t)
			v.with("write.chunk_size", 1)
			d := v.start()
			var mu sync.Mutex
			tried := map[string]bool{}
			p.spoil(func(r *http.Request) fault {
				mu.Lock()
				defer mu.Unlock()
				if r.Method != http.MethodPut || tried[r.URL.Path] {
					return nil
				}
				tried[r.URL.Path] = true
				return test.fault
			})
			want := randomBytes(16 * mib)
			c := dial(t, v.socket)
			for off := int64(0); off < int64(len(want)); off += mib / 4 {
				c.write(off, want[off:off+mib/4])
			}
			c.flush()
			if n := p.spoilt(); n < 16 {
				t.Errorf("only %d uploads were spoiled", n)
			}
			p.heal()
			d.kill()
			v.wipeState()
			d = v.start()
			if !bytes.Equal(dial(t, v.socket).read(0, len(want)), want) {
				t.Error("the store has other data than was written")
			}
			d.stop()
		})
	}
}

// Reads that wait for the store, and writes that wait for memory, do not hold
// up memory hits behind them on the same connection.
func TestWaitingStallsNothing(t *testing.T) {
	// The proxy holds what it holds until release: that other requests are
	// answered before, however late, shows that they do not wait for these.
	v, p := newProxiedVolume(t)
	v.with("write.chunk_size", 1).with("write.memory", 8)
	d := v.start()
	c := dial(t, v.socket)
	old := randomBytes(mib)
	c.write(0, old)
	c.flush()
	d.stop()
	d = v.start() // now the data is only in the store
	c = dial(t, v.socket)

	rule, release := p.hold(func(r *http.Request) bool { return isRead(r) && isLogObject(r) })
	p.spoil(rule)
	var misses []*request
	for off := int64(0); off < mib; off += mib / 8 {
		misses = append(misses, c.send(nbdRead, off, int(mib/8), nil))
	}
	d.waitFor("the reads to reach the store", func() bool { return p.spoilt() > 0 })
	fresh := randomBytes(64 << 10)
	if _, err := c.send(nbdWrite, mib, len(fresh), fresh).wait(); err != nil {
		t.Errorf("a write behind a miss: %v", err)
	}
	if got, err := c.send(nbdRead, mib, len(fresh), nil).wait(); err != nil || !bytes.Equal(got, fresh) {
		t.Errorf("a memory hit behind a miss: %v", err)
	}
	if _, err := c.send(nbdRead, 512*mib, 4096, nil).wait(); err != nil {
		t.Errorf("a read of a hole behind a miss: %v", err)
	}
	if slices.ContainsFunc(misses, (*request).answered) {
		t.Error("a miss was answered without the store")
	}
	release()
	for i, q := range misses {
		part := old[int64(i)*mib/8:][:mib/8]
		if got := c.must("a miss", q); !bytes.Equal(got, part) {
			t.Errorf("miss %d returned wrong data", i)
		}
	}

	rule, release = p.hold(func(r *http.Request) bool { return r.Method == http.MethodPut })
	p.spoil(rule)
	var writes []*request
	for i := range int64(16) { // twice what memory holds
		writes = append(writes, c.send(nbdWrite, (2+i)*mib, int(mib), randomBytes(mib)))
	}
	waiting := writes[len(writes)-1]
	if _, err := writes[0].wait(); err != nil {
		t.Errorf("a write while memory has room: %v", err)
	}
	if got, err := c.send(nbdRead, mib, len(fresh), nil).wait(); err != nil || !bytes.Equal(got, fresh) {
		t.Errorf("a read behind a full chunk pool: %v", err)
	}
	if waiting.answered() {
		t.Error("a memory of 8 MB took 16 MB")
	}
	release()
	for _, q := range writes {
		c.must("a write", q)
	}
	d.stop()
}

// While the store fails, a running volume waits, says so, stays within its
// memory, and resumes by itself when the store does.
func TestOutage(t *testing.T) {
	const (
		count   = 512 // writes of 1 MB
		memory  = 16  // MB for chunks
		clients = 128 // MB for all NBD clients
	)
	for name, fault := range map[string]fault{"503": answer(503, "ServiceUnavailable"), "403": answer(403, "AccessDenied"), "reset": reset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			v, p := newProxiedVolume(t)
			v.with("write.chunk_size", 1).with("write.memory", memory).with("read.cache_size", 0).with("nbd.memory", clients)
			d := v.start()
			c, flood := dial(t, v.socket), dial(t, v.socket)
			stored, fresh := randomBytes(mib), randomBytes(mib)
			c.write(0, stored)
			c.flush()
			before := d.resident().other

			began := time.Now()
			p.spoil(always(fault))
			c.write(mib, fresh)
			flush := c.send(nbdFlush, 0, 0, nil)
			miss := c.send(nbdRead, 0, int(mib), nil)
			block := randomBytes(mib)
			writes := make(chan *request, count)
			go func() {
				defer close(writes)
				for i := range int64(count) {
					writes <- flood.send(nbdWrite, (2+i)*mib, int(mib), block)
				}
			}()
			taken, since := 0, time.Now()
			d.waitFor("the daemon to take all that it can", func() bool {
				if n := len(writes); n > taken {
					taken, since = n, time.Now()
				}
				return taken > memory+clients/8 && p.spoilt() >= 20 && time.Since(since) > time.Second
			})
			if taken > memory+clients {
				t.Errorf("the daemon took %d MB", taken)
			}
			prolongOutage(d)
			if !bytes.Equal(c.read(mib, int(mib)), fresh) {
				t.Error("what is in memory was read wrongly")
			}
			now := d.resident().other
			t.Logf("resident beyond chunk memory: %d MB, %d MB before the outage", now/mib, before/mib)
			if now > before+(clients+16)*mib {
				t.Error("that is too much")
			}
			if flush.answered() || miss.answered() {
				t.Errorf("answered without the store: flush %v, miss %v", flush.answered(), miss.answered())
			}
			// Once a minute for puts and for gets.
			most := max(4, 2*(1+int(time.Since(began)/time.Minute)))
			if said := d.logged("the store does not answer as it should"); len(said) == 0 || len(said) > most {
				t.Errorf("the log says %d times that the store does not answer, want 1 to %d: %v", len(said), most, said)
			}
			p.heal()
			c.must("flush", flush)
			if !bytes.Equal(c.must("miss", miss), stored) {
				t.Error("the miss returned wrong data")
			}
			for q := range writes {
				c.must("a queued write", q)
			}
			d.expect("the store answers again")
			c.flush()
			d.kill()
			v.wipeState()
			d = v.start()
			c = dial(t, v.socket)
			for off, want := range map[int64][]byte{0: stored, mib: fresh, (2 + count - 1) * mib: block} {
				if !bytes.Equal(c.read(off, int(mib)), want) {
					t.Errorf("at %d the store has other data than was written", off)
				}
			}
			d.stop()
		})
	}
}
