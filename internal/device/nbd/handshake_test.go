package nbd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

func testGeometry() device.Geometry { return device.Geometry{Size: 1 << 20, BlockSize: 4096} }

// golden plays a session: "C" lines are sent, "S" lines have to come, byte for
// byte. They are written out by hand from doc/proto.md, so that a constant
// that is wrong on both sides here shows.
func golden(t *testing.T, c *rawClient, session string) {
	t.Helper()
	for line := range strings.Lines(session) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if line == "" {
			continue
		}
		want, err := hex.DecodeString(strings.ReplaceAll(line[1:], " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if line[0] == 'C' {
			c.send(want)
		} else if got := c.recv(len(want)); !bytes.Equal(got, want) {
			t.Fatalf("got  %x\nwant %x", got, want)
		}
	}
}

const greeting = `
	S 4e42444d41474943 49484156454f5054 0003   # NBDMAGIC IHAVEOPT fixed-newstyle|no-zeroes
`

func TestGoldenStructured(t *testing.T) {
	m := devtest.NewMemory(testGeometry())
	c := dialRaw(t, startServer(t, m, Options{}))
	golden(t, c, greeting+`
		C 00000003
		C 49484156454f5054 00000008 00000000               # structured reply
		S 0003e889045565a9 00000008 00000001 00000000      # ack
		C 49484156454f5054 0000000a 0000001b 00000000 00000001 0000000f 626173653a616c6c6f636174696f6e # set base:allocation
		S 0003e889045565a9 0000000a 00000004 00000013 00000001 626173653a616c6c6f636174696f6e          # context 1
		S 0003e889045565a9 0000000a 00000001 00000000
		C 49484156454f5054 00000007 0000000a 00000000 0002 0003 0001 # go: default export, block size and name
		S 0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 09ed # 1 MiB; flags|flush|fua|trim|zeroes|df|multi-conn|fast-zero
		S 0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000
		S 0003e889045565a9 00000007 00000003 00000002 0001
		S 0003e889045565a9 00000007 00000001 00000000
		C 25609513 0000 0001 0000000000000001 0000000000000005 00000003 616263 # write abc at 5
		S 67446698 00000000 0000000000000001                                   # done
		C 25609513 0000 0000 0000000000000002 0000000000000004 00000005        # read 5 bytes at 4
		S 668e33ef 0001 0001 0000000000000002 0000000d 0000000000000004 00 616263 00
		C 25609513 0000 0007 0000000000000003 0000000000000000 00003000        # block status of 12 KiB
		S 668e33ef 0001 0005 0000000000000003 00000014 00000001 00001000 00000000 00002000 00000003
		C 25609513 0008 0007 0000000000000004 0000000000000ffe 00003000        # one extent only
		S 668e33ef 0001 0005 0000000000000004 0000000c 00000001 00000002 00000000
		C 25609513 0000 0003 0000000000000005 0000000000000000 00000000        # flush
		S 67446698 00000000 0000000000000005
		C 25609513 0000 0000 0000000000000008 0000000000000004 00000000        # read nothing
		S 668e33ef 0001 0000 0000000000000008 00000000
		C 25609513 0000 0001 0000000000000006 0000000000100000 00000001 78     # write beyond the end
		S 668e33ef 0001 8001 0000000000000006 00000022 0000001c 001c 6265796f6e642074686520656e64206f6620746865206578706f7274
		C 25609513 0000 0002 0000000000000007 0000000000000000 00000000        # disconnect
	`)
	c.wantEnd()
	if m.Calls(devtest.Flush) != 1 {
		t.Errorf("%d flushes", m.Calls(devtest.Flush))
	}
}

func TestGoldenSimple(t *testing.T) {
	c := dialRaw(t, startServer(t, devtest.NewMemory(testGeometry()), Options{}))
	golden(t, c, greeting+`
		C 00000000
		C 49484156454f5054 00000001 00000000               # export name: the default
		S 0000000000100000 096d`+strings.Repeat("00", 124)+`
		C 25609513 0001 0001 1122334455667788 0000000000001000 00000002 6869 # write with FUA
		S 67446698 00000000 1122334455667788
		C 25609513 0000 0000 0000000000000002 0000000000000fff 00000004
		S 67446698 00000000 0000000000000002 00686900
		C 25609513 0004 0000 0000000000000003 0000000000000000 00000004      # DF was not negotiated
		S 67446698 00000016 0000000000000003
		C 25609513 0000 0007 0000000000000004 0000000000000000 00000004      # nor was block status
		S 67446698 00000016 0000000000000004
		C 25609513 0000 0002 0000000000000005 0000000000000000 00000000
	`)
	c.wantEnd()
}

