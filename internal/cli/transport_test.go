package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"bs3/internal/config"
	"bs3/internal/device"
	"bs3/internal/device/buse"
	"bs3/internal/device/nbd"
	"bs3/internal/device/nbd/kernel"
	"bs3/internal/device/ublk"
	"bs3/internal/null"
)

func TestChooseTransport(t *testing.T) {
	for name, test := range map[string]struct {
		transport, device string
		depth             int
		buse, ublk, nbd   bool // what the machine has
		want              string
		err               error
		says              string // in the log, or in the error
	}{
		"auto, everything":           {transport: "auto", buse: true, ublk: true, nbd: true, want: "buse", says: "BUSE is loaded"},
		"auto, ublk":                 {transport: "auto", ublk: true, nbd: true, want: "ublk", says: "no BUSE"},
		"auto, ublk before nbd":      {transport: "auto", device: "/dev/nbd0", ublk: true, nbd: true, want: "ublk", says: `"unused":"nbd.device"`},
		"auto, kernel NBD":           {transport: "auto", device: "/dev/nbd0", nbd: true, want: "nbd", says: "nbd.device is set"},
		"auto, no module for it":     {transport: "auto", device: "/dev/nbd0", err: kernel.ErrNoDriver, says: "modprobe nbd"},
		"auto, nothing":              {transport: "auto", want: "nbd", says: "no block device"},
		"auto, what is chosen rules": {transport: "auto", ublk: true, depth: 5000, says: "queue_depth = 5000"},
		"buse":                       {transport: "buse", buse: true, want: "buse"},
		"buse, no module":            {transport: "buse", ublk: true, nbd: true, err: buse.ErrNoModule, says: "module"},
		"ublk":                       {transport: "ublk", ublk: true, want: "ublk"},
		"ublk, no driver":            {transport: "ublk", nbd: true, err: ublk.ErrNoDriver, says: "modprobe ublk_drv"},
		"nbd":                        {transport: "nbd", buse: true, ublk: true, want: "nbd"},
		"kernel NBD":                 {transport: "nbd", device: "/dev/nbd0", nbd: true, want: "nbd"},
		"kernel NBD, no module":      {transport: "nbd", device: "/dev/nbd0", ublk: true, err: kernel.ErrNoDriver, says: "modprobe nbd"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.Default()
			c.Transport, c.NBD.Device = test.transport, test.device
			if test.depth > 0 {
				c.QueueDepth = test.depth
			}
			lack := func(has bool, err error) func() error {
				return func() error {
					if has {
						return nil
					}
					return err
				}
			}
			m := machine{
				buse: lack(test.buse, buse.ErrNoModule),
				ublk: lack(test.ublk, ublk.ErrNoDriver), kernelNBD: lack(test.nbd, kernel.ErrNoDriver),
			}
			var said bytes.Buffer
			got, err := chooseTransport(c, m, zerolog.New(&said))
			if test.want == "" {
				if err == nil || test.err != nil && !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.says) {
					t.Fatalf("%s, %v", got, err)
				}
				if test.err == nil && exitCode(err) != exitRefused {
					t.Errorf("exit code %d: %v", exitCode(err), err)
				}
				return
			}
			if err != nil || got != test.want {
				t.Fatalf("%s, %v, want %s", got, err, test.want)
			}
			if log := said.String(); !strings.Contains(log, `"transport":"`+test.want+`"`) || !strings.Contains(log, test.says) {
				t.Errorf("the log says %s", log)
			}
		})
	}
}

