package test

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// A snapshot that the daemon has made, and one that was made beside it from the store
// alone, read as the volume did then, while the volume was written again, collected
// and taken up by another daemon; and their space comes back.
func TestSnapshots(t *testing.T) {
	for _, store := range []string{onDir, onVersitygw} {
		t.Run(store, func(t *testing.T) {
			const size = 16 << 20
			v := newVolume(t, store).with("write.chunk_size", 1)
			d := v.start()
			states := make(map[string][]byte)
			c := dial(t, v.socket)
			rng := rand.New(rand.NewPCG(1, 2))
			write := func() []byte {
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				for off := 0; off < size; off += 1 << 20 {
					c.write(int64(off), data[off:][:1<<20])
				}
				return data
			}
			states["daemon"] = write()
			v.call(nil, "snapshot", "create", "daemon") // which flushes
			states["outside"] = write()
			c.flush()
			v.call(nil, "snapshot", "create", "outside", "--offline")
			last := write()
			c.flush()
			v.call(nil, "gc", "--json")
			held := v.status().StoredBytes

			check := func() {
				for name, want := range states {
					reader := start(t, "bs3 run --snapshot "+name, v.command("run", "--snapshot", name))
					reader.expect(`"serving"`)
					s := dial(t, v.socket+"."+name)
					for off := 0; off < size; off += 1 << 20 {
						if got := s.read(int64(off), 1<<20); !bytes.Equal(got, want[off:][:1<<20]) {
							t.Errorf("snapshot %s reads other bytes at %d", name, off)
						}
					}
					s.close()
					reader.kill()
				}
				if got := c.read(0, 1<<20); !bytes.Equal(got, last[:1<<20]) {
					t.Error("the volume reads other bytes")
				}
			}
			check()
			c.close()
			d.stop()
			v.wipeState()
			d = v.start()
			c = dial(t, v.socket)
			v.call(nil, "gc", "--json")
			check()
			v.call(nil, "fsck", "--data")

			for name := range states {
				v.call(nil, "snapshot", "delete", name)
			}
			v.call(nil, "gc", "--json")
			if one := v.status().StoredBytes; held < 3*size || one > 2*size {
				t.Errorf("three states of %d bytes take %d bytes, one takes %d", size, held, one)
			}
			c.close()
			d.stop()
		})
	}
}
