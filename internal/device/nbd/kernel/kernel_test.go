package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/blockdev"
	"bs3/internal/device/devtest"
	"bs3/internal/device/nbd"
	"bs3/internal/null"
)

// The tests of this file need the real client. make test-vm runs them in a
// virtual machine.

// requireEnv, if 1, makes a missing client a failure.
const requireEnv = "BS3_REQUIRE_KERNEL_NBD"

func needKernel(t *testing.T) {
	t.Helper()
	if err := Available(); err != nil {
		if os.Getenv(requireEnv) == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// show attaches vol for the length of the test.
func show(t *testing.T, vol device.Volume, opts Options) *devtest.BlockDevice {
	t.Helper()
	needKernel(t)
	s := begin(t, linux(), vol, opts)
	path := s.attached(t)
	t.Cleanup(func() {
		s.stop(t)
		if _, err := os.Stat(blockdev.Attribute(path, "pid")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is connected after the stop: %v", path, err)
		}
	})
	return devtest.OpenBlockDevice(t, path, vol.Geometry())
}

func TestKernelContract(t *testing.T) {
	needKernel(t)
	devtest.Run(t, func(t *testing.T) device.Volume {
		return show(t, devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096}), Options{Index: 1})
	})
}

// The description of a device in sysfs.
func TestKernelLimits(t *testing.T) {
	for _, c := range []struct {
		g    device.Geometry
		want map[string]string
	}{
		{device.Geometry{Size: 10 << 30, BlockSize: 4096}, map[string]string{
			"size": "20971520", "ro": "0",
			"queue/logical_block_size": "4096", "queue/physical_block_size": "4096", "queue/discard_granularity": "4096",
			"queue/write_cache": "write back", "queue/fua": "1", "queue/rotational": "0", "queue/io_timeout": "10000",
		}},
		{device.Geometry{Size: 1 << 40, BlockSize: 512, ReadOnly: true}, map[string]string{
			"size": "2147483648", "ro": "1", "queue/logical_block_size": "512",
		}},
	} {
		t.Run(fmt.Sprint(c.g.BlockSize), func(t *testing.T) {
			show(t, null.New(c.g), Options{Index: 20})
			for file, want := range c.want {
				got, err := os.ReadFile(blockdev.Attribute("/dev/nbd20", file))
				if err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%s: %q, %v, want %q", file, got, err, want)
				}
			}
			discard, err := os.ReadFile(blockdev.Attribute("/dev/nbd20", "queue/discard_max_bytes"))
			if zero := strings.TrimSpace(string(discard)) == "0"; err != nil || zero != c.g.ReadOnly {
				t.Errorf("discards of at most %s, %v", discard, err)
			}
		})
	}
}

// What is written through the page cache reaches the volume before a stop ends.
func TestKernelStopWritesBack(t *testing.T) {
	needKernel(t)
	vol := devtest.NewMemory(device.Geometry{Size: 64 << 20, BlockSize: 4096})
	want := bytes.Repeat([]byte{0x5a}, 8<<20)
	s := begin(t, linux(), vol, Options{})
	f, err := os.OpenFile(s.attached(t), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	s.stop(t) // before it is synced
	got := make([]byte, len(want))
	if err := vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("not everything arrived: %v", err)
	}
	// It is held until it is closed.
	if err := <-begin(t, linux(), vol, Options{}).ended; !errors.Is(err, ErrInUse) {
		t.Errorf("a device that is held: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	show(t, vol, Options{})
}

// A failing volume fails the requests, and only them.
func TestKernelErrors(t *testing.T) {
	vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
	b := show(t, vol, Options{})
	vol.Fail(errors.New("broken"), devtest.Read, devtest.Write, devtest.Flush, devtest.Discard)
	for range 5 {
		if err := b.ReadAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, unix.EIO) {
			t.Errorf("read: %v", err)
		}
		if err := b.WriteAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, unix.EIO) {
			t.Errorf("write: %v", err)
		}
		if err := b.Discard(t.Context(), 0, 4096); !errors.Is(err, unix.EIO) {
			t.Errorf("discard: %v", err)
		}
	}
	vol.Fail(nil, devtest.Read, devtest.Write, devtest.Flush, devtest.Discard)
	p := bytes.Repeat([]byte{9}, 1<<20)
	if err := errors.Join(b.WriteAt(t.Context(), p, 0), b.Flush(t.Context())); err != nil {
		t.Error(err)
	}
	got := make([]byte, len(p))
	if err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("read back: %v", err)
	}
}