// What the configuration lets through for BUSE, BUSE takes, and the other way
// round: its rules are in package config too, which knows the keys.
func TestConfigurationOfBUSE(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := config.Default()
		c.Null, c.Transport, c.NBD.Listen = true, config.TransportBUSE, "unix:s"
		number := func(name string, low, high int) int {
			if rapid.Bool().Draw(t, name+" is usual") {
				return max(low, 1<<rapid.IntRange(0, 14).Draw(t, name))
			}
			return rapid.IntRange(low, high).Draw(t, name)
		}
		c.Size = int64(number("size", 1, 1<<20))
		c.BlockSize = rapid.SampledFrom([]int{512, 4096}).Draw(t, "block_size")
		c.Major, c.Threads, c.CPUsPerNode = number("major", -1, 1<<17), number("threads", -1, 64), number("cpus_per_node", -1, 64)
		c.QueueDepth = number("queue_depth", -1, 20000)
		c.Write.ChunkSize = number("chunk_size", 1, 64)
		c.Write.BufSize, c.Read.BufSize = number("write buffer", -1, 5000), number("read buffer", -1, 5000)
		c.Write.CollisionSize = number("collision_chunk_size", -1, 3000)
		if c.Write.ChunkSize > 64 || c.Threads > 4096 || c.CPUsPerNode > 4096 || c.Size > 1<<20 {
			t.Skip("refused for other reasons")
		}
		ours := c.Validate()
		theirs := buseOptions(c).Validate(openNull(c, zerolog.Nop()).Geometry())
		// Zero means a default to BUSE, and nothing to us.
		zero := c.QueueDepth == 0 || c.Write.BufSize == 0 || c.Read.BufSize == 0 || c.Write.CollisionSize == 0
		if (ours == nil) != (theirs == nil) && !zero || ours == nil && zero {
			t.Fatalf("the configuration: %v\nBUSE: %v", ours, theirs)
		}
	})
}

// nullServer is an NBD server on a socket of its own.
func nullServer(t *testing.T, address string) (*nbd.Server, chan net.Addr) {
	t.Helper()
	listening := make(chan net.Addr, 1)
	return nbd.New(null.New(device.Geometry{Size: 1 << 20, BlockSize: 4096}), nbd.Options{
		Network: "unix", Address: address, Log: zerolog.Nop(), Listening: func(addr net.Addr) { listening <- addr },
	}), listening
}

// The kernel's device goes before the server that it is connected to.
func TestServerOutlivesItsDevice(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	server, listening := nullServer(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	attached, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- serveNBD(ctx, server, listening, func(ctx context.Context, _ net.Addr) error {
			close(attached)
			<-ctx.Done()
			greeting(t, "unix", address) // it still takes connections
			return nil
		})
	}()
	<-attached
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServerAndDeviceFailTogether(t *testing.T) {
	broken := errors.New("no device")
	server, listening := nullServer(t, filepath.Join(t.TempDir(), "s"))
	err := serveNBD(t.Context(), server, listening, func(context.Context, net.Addr) error { return broken })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	server, listening = nullServer(t, filepath.Join(t.TempDir(), "no", "such"))
	err = serveNBD(t.Context(), server, listening, func(context.Context, net.Addr) error {
		t.Error("attached to a server that does not listen")
		return nil
	})
	if err == nil {
		t.Error("a server that cannot listen ends well")
	}
}

// Without the driver that is asked for nothing is touched.
func TestMissingDriver(t *testing.T) {
	if buse.Available() == nil || ublk.Available() == nil || kernel.Available() == nil {
		t.Skip("this machine has the drivers")
	}
	for transport, remedy := range map[string]string{"buse": "modprobe buse", "ublk": "modprobe ublk_drv", "nbd": "modprobe nbd"} {
		dir := t.TempDir()
		env := []string{"BS3_STORE=dir", "BS3_DIR_PATH=store", "BS3_STATE_PATH=state", "BS3_TRANSPORT=" + transport}
		if transport == "nbd" {
			env = append(env, "BS3_NBD_DEVICE=/dev/nbd0")
		}
		code, _, errs := bs3Main(t, dir, env)
		if code != exitOther || !strings.Contains(errs, remedy) {
			t.Errorf("%s: exit %d, %s", transport, code, errs)
		}
		if names, _ := filepath.Glob(dir + "/*"); len(names) != 0 {
			t.Errorf("%s: there is %v", transport, names)
		}
	}
}
