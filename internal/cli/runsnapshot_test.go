package cli

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/objproxy/dir"
)

// export is a client of an NBD export.
type export struct {
	t     *testing.T
	nc    net.Conn
	size  uint64
	flags uint16
}

// What the protocol calls them.
const (
	nbdFlagReadOnly = 1 << 1
	nbdRead         = 0
	nbdWrite        = 1
	nbdFlush        = 3
	nbdPerm         = 1 // EPERM
	nbdIO           = 5 // EIO
)

// chooseExport connects to a unix socket and asks for an export.
func chooseExport(t *testing.T, socket, name string) *export {
	t.Helper()
	nc, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	x := &export{t: t, nc: nc}
	x.read(18)
	hello := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01"...) // NBD_OPT_EXPORT_NAME
	x.send(append(binary.BigEndian.AppendUint32(hello, uint32(len(name))), name...))
	answer := x.read(10)
	x.size, x.flags = binary.BigEndian.Uint64(answer), binary.BigEndian.Uint16(answer[8:])
	return x
}

func (x *export) read(n int) []byte {
	x.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(x.nc, b); err != nil {
		x.t.Fatal(err)
	}
	return b
}

func (x *export) send(b []byte) {
	x.t.Helper()
	if _, err := x.nc.Write(b); err != nil {
		x.t.Fatal(err)
	}
}

// do sends one request, and returns its errno.
func (x *export) do(cmd uint16, off uint64, n int, payload []byte) uint32 {
	x.t.Helper()
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, 7)
	b = binary.BigEndian.AppendUint64(b, off)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	x.send(append(b, payload...))
	return binary.BigEndian.Uint32(x.read(16)[4:])
}

// must sends a request that succeeds.
func (x *export) must(cmd uint16, off uint64, n int, payload []byte) {
	x.t.Helper()
	if e := x.do(cmd, off, n, payload); e != 0 {
		x.t.Fatalf("command %d at %d: errno %d", cmd, off, e)
	}
}

// holds demands that the blocks before end are full of b.
func (x *export) holds(b byte, end int) {
	x.t.Helper()
	x.must(nbdRead, 0, end, nil)
	if !bytes.Equal(x.read(end), bytes.Repeat([]byte{b}, end)) {
		x.t.Fatalf("it is not full of %d", b)
	}
}

