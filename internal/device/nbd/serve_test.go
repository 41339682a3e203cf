package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

func TestBadRequestsAreRefusedAndTheStreamGoesOn(t *testing.T) {
	const size = 80 << 20 // larger than the largest request
	vol := devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})
	ro := devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096, ReadOnly: true})
	for _, simple := range []bool{false, true} {
		rw := dial(t, startServer(t, vol, Options{}), clientOptions{simple: simple})
		readOnly := dial(t, startServer(t, ro, Options{}), clientOptions{simple: simple})
		if readOnly.flags&flagReadOnly == 0 || readOnly.flags&flagSendTrim != 0 {
			t.Errorf("flags of a read-only export: %#x", readOnly.flags)
		}
		for _, test := range []struct {
			name    string
			c       *client
			flags   uint16
			cmd     uint16
			off     uint64
			length  uint32
			payload int
			want    errno
		}{
			{"read beyond the end", rw, 0, cmdRead, size - 1, 2, 0, errnoINVAL},
			{"read far beyond the end", rw, 0, cmdRead, 1<<64 - 1, 2, 0, errnoINVAL},
			{"write beyond the end", rw, 0, cmdWrite, size - 1, 2, 2, errnoNOSPC},
			{"write where sums overflow", rw, 0, cmdWrite, 1<<64 - 1, 2, 2, errnoNOSPC},
			{"zero beyond the end", rw, 0, cmdWriteZeroes, size, 1, 0, errnoNOSPC},
			{"trim beyond the end", rw, 0, cmdTrim, size, 1, 0, errnoINVAL},
			{"large read", rw, 0, cmdRead, 0, maxRequest + 1, 0, errnoINVAL},
			{"large write", rw, 0, cmdWrite, 0, maxRequest + 1, maxRequest + 1, errnoINVAL},
			{"unknown command", rw, 0, 5, 0, 1, 0, errnoINVAL},
			{"unknown flag", rw, 1 << 9, cmdRead, 0, 1, 0, errnoINVAL},
			{"unknown flag on a write", rw, cmdFlagDF, cmdWrite, 0, 512, 512, errnoINVAL},
			{"no-hole on a trim", rw, cmdFlagNoHole, cmdTrim, 0, 512, 0, errnoINVAL},
			{"flush of a range", rw, 0, cmdFlush, 0, 512, 0, errnoINVAL},
			{"fast zero that is not fast", rw, cmdFlagFastZero, cmdWriteZeroes, 4095, 4096, 0, errnoNOTSUP},
			{"write of a read-only export", readOnly, 0, cmdWrite, 0, 4096, 4096, errnoPERM},
			{"trim of a read-only export", readOnly, 0, cmdTrim, 0, 4096, 0, errnoPERM},
			{"zero of a read-only export", readOnly, 0, cmdWriteZeroes, 0, 4096, 0, errnoPERM},
		} {
			t.Run(fmt.Sprintf("%s simple=%v", test.name, simple), func(t *testing.T) {
				a := test.c.do(test.flags, test.cmd, test.off, test.length, make([]byte, test.payload))
				if a.err != nil || a.e != test.want {
					t.Errorf("errno %d (%s), %v; want %d", a.e, a.message, a.err, test.want)
				}
				if !simple && a.message == "" {
					t.Error("no reason was given")
				}
				test.c.t = t
				test.c.mustRead(0, 1)
			})
		}
		if n := vol.Calls(devtest.Write); n != 0 {
			t.Errorf("%d of the refused writes reached the volume", n)
		}
	}
}

func TestGarbageEndsTheConnection(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{})
	for name, b := range map[string][]byte{
		"magic":      make([]byte, requestSize),
		"huge write": requestBytes(0, cmdWrite, 1, 0, maxDropped+1),
	} {
		c := dial(t, s, clientOptions{})
		if _, err := c.nc.Write(b); err != nil {
			t.Fatal(name, err)
		}
		c.awaitEnd()
	}
}

