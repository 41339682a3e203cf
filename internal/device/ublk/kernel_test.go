package ublk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/blockdev"
	"bs3/internal/device/devtest"
	"bs3/internal/null"
)

// The tests of this file need the real driver. make test-vm runs them in a
// virtual machine.

// requireEnv, if 1, makes a missing driver a failure.
const requireEnv = "BS3_REQUIRE_UBLK"

func needKernel(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(controlPath); err != nil {
		if os.Getenv(requireEnv) == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// without is the real driver as it was in former times.
type without struct {
	linux
	question bool // it does not know cmdGetFeatures
	userCopy bool
	asyncDel bool
}

func (w without) control() (control, error) {
	c, err := linux{}.control()
	return withoutControl{c, w}, err
}

type withoutControl struct {
	control
	w without
}

func (c withoutControl) command(op uint32, cmd ctrlCmd, data []byte, limit time.Duration) error {
	nr := op & 0xff
	if c.w.question && nr == cmdGetFeatures || c.w.asyncDel && nr == cmdDelDevAsync {
		return unix.EOPNOTSUPP
	}
	err := c.control.command(op, cmd, data, limit)
	if err == nil && nr == cmdGetFeatures && c.w.userCopy {
		*(*uint64)(unsafe.Pointer(&data[0])) &^= flagUserCopy
	}
	return err
}

func drivers() map[string]driver {
	return map[string]driver{
		"as it is": linux{},
		"get data": without{userCopy: true, asyncDel: true},
		"legacy":   without{question: true},
	}
}

// show starts a server, opens its block device and returns that and its path.
// It is stopped at the end of the test.
func show(t *testing.T, d driver, vol device.Volume, opts Options) (b *devtest.BlockDevice, path string) {
	t.Helper()
	needKernel(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended, attached := make(chan error, 1), make(chan string, 1)
	opts.Log = zerolog.New(zerolog.NewTestWriter(t))
	opts.Attached = func(path string) { attached <- path }
	s := New(vol, opts)
	s.driver = d
	go func() { ended <- s.Run(ctx) }()
	select {
	case path = <-attached:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after the stop: %v", path, err)
		}
	})
	return devtest.OpenBlockDevice(t, path, vol.Geometry()), path
}

// only returns just the device of show.
func only(b *devtest.BlockDevice, _ string) device.Volume { return b }

func TestKernelContract(t *testing.T) {
	needKernel(t)
	for name, d := range drivers() {
		t.Run(name, func(t *testing.T) {
			devtest.Run(t, func(t *testing.T) device.Volume {
				return only(show(t, d, devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096}), Options{ID: -1}))
			})
		})
	}
	t.Run("512", func(t *testing.T) {
		devtest.Run(t, func(t *testing.T) device.Volume {
			return only(show(t, linux{}, devtest.NewMemory(device.Geometry{Size: 2 << 20, BlockSize: 512}), Options{ID: -1, Queues: 1, QueueDepth: 2}))
		})
	})
	t.Run("slow", func(t *testing.T) {
		devtest.Run(t, func(t *testing.T) device.Volume {
			return only(show(t, linux{}, onlyVolume{devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})}, Options{ID: -1}))
		})
	})
}

// The description of a device in sysfs.
func TestKernelLimits(t *testing.T) {
	for name, d := range drivers() {
		for _, c := range []struct {
			g    device.Geometry
			want map[string]string
		}{
			{device.Geometry{Size: 10 << 30, BlockSize: 4096, IOMin: 16384, IOOpt: 1 << 20, MaxDiscard: 256 << 20}, map[string]string{
				"size": "20971520", "ro": "0",
				"queue/logical_block_size": "4096", "queue/physical_block_size": "4096",
				"queue/minimum_io_size": "16384", "queue/optimal_io_size": "1048576",
				"queue/max_hw_sectors_kb": "1024", "queue/discard_granularity": "4096",
				"queue/discard_max_hw_bytes": "268435456", "queue/write_zeroes_max_bytes": "268435456",
				"queue/write_cache": "write back", "queue/fua": "1", "queue/rotational": "0", "queue/nr_requests": "64",
			}},
			{device.Geometry{Size: 1 << 40, BlockSize: 512, ReadOnly: true}, map[string]string{
				"size": "2147483648", "ro": "1",
				"queue/logical_block_size": "512", "queue/physical_block_size": "512",
				"queue/discard_max_hw_bytes": "0", "queue/write_cache": "write through",
			}},
		} {
			t.Run(fmt.Sprint(name, c.g.BlockSize), func(t *testing.T) {
				_, path := show(t, d, null.New(c.g), Options{ID: 5, Queues: 2, QueueDepth: 64})
				sys := filepath.Join("/sys/block", filepath.Base(path))
				for file, want := range c.want {
					got, err := os.ReadFile(filepath.Join(sys, file))
					if err != nil || strings.TrimSpace(string(got)) != want {
						t.Errorf("%s: %q, %v, want %q", file, got, err, want)
					}
				}
				if queues, err := os.ReadDir(sys + "/mq"); err != nil || len(queues) != 2 {
					t.Errorf("%d queues, %v", len(queues), err)
				}
				if path != "/dev/ublkb5" {
					t.Errorf("it is %s", path)
				}
			})
		}
	}
}

