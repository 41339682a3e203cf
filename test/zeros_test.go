package test

import (
	"bytes"
	"testing"
)

// What was never written, or was discarded, reads as zeros, whatever buffers held
// before. (The original bs3 answered with what its buffer held.)
func TestNeverWrittenReadsZeros(t *testing.T) {
	const (
		stride = 256 << 10 // the first half of each is written
		count  = 128
	)
	for _, store := range []string{onDir, onVersitygw} {
		t.Run(store, func(t *testing.T) {
			v := newVolume(t, store)
			d := v.start()
			data := randomBytes(stride / 2)
			look := func(when string) {
				t.Helper()
				c := dial(t, v.socket)
				for i := range int64(count) {
					// Data first, so that all buffers have held some; then beside it and
					// across both edges, aligned to blocks or not.
					if got := c.read(i*stride, stride/2); !bytes.Equal(got, data) {
						t.Fatalf("%s: other data than was written", when)
					}
					for _, n := range []int64{1, 512, 4096, 5000, 65536, stride / 2} {
						off := i*stride + stride/2
						allZero(t, c.read(off, int(n)), off)
						off = (i+1)*stride - n
						allZero(t, c.read(off, int(n)), off)
					}
					got := c.read(i*stride+stride/2-3000, 6000)
					if !bytes.Equal(got[:3000], data[len(data)-3000:]) {
						t.Fatalf("%s: other data than was written at its end", when)
					}
					allZero(t, got[3000:], i*stride+stride/2)
				}
			}
			c := dial(t, v.socket)
			for i := range int64(count) {
				c.write(i*stride, data)
			}
			look("from memory")
			c.flush()
			look("when stored")
			d.stop()
			v.wipeState()
			d = v.start()
			look("after a restart")
			c = dial(t, v.socket)
			c.trim(0, count/2*stride)
			for i := range int64(count / 2) {
				allZero(t, c.read(i*stride, stride), i*stride)
				if got := c.read((count/2+i)*stride, stride/2); !bytes.Equal(got, data) {
					t.Fatal("other data than was written beside what was discarded")
				}
			}
			d.stop()
		})
	}
}
