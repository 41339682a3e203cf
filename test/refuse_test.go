package test

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bs3/internal/bs3/key"
)

const (
	exitOther   = 1
	exitDamage  = 65
	exitRefused = 78
)

// A broken configuration is refused with everything that is wrong in it, and the
// daemon touches nothing.
func TestBrokenConfiguration(t *testing.T) {
	v := newVolume(t, onDir)
	v.with("size", 0).with("block_size", 1000).with("colour", "red").with("write.memory", 1).
		with("transport", "scsi").with("s3.uploaders", "many").with("nbd.listen", "nowhere")
	code, _, errs := run(t, v.command())
	if code != exitRefused {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"size = 0", "block_size = 1000", "colour", "write.memory = 1", `transport = "scsi"`, "s3.uploaders", `nbd.listen = "nowhere"`} {
		if !strings.Contains(errs, want) {
			t.Errorf("no complaint about %s:\n%s", want, errs)
		}
	}
	for _, name := range []string{"state", "store"} {
		if _, err := os.Stat(filepath.Join(v.dir, name)); err == nil {
			t.Errorf("the daemon made its %s", name)
		}
	}
}

// A volume that differs from its configuration is refused by the key's name, and
// stays as it is.
func TestOtherVolume(t *testing.T) {
	v := newVolume(t, onDir)
	d := v.start()
	c := dial(t, v.socket)
	data := randomBytes(mib)
	c.write(0, data)
	d.stop()
	before := v.info()
	for key, value := range map[string]any{"size": 2, "block_size": 512, "write.chunk_size": 2} {
		t.Run(key, func(t *testing.T) {
			usual, set := v.config[key]
			v.with(key, value)
			code, _, errs := run(t, v.command())
			if code != exitRefused || !strings.Contains(errs, "("+key+")") {
				t.Errorf("exit code %d, stderr %s", code, errs)
			}
			v.with(key, usual)
			if !set {
				delete(v.config, key)
			}
			if now := v.info(); now != before {
				t.Errorf("the volume was %+v, is %+v", before, now)
			}
		})
	}
	d = v.start()
	if !bytes.Equal(dial(t, v.socket).read(0, len(data)), data) {
		t.Error("other data than was written")
	}
	d.stop()
}

// The daemon names what is damaged in the store, leaves it alone, and does not
// serve.
func TestDamagedStore(t *testing.T) {
	for _, test := range []struct {
		name   string
		kill   bool   // so that there is no checkpoint and the log is read from its beginning
		object string // the prefix of the names of what is damaged
		says   string
	}{
		{"record", false, "vol/volume", "volume record"},
		{"log", true, "vol/" + key.Key(1).Name(), "object 1"},
		{"checkpoint", false, "vol/checkpoint/", "checkpoint"},
		{"map", false, "vol/map/", "map/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVolume(t, onVersitygw)
			d := v.start()
			c := dial(t, v.socket)
			c.write(0, randomBytes(mib))
			c.flush()
			if test.kill {
				d.kill()
				v.wipeState()
			} else {
				d.stop()
			}
			bucket := v.bucket()
			for damage, spoil := range map[string]func([]byte) []byte{
				"empty":   func([]byte) []byte { return nil },
				"cut":     func(p []byte) []byte { return p[:len(p)/2] },
				"garbage": func(p []byte) []byte { return bytes.Repeat([]byte{0xa5}, len(p)) },
				"one bit": func(p []byte) []byte {
					p = bytes.Clone(p)
					p[len(p)-20] ^= 1
					return p
				},
			} {
				t.Run(damage, func(t *testing.T) {
					whole, damaged := map[string][]byte{}, map[string][]byte{}
					for name := range bucket.objects(t) {
						if strings.HasPrefix(name, test.object) {
							whole[name] = bucket.get(t, name)
							damaged[name] = spoil(whole[name])
							bucket.put(t, name, damaged[name])
						}
					}
					if len(whole) == 0 {
						t.Fatal("no objects to damage")
					}
					before := bucket.objects(t)
					code, _, errs := run(t, v.command())
					if code != exitRefused || !strings.Contains(errs, test.says) {
						t.Errorf("exit code %d, stderr %s", code, errs)
					}
					if now := bucket.objects(t); !maps.Equal(now, before) {
						t.Errorf("a refused open has changed the store: %v, was %v", now, before)
					}
					for name, p := range damaged {
						if now := bucket.get(t, name); !bytes.Equal(now, p) {
							t.Errorf("%s was changed", name)
						}
						bucket.put(t, name, whole[name])
					}
				})
			}
			v.start().stop() // nothing else was harmed
		})
	}
}