// What is written through the page cache reaches the volume before a stop ends.
func TestKernelStopWritesBack(t *testing.T) {
	needKernel(t)
	vol := devtest.NewMemory(device.Geometry{Size: 64 << 20, BlockSize: 4096})
	want := bytes.Repeat([]byte{0x5a}, 8<<20)
	t.Run("write", func(t *testing.T) {
		_, path := show(t, linux{}, vol, Options{ID: -1})
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() }) // before the stop, but not synced
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
	})
	got := make([]byte, len(want))
	if err := vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("not everything arrived: %v", err)
	}
}

// A failing volume fails the requests, and only them.
func TestKernelErrors(t *testing.T) {
	for name, d := range drivers() {
		t.Run(name, func(t *testing.T) {
			vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
			b, _ := show(t, d, vol, Options{ID: -1, Queues: 1, QueueDepth: 2})
			vol.Fail(errors.New("broken"), devtest.Read, devtest.Write, devtest.Flush, devtest.Discard, devtest.WriteZeroes)
			for range 5 {
				if err := b.ReadAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, unix.EIO) {
					t.Errorf("read: %v", err)
				}
				if err := b.WriteAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, unix.EIO) {
					t.Errorf("write: %v", err)
				}
				if err := b.Flush(t.Context()); !errors.Is(err, unix.EIO) {
					t.Errorf("flush: %v", err)
				}
				if err := b.Discard(t.Context(), 0, 4096); !errors.Is(err, unix.EIO) {
					t.Errorf("discard: %v", err)
				}
			}
			vol.Fail(nil, devtest.Read, devtest.Write, devtest.Flush, devtest.Discard, devtest.WriteZeroes)
			p := bytes.Repeat([]byte{9}, 1<<20)
			if err := b.WriteAt(t.Context(), p, 0); err != nil {
				t.Error(err)
			}
			if err := b.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			got := make([]byte, len(p))
			if err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, p) {
				t.Errorf("read back: %v", err)
			}
		})
	}
}

// A device that somebody stops ends its server.
func TestKernelStoppedBySomeoneElse(t *testing.T) {
	needKernel(t)
	attached, ended := make(chan string, 1), make(chan error, 1)
	s := New(null.New(device.Geometry{Size: 1 << 20, BlockSize: 4096}), Options{ID: 7, Attached: func(path string) { attached <- path }})
	go func() { ended <- s.Run(context.Background()) }()
	select {
	case <-attached:
	case err := <-ended:
		t.Fatal(err)
	}
	ctl, err := linux{}.control()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { t.Log(ctl.close()) }()
	if err := newManager(ctl).stop(7); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrRemoved) {
		t.Errorf("%v, want ErrRemoved", err)
	}
	if _, err := os.Stat("/dev/ublkc7"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the device stays: %v", err)
	}
}

// childEnv makes this program a server that waits to be killed: "stuck:3" or
// "legacy:3", see child.
const (
	childEnv  = "BS3_TEST_UBLK_CHILD"
	markerEnv = "BS3_TEST_UBLK_MARKER"
)