func TestGoldenExportNameWithoutZeroes(t *testing.T) {
	ro := testGeometry()
	ro.ReadOnly = true
	c := dialRaw(t, startServer(t, devtest.NewMemory(ro), Options{ExportName: "disk"}))
	golden(t, c, greeting+`
		C 00000003
		C 49484156454f5054 00000001 00000004 6469736b
		S 0000000000100000 010f
		C 25609513 0000 0003 0000000000000001 0000000000000000 00000000
		S 67446698 00000000 0000000000000001
	`)
}

func TestOptions(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{ExportName: "disk"})
	c := dialRaw(t, s)
	c.hello(flagFixedNewstyle)

	want := func(what string, r optReply, option, kind uint32) {
		t.Helper()
		if r.option != option || r.kind != kind {
			t.Fatalf("%s: reply %#x to option %d with %q, want %#x to %d", what, r.kind, r.option, r.data, kind, option)
		}
	}
	r := c.option(optList, nil)
	want("list", r, optList, repServer)
	if string(r.data) != "\x00\x00\x00\x04disk" {
		t.Errorf("list says %q", r.data)
	}
	want("list", c.optReply(), optList, repAck)
	want("list with data", c.option(optList, []byte{0}), optList, repErrInvalid)
	want("STARTTLS", c.option(5, nil), 5, repErrUnsup)
	want("extended headers", c.option(11, nil), 11, repErrUnsup)
	want("unknown", c.option(0xdeadbeef, make([]byte, 1000)), 0xdeadbeef, repErrUnsup)
	want("unknown export", c.option(optInfo, cat(str("other"), be16(0))), optInfo, repErrUnknown)
	want("unknown export", c.option(optGo, cat(str("other"), be16(0))), optGo, repErrUnknown)
	want("short info", c.option(optInfo, []byte{0, 0}), optInfo, repErrInvalid)
	want("long name", c.option(optInfo, cat(str(strings.Repeat("x", 5000)), be16(0))), optInfo, repErrInvalid)
	want("wrong count", c.option(optInfo, cat(str("disk"), be16(2), be16(0))), optInfo, repErrInvalid)

	// Metadata contexts need structured replies.
	query := cat(str("disk"), be32(1), str(contextName))
	want("too early", c.option(optSetMetaContext, query), optSetMetaContext, repErrInvalid)
	want("structured with data", c.option(optStructuredReply, []byte{1}), optStructuredReply, repErrInvalid)
	want("structured", c.option(optStructuredReply, nil), optStructuredReply, repAck)
	want("malformed", c.option(optSetMetaContext, query[:len(query)-1]), optSetMetaContext, repErrInvalid)
	want("no namespace", c.option(optListMetaContext, cat(str(""), be32(1), str("base"))), optListMetaContext, repErrInvalid)
	want("unknown export", c.option(optListMetaContext, cat(str("other"), be32(0))), optListMetaContext, repErrUnknown)
	for _, q := range [][]byte{be32(0), cat(be32(1), str("base:")), cat(be32(2), str("x:y"), str(contextName))} {
		r := c.option(optListMetaContext, cat(str("disk"), q))
		want("list contexts", r, optListMetaContext, repMetaContext)
		if string(r.data) != "\x00\x00\x00\x00base:allocation" {
			t.Errorf("list contexts says %q", r.data)
		}
		want("list contexts", c.optReply(), optListMetaContext, repAck)
	}
	// A list selects nothing, a wildcard neither.
	want("other context", c.option(optListMetaContext, cat(str("disk"), be32(1), str("qemu:dirty"))), optListMetaContext, repAck)
	want("wildcard", c.option(optSetMetaContext, cat(str("disk"), be32(1), str("base:"))), optSetMetaContext, repAck)
	want("no query", c.option(optSetMetaContext, cat(str("disk"), be32(0))), optSetMetaContext, repAck)

	// What was selected for "disk" does not hold for the default export.
	want("select", c.option(optSetMetaContext, query), optSetMetaContext, repMetaContext)
	want("select", c.optReply(), optSetMetaContext, repAck)
	want("info", c.option(optInfo, cat(str("disk"), be16(1), be16(77))), optInfo, repInfo)
	want("info", c.optReply(), optInfo, repAck)
	want("go", c.option(optGo, cat(str(""), be16(0))), optGo, repInfo)
	want("go", c.optReply(), optGo, repAck)
	c.send(requestBytes(0, cmdBlockStatus, 1, 0, 4096))
	if h := c.recv(chunkSize); binary.BigEndian.Uint16(h[6:]) != chunkError {
		t.Errorf("block status of another export than it was selected for: %x", h)
	}
}