// A client that ends in the middle of something has not asked for it.
func TestTornRequests(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	s := startServer(t, vol, Options{})
	for name, b := range map[string][]byte{
		"header":          requestBytes(0, cmdWrite, 1, 0, 4096)[:20],
		"payload":         append(requestBytes(0, cmdWrite, 1, 0, 4096), block(1)[:4095]...),
		"large payload":   append(requestBytes(0, cmdWrite, 1, 0, peekMax+4096), block(1)...),
		"part of a block": append(requestBytes(0, cmdWrite, 1, 1, 100), block(1)[:99]...),
		"refused payload": append(requestBytes(0, cmdWrite, 1, 1<<40, 4096), block(1)[:4095]...),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s, clientOptions{})
			c.sendRaw(b)
			c.halfClose()
			c.awaitEnd()
			mustHold(t, vol, 0)
		})
	}
	raw := dialRaw(t, s)
	raw.hello(flagFixedNewstyle)
	raw.send(be64(magicOption), be32(optList), be32(100), make([]byte, 99))
	if err := raw.nc.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	raw.wantEnd()
}

func TestEmptyRequests(t *testing.T) {
	for _, simple := range []bool{false, true} {
		c := dial(t, startServer(t, devtest.NewMemory(testGeometry()), Options{}), clientOptions{simple: simple})
		for _, cmd := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes} {
			c.must(0, cmd, 4096, 0, nil)
		}
	}
}

func TestErrorsOfTheVolume(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	c := dial(t, startServer(t, vol, Options{}), clientOptions{})
	p := make([]byte, 8192)
	for _, test := range []struct {
		err  error
		want errno
	}{
		{errors.New("the disk is on fire"), errnoIO},
		{fmt.Errorf("fenced: %w", device.ErrStopped), errnoSHUTDOWN},
	} {
		vol.Fail(test.err, devtest.Read, devtest.Write, devtest.Flush, devtest.Discard, devtest.WriteZeroes)
		for name, a := range map[string]answer{
			"read":             c.do(0, cmdRead, 0, 4096, nil),
			"unaligned read":   c.do(0, cmdRead, 1, 1, nil),
			"write":            c.do(0, cmdWrite, 0, 4096, p[:4096]),
			"unaligned write":  c.do(0, cmdWrite, 4095, 2, p[:2]),
			"flush":            c.do(0, cmdFlush, 0, 0, nil),
			"trim":             c.do(0, cmdTrim, 0, 4096, nil),
			"zero":             c.do(0, cmdWriteZeroes, 0, 4096, nil),
			"unaligned zero":   c.do(0, cmdWriteZeroes, 1, 8192, nil),
			"zero in a block":  c.do(0, cmdWriteZeroes, 1, 1, nil),
			"zero to an edge":  c.do(0, cmdWriteZeroes, 0, 1, nil),
			"fua write":        c.do(cmdFlagFUA, cmdWrite, 0, 4096, p[:4096]),
			"unaligned at end": c.do(0, cmdWrite, 4096, 4097, p[:4097]),
		} {
			if a.err != nil || a.e != test.want || a.message != test.err.Error() {
				t.Errorf("%s: errno %d %q, %v; want %d %q", name, a.e, a.message, a.err, test.want, test.err)
			}
		}
		// A write that succeeds with a flush that fails is not acknowledged.
		vol.Fail(nil, devtest.Write, devtest.Discard)
		for _, cmd := range []uint16{cmdWrite, cmdTrim} {
			payload := p[:4096]
			if cmd == cmdTrim {
				payload = nil
			}
			if a := c.do(cmdFlagFUA, cmd, 0, 4096, payload); a.e != test.want {
				t.Errorf("command %d with FUA: errno %d, want %d", cmd, a.e, test.want)
			}
		}
	}
	vol.Fail(nil, devtest.Read, devtest.Flush, devtest.WriteZeroes)
	c.mustRead(0, 4096)
}