func TestMain(m *testing.M) {
	if name, id, ok := strings.Cut(os.Getenv(childEnv), ":"); ok {
		fmt.Println(child(name, id))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child serves device id by the named driver. It blocks writes for ever. With
// "stuck" it gets stuck when it has taken over one of two queues.
func child(name, id string) error {
	n, err := strconv.Atoi(id)
	if err != nil {
		return err
	}
	vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
	vol.Block(devtest.Write)
	s := New(vol, Options{
		ID: n, Identity: identity, Recover: true, Queues: 2, Marker: os.Getenv(markerEnv),
		Attached: func(string) { fmt.Println("attached") },
	})
	if s.driver = drivers()[name]; name == "stuck" {
		s.driver = stuck{}
	}
	return s.Run(context.Background())
}

type stuck struct{ linux }

type stuckChar struct{ charDevice }

func (stuck) open(id int) (charDevice, error) {
	c, err := linux{}.open(id)
	return stuckChar{c}, err
}

func (c stuckChar) ring(depth int) (ring, error) {
	r, err := c.charDevice.ring(depth)
	return &stuckRing{ring: r}, err
}

type stuckRing struct {
	ring
	queue uint16
}

func (r *stuckRing) command(op uint32, cmd ioCmd) {
	r.queue = cmd.queue
	r.ring.command(op, cmd)
}

func (r *stuckRing) submit() error {
	if r.queue > 0 {
		time.Sleep(300 * time.Millisecond) // until the other one fetches
		fmt.Println("stuck")
		select {}
	}
	return r.ring.submit()
}

// startChild starts a child and waits until it prints word.
func startChild(t *testing.T, name string, id int, word string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", childEnv, name, id))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != word+"\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	return cmd
}

func killChild(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
}

// killed runs a child, writes to its device, and kills the child before that
// write has ended. The result is that of the write.
func killed(t *testing.T, name string, id int) <-chan error {
	t.Helper()
	cmd := startChild(t, name, id, "attached")
	f, err := os.OpenFile(blockPath(id), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		defer f.Close()
		p := devtest.Aligned(8192)
		copy(p, bytes.Repeat([]byte{0xc3}, len(p)))
		_, err := f.WriteAt(p, 4096)
		written <- err
	}()
	for inflight := ""; inflight != "0 1"; { // reads and writes with the driver
		b, err := os.ReadFile("/sys/block/" + filepath.Base(blockPath(id)) + "/inflight")
		if err != nil {
			t.Fatal(err)
		}
		inflight = strings.Join(strings.Fields(string(b)), " ")
	}
	killChild(t, cmd)
	return written
}

// A write that a killed server had taken is served by the next one.
func TestKernelRecover(t *testing.T) {
	needKernel(t)
	for name, d := range drivers() {
		t.Run(name, func(t *testing.T) {
			written := killed(t, name, 3)
			vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
			b, _ := show(t, d, vol, Options{ID: 3, Identity: identity, Recover: true})
			if err := <-written; err != nil {
				t.Errorf("the write: %v", err)
			}
			got := make([]byte, 16384)
			want := append(append(make([]byte, 4096), bytes.Repeat([]byte{0xc3}, 8192)...), make([]byte, 4096)...)
			if err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read back: %v", err)
			}
		})
	}
}

// A server that dies while it takes a device over leaves it to the next one, if
// it has no queue yet. Else the device is removed: the kernel crashes when it
// is asked again.
func TestKernelDeathDuringRecovery(t *testing.T) {
	needKernel(t)
	marker := filepath.Join(t.TempDir(), "marker")
	t.Setenv(markerEnv, marker)
	for _, c := range []struct {
		name string
		die  func(t *testing.T)
		want error
	}{
		{"no queue", beginRecovery, nil},
		{"one queue", func(t *testing.T) { killChild(t, startChild(t, "stuck", 3, "stuck")) }, unix.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			written := killed(t, "as it is", 3)
			c.die(t)
			vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
			b, _ := show(t, linux{}, vol, Options{ID: -1, Identity: identity, Recover: true, Marker: marker})
			if err := <-written; !errors.Is(err, c.want) {
				t.Errorf("the write: %v, want %v", err, c.want)
			}
			want := make([]byte, 8192)
			if c.want == nil {
				want = bytes.Repeat([]byte{0xc3}, 8192)
			}
			got := make([]byte, 8192)
			if err := b.ReadAt(t.Context(), got, 4096); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read back: %v", err)
			}
		})
	}
}

// beginRecovery is what a server does that dies before it has a queue.
func beginRecovery(t *testing.T) {
	ctl, err := linux{}.control()
	if err != nil {
		t.Fatal(err)
	}
	begun, err := blockdev.Await(t.Context(), deathWait, func() (bool, error) {
		err := newManager(ctl).startRecovery(3)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil || !begun {
		t.Fatal(begun, err)
	}
	if err := ctl.close(); err != nil {
		t.Error(err)
	}
}

// Without everything that it had acknowledged, its requests fail.
func TestKernelNoRecover(t *testing.T) {
	needKernel(t)
	for name, d := range drivers() {
		t.Run(name, func(t *testing.T) {
			written := killed(t, name, 4)
			vol := devtest.NewMemory(device.Geometry{Size: 16 << 20, BlockSize: 4096})
			show(t, d, vol, Options{ID: 4, Identity: identity})
			if err := <-written; !errors.Is(err, unix.EIO) {
				t.Errorf("the write: %v, want EIO", err)
			}
			if n := vol.Calls(devtest.Write); n != 0 {
				t.Errorf("%d writes reached the new volume", n)
			}
		})
	}
}

// A removed device that is held keeps its number, and nothing else waits for it.
func TestKernelHeld(t *testing.T) {
	needKernel(t)
	for name, d := range drivers() {
		t.Run(name, func(t *testing.T) {
			g := device.Geometry{Size: 1 << 20, BlockSize: 4096}
			var held *os.File
			t.Run("first", func(t *testing.T) {
				_, path := show(t, d, null.New(g), Options{ID: 6})
				var err error
				if held, err = os.Open(path); err != nil {
					t.Fatal(err)
				}
			})
			if err := New(null.New(g), Options{ID: 6}).Run(t.Context()); !errors.Is(err, ErrInUse) {
				t.Errorf("%v, want ErrInUse", err)
			}
			held.Close()
			show(t, d, null.New(g), Options{ID: 6})
		})
	}
}
