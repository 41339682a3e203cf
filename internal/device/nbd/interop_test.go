package nbd

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// tool runs a client that is not ours. If it is not installed the test is skipped, or
// fails if BS3_REQUIRE_TOOLS is set.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("BS3_REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func uri(s *testServer, export string) string {
	if s.addr.Network() == "tcp" {
		return "nbd://" + s.addr.String() + "/" + export
	}
	return "nbd+unix:///" + export + "?socket=" + s.addr.String()
}

func TestNbdinfo(t *testing.T) {
	vol := devtest.NewMemory(device.Geometry{Size: 8 << 20, BlockSize: 4096, IOMin: 65536})
	for _, network := range []string{"unix", "tcp"} {
		opts := Options{ExportName: "disk"}
		if network == "tcp" {
			opts.Network, opts.Address = network, "127.0.0.1:0"
		}
		s := startServer(t, vol, opts)
		for _, export := range []string{"", "disk"} {
			out := tool(t, "nbdinfo", uri(s, export))
			for _, want := range []string{
				"newstyle-fixed without TLS, using structured packets", "export-size: 8388608", "base:allocation",
				"is_read_only: false", "can_df: true", "can_fast_zero: true", "can_flush: true", "can_fua: true",
				"can_multi_conn: true", "can_trim: true", "can_zero: true",
				"block_size_minimum: 1\n", "block_size_preferred: 65536\n", "block_size_maximum: 33554432\n",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("nbdinfo of export %q does not say %q:\n%s", export, want, out)
				}
			}
		}
		if out := tool(t, "nbdinfo", "--list", uri(s, "")); !strings.Contains(out, `export="disk"`) {
			t.Errorf("nbdinfo --list: %s", out)
		}
		if out, err := exec.Command("nbdinfo", uri(s, "other")).CombinedOutput(); err == nil || !strings.Contains(string(out), "for export: other") {
			t.Errorf("nbdinfo of an unknown export: %v %s", err, out)
		}
	}
}

func TestNbdcopyAndMap(t *testing.T) {
	const size = 32 << 20
	vol := devtest.NewMemory(device.Geometry{Size: size, BlockSize: 4096})
	s := startServer(t, vol, Options{})
	dir := t.TempDir()
	image := make([]byte, size)
	if _, err := rand.Read(image); err != nil {
		t.Fatal(err)
	}
	clear(image[8<<20 : 16<<20])
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", "--connections=4", in, uri(s, ""))
	tool(t, "nbdcopy", uri(s, ""), out)
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, image) {
		t.Error("the image came back differently")
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, "nbd+unix:///?socket="+s.addr.String())
	totals := tool(t, "nbdinfo", "--map", uri(s, ""))
	var fields []string
	for line := range strings.Lines(totals) {
		fields = append(fields, strings.Join(strings.Fields(line), " "))
	}
	want := "[0 8388608 0 data 8388608 8388608 3 hole,zero 16777216 16777216 0 data]"
	if fmt.Sprint(fields) != want {
		t.Errorf("map %v, want %v", fields, want)
	}
}

// libnbd's Python shell: unaligned requests, and all flags, from a client that
// checks what we answer.
func TestNbdsh(t *testing.T) {
	s := startServer(t, devtest.NewMemory(device.Geometry{Size: 8 << 20, BlockSize: 4096}), Options{})
	script := `
import nbd
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri("` + uri(s, "") + `")
model = bytearray(1 << 20)
for off, data in [(0, b"x" * 10000), (4095, b"ab"), (5000, b"c" * 5), (8191, b"d" * 4098), (12288, b"e" * 4096)]:
    h.pwrite(data, off, nbd.CMD_FLAG_FUA if off % 2 else 0)
    model[off:off + len(data)] = data
h.zero(5000, 3000)
model[3000:8000] = bytes(5000)
h.zero(8192, 12289, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
model[12289:20481] = bytes(8192)
h.trim(4096, 0)
model[0:4096] = bytes(4096)
h.flush()
for off, n in [(0, 1 << 20), (1, 1), (4095, 2), (2999, 5002), (12288, 2)]:
    assert h.pread_structured(n, off, lambda data, at, state, err: None, nbd.CMD_FLAG_DF) == model[off:off + n], (off, n)
    assert h.pread(n, off) == model[off:off + n], (off, n)
try:
    h.zero(100, 1, nbd.CMD_FLAG_FAST_ZERO)
    assert False
except nbd.Error as e:
    assert e.errno == "ENOTSUP", e
h.set_strict_mode(0)
for want, call in [("ENOSPC", lambda: h.pwrite(b"x", 8 << 20)), ("EINVAL", lambda: h.pread(1, 8 << 20)),
                   ("ENOSPC", lambda: h.zero(1, 8 << 20)), ("EINVAL", lambda: h.trim(1, 8 << 20)), ("EINVAL", lambda: h.cache(1, 0))]:
    try:
        call()
        assert False
    except nbd.Error as e:
        assert e.errno == want, (e, want)
extents = []
h.block_status(8 << 20, 0, lambda context, off, e, err: extents.extend(e))
assert sum(extents[::2]) == 8 << 20 and extents[-1] == 3, extents
h.shutdown()
`
	tool(t, "/usr/bin/python3", "-m", "nbd", "-c", script)
}

func TestFio(t *testing.T) {
	// fio trims a block and writes it without waiting in between, and expects
	// to find what it wrote.
	s := startServer(t, devtest.NewMemory(device.Geometry{Size: 32 << 20, BlockSize: 4096}), Options{})
	out := tool(t, "fio", "--ioengine=nbd", "--uri="+uri(s, ""), "--iodepth=16", "--bsrange=512-128k", "--bs_unaligned",
		"--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--do_verify=1", "--directory="+t.TempDir(),
		"--name=mix", "--rw=randtrimwrite", "--size=24m", "--io_size=24m",
		"--name=write", "--rw=randwrite", "--offset=24m", "--size=8m")
	if strings.Contains(out, "verify failed") || !strings.Contains(out, "err= 0") {
		t.Error(out)
	}
}