func TestAbortIsAnswered(t *testing.T) {
	c := dialRaw(t, startServer(t, devtest.NewMemory(testGeometry()), Options{}))
	c.hello(flagFixedNewstyle)
	if r := c.option(optAbort, nil); r.kind != repAck {
		t.Errorf("abort: %+v", r)
	}
	c.wantEnd()
}

// A volume without device.Allocator offers no metadata context.
func TestNoAllocator(t *testing.T) {
	c := dialRaw(t, startServer(t, slow{devtest.NewMemory(testGeometry())}, Options{}))
	c.hello(flagFixedNewstyle)
	c.option(optStructuredReply, nil)
	if r := c.option(optSetMetaContext, cat(str(""), be32(1), str(contextName))); r.kind != repAck {
		t.Errorf("set meta context: %+v", r)
	}
}

// An option that cannot be answered ends the connection.
func TestHandshakeEnds(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{})
	for name, send := range map[string][]byte{
		"unknown client flags": be32(4),
		"option magic":         cat(be32(1), be64(magicOption+1), be32(optList), be32(0)),
		"option too long":      cat(be32(1), be64(magicOption), be32(optList), be32(maxOption+1)),
		"unknown export name":  cat(be32(1), be64(magicOption), be32(optExportName), be32(1), []byte("x")),
	} {
		t.Run(name, func(t *testing.T) {
			c := dialRaw(t, s)
			c.recv(18)
			c.send(send)
			c.wantEnd()
		})
	}
}

// The largest option is accepted, and a client that endlessly asks for long answers
// does not make the server accumulate them.
func TestLongOptions(t *testing.T) {
	c := dialRaw(t, startServer(t, devtest.NewMemory(testGeometry()), Options{}))
	c.hello(flagFixedNewstyle)
	if r := c.option(99, make([]byte, maxOption)); r.kind != repErrUnsup {
		t.Errorf("option of %d bytes: %+v", maxOption, r)
	}
	const n = 5000
	one := cat(be64(magicOption), be32(99), be32(0))
	go func() {
		if _, err := c.nc.Write(bytes.Repeat(one, n)); err != nil {
			t.Error(err)
		}
	}()
	for range n {
		if r := c.optReply(); r.kind != repErrUnsup {
			t.Fatalf("%+v", r)
		}
	}
}

func TestHandshakeThatDawdlesIsClosed(t *testing.T) {
	s := startServer(t, devtest.NewMemory(testGeometry()), Options{HandshakeTimeout: 50 * time.Millisecond})
	c := dialRaw(t, s)
	c.recv(18)
	c.wantEnd()
	// The bound is for the handshake only.
	ok := dial(t, s, clientOptions{})
	select {
	case <-ok.ended:
		t.Error("the connection ended with the time for the handshake")
	case <-time.After(100 * time.Millisecond):
	}
	ok.mustRead(0, 1)
}

func TestPreferredBlockSize(t *testing.T) {
	for _, test := range []struct{ ioMin, want int }{{0, 4096}, {65536, 65536}, {512, 4096}, {12288, 4096}, {64 << 20, 4096}} {
		g := testGeometry()
		g.IOMin = test.ioMin
		if got := New(devtest.NewMemory(g), Options{}).preferredBlockSize(); int(got) != test.want {
			t.Errorf("preferred block size with io_min %d is %d, want %d", test.ioMin, got, test.want)
		}
	}
}

func TestParsers(t *testing.T) {
	if _, err := parseRequest(make([]byte, requestSize)); !errors.Is(err, errProtocol) {
		t.Errorf("request without magic: %v", err)
	}
	if _, _, err := parseMeta(cat(str("x"), be32(1<<31), str("y"))); !errors.Is(err, errOption) {
		t.Errorf("2^31 queries: %v", err)
	}
	if _, _, err := parseMeta(cat(str("x"), be32(1), str("y"), []byte{0})); !errors.Is(err, errOption) {
		t.Errorf("trailing byte: %v", err)
	}
	if _, _, err := parseMeta(str("x")); !errors.Is(err, errOption) {
		t.Errorf("no count: %v", err)
	}
	name, queries, err := parseMeta(cat(str("x"), be32(2), str("a:"), str("")))
	if err != nil || name != "x" || len(queries) != 2 || queries[0] != "a:" || queries[1] != "" {
		t.Errorf("%q %q %v", name, queries, err)
	}
}