// A block with one wrong bit in the store is neither served, nor overwritten in
// part, which would make its damage valid; what lies beside it is served.
func TestDamagedBlock(t *testing.T) {
	const eio, damaged = 5, 6 // of NBD; the block
	v := newVolume(t, onVersitygw).with("read.cache_size", 0)
	d := v.start()
	c := dial(t, v.socket)
	data := randomBytes(16 * 4096)
	c.write(0, data)
	c.flush()
	d.stop()
	bucket, name := v.bucket(), "vol/"+key.Key(1).Name()
	object := bucket.get(t, name)
	bad := bytes.Clone(object)
	bad[bytes.Index(bad, data[damaged*4096:][:100])+50] ^= 1
	bucket.put(t, name, bad)

	d = v.start()
	c = dial(t, v.socket)
	fails := func(what string, q *request) {
		t.Helper()
		if _, err := q.wait(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(eio)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	fails("read", c.send(nbdRead, damaged*4096, 4096, nil))
	fails("read of more", c.send(nbdRead, 0, len(data), nil))
	fails("write of one byte", c.send(nbdWrite, damaged*4096+9, 1, []byte{1}))
	c.flush()
	if !bytes.Equal(c.read(0, damaged*4096), data[:damaged*4096]) || !bytes.Equal(c.read((damaged+1)*4096, 4096), data[(damaged+1)*4096:][:4096]) {
		t.Error("other blocks of the object are not right")
	}
	line := d.expect("data is damaged")
	for _, want := range []string{"object 1 ", fmt.Sprintf("block %d of the volume", damaged), "bs3 fsck --data"} {
		if !strings.Contains(line, want) {
			t.Errorf("the log does not say %q: %s", want, line)
		}
	}
	if code, out, errs := run(t, v.command("fsck", "--data")); code != exitDamage || !strings.Contains(out+errs, fmt.Sprintf("block %d of the volume", damaged)) {
		t.Errorf("fsck: exit code %d\n%s%s", code, out, errs)
	}
	c.write(damaged*4096, data[:4096]) // all of it
	copy(data[damaged*4096:], data[:4096])
	c.flush()
	if !bytes.Equal(c.read(0, len(data)), data) {
		t.Error("a block that was written anew is not right")
	}
	d.stop()
}

// A daemon that waits for a store which it cannot reach names it, and can be
// stopped.
func TestUnreachableStore(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil { // now nobody listens there
		t.Fatal(err)
	}
	v := emptyVolume(t).with("store", "s3").with("s3.remote", "http://"+address).with("s3.access_key", "a").with("s3.secret_key", "b")
	d := v.launch()
	line := d.expect("trying again")
	if !strings.Contains(line, address) || !strings.Contains(line, "bucket bs3") {
		t.Errorf("the log does not name what the daemon cannot reach: %s", line)
	}
	d.stop()
}

// Two signals end a daemon that cannot stop cleanly; the next daemon has what it
// acknowledged.
func TestSecondSignal(t *testing.T) {
	v, p := newProxiedVolume(t)
	d := v.start()
	c := dial(t, v.socket)
	data := randomBytes(mib)
	p.spoil(always(answer(503, "SlowDown")))
	c.write(0, data)
	d.signal(syscall.SIGINT)
	d.expect("a second signal exits at once")
	d.expect("trying again")
	select {
	case <-d.ended:
		t.Fatal("the daemon stopped without its store")
	case <-time.After(time.Second):
	}
	d.signal(syscall.SIGINT)
	if code := d.wait(); code != exitOther {
		t.Errorf("exit code %d", code)
	}
	p.heal()
	d = v.start()
	if !bytes.Equal(dial(t, v.socket).read(0, len(data)), data) {
		t.Error("other data than was written")
	}
	d.stop()
}

// Nobody gets a volume, or a state directory, that a live daemon has.
func TestTwoDaemons(t *testing.T) {
	v := newVolume(t, onDir)
	d := v.start()
	c := dial(t, v.socket)
	data := randomBytes(mib)
	c.write(0, data)

	second := &volume{t: t, dir: t.TempDir(), config: map[string]any{}}
	try := func(what string, want int, says, state, store string) {
		t.Helper()
		for key, value := range v.config {
			second.config[key] = value
		}
		second.with("nbd.listen", "unix:"+filepath.Join(second.dir, "nbd.sock")).with("state.path", state).with("dir.path", store)
		code, _, errs := run(t, second.command())
		if code != want || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d, stderr %s", what, code, errs)
		}
	}
	state, store := v.config["state.path"].(string), v.config["dir.path"].(string)
	try("same state, same store", exitOther, "in use", state, store)
	try("same state, other store", exitOther, "in use", state, filepath.Join(second.dir, "store"))
	try("other state, same store", exitRefused, "was not released", filepath.Join(second.dir, "state"), store)

	c.flush()
	if got := c.read(0, len(data)); !bytes.Equal(got, data) {
		t.Error("the first daemon has other data than was written")
	}
	if epoch := v.info().Epoch; epoch != 1 {
		t.Errorf("the first daemon's epoch was 1, is %d", epoch)
	}
	d.stop()
}