func TestKernelDisconnectedBySomeoneElse(t *testing.T) {
	needKernel(t)
	s := begin(t, linux(), devtest.NewMemory(geometry()), Options{Index: 2})
	s.attached(t)
	if err := linux().disconnect(2); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; !errors.Is(err, ErrDisconnected) {
		t.Errorf("%v, want ErrDisconnected", err)
	}
}

// childEnv makes this program a daemon that waits to be killed; it is the path
// of Options.Run.
const childEnv = "BS3_TEST_NBD_CHILD"

func TestMain(m *testing.M) {
	if run := os.Getenv(childEnv); run != "" {
		fmt.Println(child(run))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child serves /dev/nbd3 and blocks writes for ever.
func child(run string) error {
	vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
	vol.Block(devtest.Write)
	server := nbd.New(vol, nbd.Options{Log: zerolog.Nop(), Network: "unix", Address: run + ".sock", Listening: func(net.Addr) {}})
	return New(vol.Geometry(), server, Options{
		Index: 3, Volume: "vol", Run: run, Log: zerolog.Nop(), Attached: func(string) { fmt.Println("attached") },
	}).Run(context.Background())
}

// killed runs a child, writes to its device, and kills the child before that
// write has ended. The result is that of the write, and of one that was begun
// after the death.
func killed(t *testing.T, run string) <-chan error {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+run)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "attached\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	f, err := os.OpenFile("/dev/nbd3", os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 2)
	var writing sync.WaitGroup
	write := func(off int64) {
		p := devtest.Aligned(8192)
		copy(p, bytes.Repeat([]byte{0xc3}, len(p)))
		_, err := f.WriteAt(p, off)
		written <- err
	}
	writing.Go(func() { write(4096) })
	for inflight := ""; inflight != "0 1"; { // reads and writes with the driver
		b, err := os.ReadFile(blockdev.Attribute("/dev/nbd3", "inflight"))
		if err != nil {
			t.Fatal(err)
		}
		inflight = strings.Join(strings.Fields(string(b)), " ")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	writing.Go(func() { write(1 << 20) })
	go func() {
		writing.Wait()
		f.Close()
	}()
	return written
}

// The next daemon serves the writes that a killed daemon had taken, or that came after
// its death.
func TestKernelRecover(t *testing.T) {
	needKernel(t)
	run := filepath.Join(t.TempDir(), "run")
	t.Run("go on", func(t *testing.T) {
		written := killed(t, run)
		vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
		b := show(t, vol, Options{Index: 3, Run: run, Recover: true})
		if err := errors.Join(<-written, <-written); err != nil {
			t.Errorf("the writes: %v", err)
		}
		for _, off := range []int64{4096, 1 << 20} {
			got := make([]byte, 8192)
			if err := b.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{0xc3}, 8192)) {
				t.Errorf("read back at %d: %v", off, err)
			}
		}
	})
}

// Without everything that the daemon had acknowledged, the requests fail; and a device
// that somebody holds open is not taken over later either.
func TestKernelNoRecover(t *testing.T) {
	needKernel(t)
	run := filepath.Join(t.TempDir(), "run")
	vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
	t.Run("killed", func(t *testing.T) {
		written := killed(t, run)
		held, err := os.Open("/dev/nbd3")
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if err := <-begin(t, linux(), vol, Options{Index: 3, Run: run}).ended; !errors.Is(err, ErrInUse) {
			t.Errorf("while it is held: %v", err)
		}
		for range 2 {
			if err := <-written; !errors.Is(err, unix.EIO) {
				t.Errorf("a write: %v, want EIO", err)
			}
		}
		if err := <-begin(t, linux(), vol, Options{Index: 3, Run: run, Recover: true}).ended; !errors.Is(err, ErrInUse) {
			t.Errorf("later: %v", err)
		}
	})
	if n := vol.Calls(devtest.Write); n != 0 {
		t.Errorf("%d writes reached the new volume", n)
	}
	show(t, vol, Options{Index: 3, Run: run, Recover: true})
}