// Only the blocks at the edges are read, and only once; the tail's failure
// leaves nothing written.
func TestFailingTailOfAnUnalignedWrite(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	c := dial(t, startServer(t, vol, Options{}), clientOptions{})
	c.mustWrite(4096, bytes.Repeat([]byte{1}, 8193)) // head aligned, tail not
	if n := vol.Calls(devtest.Read); n != 1 {
		t.Errorf("%d blocks were read, want the last one only", n)
	}
	c.mustWrite(1, bytes.Repeat([]byte{1}, 4095)) // the other way round
	if n := vol.Calls(devtest.Read); n != 2 {
		t.Errorf("%d blocks were read, want one more", n)
	}
	c.mustWrite(5, []byte{2}) // inside one block
	if n := vol.Calls(devtest.Read); n != 3 {
		t.Errorf("%d blocks were read, want one more", n)
	}
}

func TestFUA(t *testing.T) {
	for name, hide := range map[string]bool{"fast": false, "slow": true} {
		m := devtest.NewMemory(testGeometry())
		var vol device.Volume = m
		if hide {
			vol = slow{m}
		}
		c := dial(t, startServer(t, vol, Options{}), clientOptions{})
		p := bytes.Repeat([]byte{3}, 4096)
		for i, do := range []func(flags uint16){
			func(f uint16) { c.must(f, cmdWrite, 0, 4096, p) },
			func(f uint16) { c.must(f, cmdWrite, 1, 4, p[:4]) },
			func(f uint16) { c.must(f, cmdTrim, 0, 8192, nil) },
			func(f uint16) { c.must(f, cmdWriteZeroes, 0, 8192, nil) },
			func(f uint16) { c.must(f, cmdWriteZeroes, 1, 5, nil) },
		} {
			before := m.Calls(devtest.Flush)
			do(0)
			if m.Calls(devtest.Flush) != before {
				t.Errorf("%s: request %d without FUA was flushed", name, i)
			}
			do(cmdFlagFUA)
			if m.Calls(devtest.Flush) != before+1 {
				t.Errorf("%s: request %d with FUA: %d flushes", name, i, m.Calls(devtest.Flush)-before)
			}
		}
		c.must(cmdFlagFUA, cmdRead, 0, 1, nil) // allowed everywhere, means nothing here
	}
}

func TestTrimShrinksToWholeBlocks(t *testing.T) {
	vol := devtest.NewMemory(testGeometry())
	c := dial(t, startServer(t, vol, Options{}), clientOptions{})
	ones := bytes.Repeat([]byte{1}, 5*4096)
	c.mustWrite(0, ones)
	c.must(0, cmdTrim, 4095, 2*4096, nil) // block 1 is the only whole one
	c.must(0, cmdTrim, 3*4096+1, 4095, nil)
	want := bytes.Clone(ones)
	clear(want[4096:8192])
	if got := c.mustRead(0, len(want)); !bytes.Equal(got, want) {
		t.Error("trim took more or less than the whole blocks inside it")
	}
	if n := vol.Calls(devtest.Discard); n != 1 {
		t.Errorf("%d discards, want 1", n)
	}
}

func TestNoHoleAndFastZero(t *testing.T) {
	c := dial(t, startServer(t, devtest.NewMemory(testGeometry()), Options{}), clientOptions{})
	if c.flags&flagSendFastZero == 0 {
		t.Error("fast zero is not advertised")
	}
	c.mustWrite(0, bytes.Repeat([]byte{1}, 4*4096))
	c.must(cmdFlagFastZero|cmdFlagNoHole, cmdWriteZeroes, 1, 2*4096, nil)
	want := bytes.Repeat([]byte{1}, 4*4096)
	clear(want[1 : 2*4096+1])
	if got := c.mustRead(0, len(want)); !bytes.Equal(got, want) {
		t.Error("zeroed more or less than was asked for")
	}
}