// everything lists what is below dir, and when it was changed.
func everything(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all[path] = info.ModTime().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A snapshot is served beside the daemon of the volume, with the same configuration,
// and beside nothing; it is as it was, whatever happens to the volume.
func TestRunSnapshot(t *testing.T) {
	const n = 1 << 20
	where := t.TempDir()
	stored, socket := filepath.Join(where, ".bs3/store"), filepath.Join(where, ".bs3/nbd.sock")
	refused := func(code int, want string, args ...string) {
		t.Helper()
		if got, _, errs := bs3Main(t, where, nil, append([]string{"run", "--local"}, args...)...); got != code || !strings.Contains(errs, want) {
			t.Errorf("%v: exit %d, %s", args, got, errs)
		}
	}
	refused(exitOther, "no volume here", "--snapshot=s")
	live := startDaemon(t, where, nil, "run", "--local")
	live.expect("serving")
	writer := chooseExport(t, socket, "")
	snapshot := func(b byte, name string) {
		t.Helper()
		writer.must(nbdWrite, 0, n, bytes.Repeat([]byte{b}, n))
		writer.must(nbdFlush, 0, 0, nil)
		store, err := dir.Open(t.Context(), stored)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = store.Close() }()
		if _, err := checkpoint.SnapshotOutside(t.Context(), store, zerolog.Nop(), name); err != nil {
			t.Fatal(err)
		}
	}
	snapshot(1, "one")
	snapshot(2, "two")
	refused(exitRefused, `"three"; the volume has one, two`, "--snapshot=three")
	refused(exitRefused, "--snapshot", "--snapshot=")
	refused(exitRefused, "the volume itself", "--snapshot=one", "--listen=unix:.bs3/nbd.sock")
	refused(exitOther, "--listen is for --snapshot", "--listen=unix:x")
	refused(exitOther, "takeover", "--snapshot=one", "--takeover")

	before := everything(t, stored)
	one := startDaemon(t, where, []string{"BS3_TRANSPORT=ublk"}, "run", "--local", "--snapshot", "one")
	line := one.expect("serving")
	for _, want := range []string{"snapshot=one", "transport=nbd", "nbd.sock.one", "gb=8"} {
		if !strings.Contains(line, want) {
			t.Errorf("the log's line does not say %s: %s", want, line)
		}
	}
	two := startDaemon(t, where, []string{"BS3_READ_CACHESIZE=0", "BS3_READ_READAHEAD=0"}, "--local", "--snapshot", "two", "--listen", "unix:"+filepath.Join(where, "two"))
	two.expect("serving")
	x := chooseExport(t, socket+".one", "local@one")
	if x.size != 8<<30 || x.flags&nbdFlagReadOnly == 0 || writer.flags&nbdFlagReadOnly != 0 {
		t.Errorf("the export has %d bytes, flags %#x; that of the volume %#x", x.size, x.flags, writer.flags)
	}
	x.holds(1, n)
	if e := x.do(nbdWrite, 0, 4096, make([]byte, 4096)); e != nbdPerm {
		t.Errorf("a write: errno %d", e)
	}
	x.must(nbdFlush, 0, 0, nil)
	y := chooseExport(t, filepath.Join(where, "two"), "")
	y.holds(2, n)
	if after := everything(t, stored); !maps.Equal(before, after) {
		t.Error("the store has changed")
	}

	// The volume goes on, and another daemon of it comes.
	writer.must(nbdWrite, 0, n, bytes.Repeat([]byte{3}, n))
	live.signal(syscall.SIGTERM)
	if code := live.wait(); code != exitOK {
		t.Errorf("the volume's daemon: exit %d", code)
	}
	if e := volumeInfo(t, where).Epoch; e != 1 {
		t.Errorf("the volume is at epoch %d", e)
	}
	x.holds(1, n)
	live = startDaemon(t, where, nil, "run", "--local")
	live.expect("serving")
	writer = chooseExport(t, socket, "")
	writer.holds(3, n)
	y.holds(2, n)

	// One that is removed is not there any more, when what it needs is deleted.
	store, err := dir.Open(t.Context(), stored)
	if err != nil {
		t.Fatal(err)
	}
	err = checkpoint.RemoveSnapshotOutside(t.Context(), store, zerolog.Nop(), "two")
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	gone := uint32(0)
	for range 10 {
		writer.must(nbdWrite, n, 4096, make([]byte, 4096))
		for _, verb := range []string{"checkpoint", "gc"} {
			if code, _, errs := bs3Main(t, where, nil, verb, "--local"); code != exitOK {
				t.Fatalf("%s: exit %d, %s", verb, code, errs)
			}
		}
		if gone = y.do(nbdRead, 0, n, nil); gone != 0 {
			break
		}
		if !bytes.Equal(y.read(n), bytes.Repeat([]byte{2}, n)) {
			t.Fatal("what was removed reads as something else")
		}
	}
	if gone != nbdIO {
		t.Errorf("what was removed: errno %d", gone)
	}
	two.expect("snapshot two was removed")
	x.holds(1, n)
	for _, d := range []*process{one, two, live} {
		d.signal(syscall.SIGTERM)
		if code := d.wait(); code != exitOK {
			t.Errorf("a clean stop: exit %d", code)
		}
		if d != live && d.stdout.Len() > 0 {
			t.Errorf("it prints %s", d.stdout.String())
		}
	}
	if _, err := os.Stat(socket + ".one"); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
