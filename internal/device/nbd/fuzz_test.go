package nbd

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// FuzzConnection lets anything be sent to a server, as a handshake or as what
// follows one. It must not panic, must end when the client does, and must not
// let the volume see a request outside its contract (Memory reports those as
// errors, which would be answered with EIO).
func FuzzConnection(f *testing.F) {
	hello := be32(flagFixedNewstyle | flagNoZeroes)
	opt := func(option uint32, data []byte) []byte {
		return cat(be64(magicOption), be32(option), be32(uint32(len(data))), data)
	}
	f.Add(false, cat(hello, opt(optList, nil), opt(optAbort, nil)))
	f.Add(false, cat(hello, opt(optStructuredReply, nil), opt(optSetMetaContext, cat(str(""), be32(1), str(contextName))),
		opt(optInfo, cat(str(""), be16(2), be16(infoName), be16(infoBlockSize))), opt(optGo, cat(str(""), be16(0)))))
	f.Add(false, cat(be32(0), opt(optExportName, nil)))
	f.Add(false, cat(hello, be64(magicOption), be32(optList), be32(1<<31)))
	f.Add(true, cat(requestBytes(0, cmdRead, 1, 4095, 2), requestBytes(cmdFlagFUA, cmdWrite, 2, 1, 3), []byte("abc"),
		requestBytes(cmdFlagReqOne, cmdBlockStatus, 3, 100, 5000), requestBytes(0, cmdFlush, 4, 0, 0)))
	f.Add(true, cat(requestBytes(0, cmdTrim, 1, 1, 9000), requestBytes(cmdFlagNoHole|cmdFlagFastZero, cmdWriteZeroes, 2, 1, 9000),
		requestBytes(0, cmdDisc, 3, 0, 0)))
	f.Add(true, requestBytes(0, cmdRead, 1, 1<<64-1, 1<<32-1))
	f.Fuzz(func(t *testing.T, transmission bool, b []byte) {
		vol := devtest.NewMemory(device.Geometry{Size: 64 << 10, BlockSize: 4096, MaxDiscard: 8192})
		var failed bytes.Buffer
		s := New(vol, Options{Log: zerolog.New(&failed).Level(zerolog.ErrorLevel), HandshakeTimeout: time.Hour})
		c, _, client := pipelined(t, s)
		s.conns[c] = struct{}{}
		s.unsure = append(s.unsure, c)
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer c.cut()
			if transmission {
				c.status = true
				_ = c.transmit() // how it ends is the client's business
				c.tasks.Wait()
			} else {
				c.serving.Store(false)
				c.serve()
			}
		}()
		// The server may end the connection at any time: errors mean nothing here.
		go func() { _, _ = io.Copy(io.Discard, client) }()
		_, _ = client.Write(b)
		_ = client.(*net.UnixConn).CloseWrite()
		<-done
		if failed.Len() > 0 {
			t.Errorf("the volume saw a bad request: %s", failed.String())
		}
		if n := s.overlaps.announced.Load(); n != 0 || len(s.overlaps.spans) != 0 {
			t.Errorf("%d read-modify-writes and %d spans are left over", n, len(s.overlaps.spans))
		}
	})
}

// FuzzOptionData feeds the parsers of options, and encodes again what they took.
func FuzzOptionData(f *testing.F) {
	f.Add(cat(str("disk"), be16(2), be16(0), be16(3)))
	f.Add(cat(str("disk"), be32(2), str("base:"), str("x:y")))
	f.Add(cat(be32(1<<32-1), be32(1<<32-1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, kinds, err := parseInfo(b); err == nil {
			again := cat(str(name), be16(uint16(len(kinds))))
			for _, k := range kinds {
				again = append(again, be16(k)...)
			}
			if !bytes.Equal(again, b) {
				t.Errorf("info %x was taken as %x", b, again)
			}
		}
		if name, queries, err := parseMeta(b); err == nil {
			again := cat(str(name), be32(uint32(len(queries))))
			for _, q := range queries {
				again = append(again, str(q)...)
			}
			if !bytes.Equal(again, b) {
				t.Errorf("query %x was taken as %x", b, again)
			}
		}
	})
}

// FuzzRequest feeds the parser of requests and what is computed from them
// before the volume is asked: ranges are whole blocks inside the volume.
func FuzzRequest(f *testing.F) {
	f.Add(requestBytes(0, cmdWrite, 1, 4095, 4098))
	f.Add(requestBytes(cmdFlagDF, cmdRead, 1, 1<<63, 1<<31))
	f.Add(requestBytes(cmdFlagFastZero, cmdWriteZeroes, 1, 12287, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < requestSize {
			return
		}
		req, err := parseRequest(b)
		if err != nil {
			return
		}
		if again := requestBytes(req.flags, req.cmd, req.cookie, req.off, req.length); !bytes.Equal(again, b[:requestSize]) {
			t.Errorf("request %x was taken as %x", b[:requestSize], again)
		}
		g := device.Geometry{Size: 1 << 40, BlockSize: 4096}
		s := New(devtest.NewMemory(g), Options{})
		c := &conn{srv: s, structured: true, status: true}
		if e, why := c.check(req); e != 0 {
			if why == "" {
				t.Error("refused without a reason")
			}
			return
		}
		if req.length == 0 {
			return
		}
		off, n, head := s.cover(req)
		in, whole := s.inner(req)
		from, to := int64(req.off), int64(req.off)+int64(req.length)
		if off%4096 != 0 || n%4096 != 0 || off < 0 || off+n > g.Size || off+int64(head) != from || off+n < to || n >= int64(req.length)+2*4096 {
			t.Errorf("%d+%d is covered by %d+%d, %d", req.off, req.length, off, n, head)
		}
		if whole > 0 && (in%4096 != 0 || whole%4096 != 0 || in < from || in+whole > to) {
			t.Errorf("%d+%d has %d+%d inside", req.off, req.length, in, whole)
		}
	})
}