// A block status of a whole large volume in one request, finely cut.
func TestBlockStatusOfManyExtents(t *testing.T) {
	const blocks = 3 * maxStatus
	vol := devtest.NewMemory(device.Geometry{Size: blocks * 512, BlockSize: 512})
	for b := int64(0); b < blocks; b += 2 {
		vol.TryWriteAt(make([]byte, 512), b*512)
	}
	c := dial(t, startServer(t, vol, Options{}), clientOptions{})
	a := c.must(0, cmdBlockStatus, 100, blocks*512-200, nil)
	if len(a.extents)/2 != maxStatus {
		t.Errorf("%d extents, want as many as a reply may have, %d", len(a.extents)/2, maxStatus)
	}
	if a.extents[0] != 412 || a.extents[1] != 0 || a.extents[3] != stateHole|stateZero {
		t.Errorf("begins with %v", a.extents[:4])
	}
	a = c.must(0, cmdBlockStatus, (blocks-2)*512+1, 1022, nil)
	if fmt.Sprint(a.extents) != "[511 0 511 3]" {
		t.Errorf("the end says %v", a.extents)
	}
}

type silentAllocator struct{ *devtest.Memory }

func (silentAllocator) Allocation(_ context.Context, off, _ int64) ([]device.Extent, error) {
	if off > 0 {
		return nil, errors.New("no map")
	}
	return nil, nil
}

func TestBlockStatusFails(t *testing.T) {
	c := dial(t, startServer(t, silentAllocator{devtest.NewMemory(testGeometry())}, Options{}), clientOptions{})
	for _, off := range []uint64{0, 4096} {
		if a := c.do(0, cmdBlockStatus, off, 4096, nil); a.e != errnoIO {
			t.Errorf("block status at %d: errno %d, %v", off, a.e, a.err)
		}
	}
	if a := c.do(0, cmdBlockStatus, 0, 0, nil); a.e != errnoINVAL {
		t.Errorf("block status of nothing: errno %d", a.e)
	}
}

// Requests of every size and alignment, one at a time, beside a model.
func TestSizesAndAlignments(t *testing.T) {
	const size = 3 * maxRequest
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, simple := range []bool{false, true} {
		for _, hide := range []bool{false, true} {
			rnd := rand.New(rand.NewPCG(seed, 0))
			m := devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})
			var vol device.Volume = m
			opts := Options{}
			if hide {
				vol = slow{m}
				opts = scarce()
			}
			c := dial(t, startServer(t, vol, opts), clientOptions{simple: simple, parts: true})
			model := make([]byte, size)
			for _, n := range []int{
				1, 511, 512, 513, 4095, 4096, 4097, 8192, peekMax - 1, peekMax, peekMax + 1, peekMax + 4096,
				readerSize, batchSize - 4096, batchSize - 16, batchSize - 28, batchSize, batchSize + 1, 1 << 20, 3 << 20, maxRequest - 1, maxRequest,
			} {
				offsets := []int{0, 1, 4095, 4096, rnd.IntN(size - maxRequest), rnd.IntN(2*maxRequest/4096) * 4096}
				if n > 1<<20 {
					if n > 3<<20 && (simple || hide) {
						continue // they take the same ways in larger strides, and long under -race
					}
					offsets = offsets[1:4]
				}
				for _, off := range offsets {
					p := model[off : off+n]
					for i := 0; i < len(p); i += 1 + n/1000 {
						p[i] = byte(rnd.Uint32())
					}
					c.mustWrite(uint64(off), p)
					lo, hi := max(0, off-rnd.IntN(5000)), min(size, off+n+rnd.IntN(5000))
					hi = min(hi, lo+maxRequest)
					if got := c.mustRead(uint64(lo), hi-lo); !bytes.Equal(got, model[lo:hi]) {
						t.Fatalf("%d bytes at %d read back differently", n, off)
					}
				}
			}
		}
	}
}
