package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
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
		"auto, ublk":                 {transport: "auto", ublk: true, nbd: true, want: "ublk", says: "no buse; the ublk driver"},
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
			has := map[string]bool{"buse": test.buse, "ublk": test.ublk, "nbd": test.nbd || test.device == ""}
			lacks := map[string]error{"buse": buse.ErrNoModule, "ublk": ublk.ErrNoDriver, "nbd": kernel.ErrNoDriver}
			known := transports()
			for _, x := range known {
				x.available = func(context.Context, config.Config) error {
					if has[x.name] {
						return nil
					}
					return lacks[x.name]
				}
			}
			var said bytes.Buffer
			got, err := known.choose(t.Context(), c, zerolog.New(&said))
			if test.want == "" {
				if err == nil || test.err != nil && !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.says) {
					t.Fatalf("%v, %v", got, err)
				}
				var refused *config.Error
				if test.err == nil && !errors.As(err, &refused) {
					t.Errorf("it is no refusal: %v", err)
				}
				return
			}
			if err != nil || got.name != test.want {
				t.Fatalf("%v, %v, want %s", got, err, test.want)
			}
			if device := got.fits != nil && got.fits(config.Config{NBD: config.NBD{Device: "/dev/nbd0"}}); device != (test.want == "nbd" && test.device != "") {
				t.Errorf("the NBD server with a device: %v", device)
			}
			if log := said.String(); !strings.Contains(log, `"transport":"`+test.want+`"`) || !strings.Contains(log, test.says) {
				t.Errorf("the log says %s", log)
			}
		})
	}
}

// A machine that can serve, but not as it is asked to, is no reason to take
// another transport.
func TestRefusedTransportIsNotPassedOver(t *testing.T) {
	c := config.Default()
	known := transports()
	for _, x := range known {
		x.available = func(context.Context, config.Config) error { return nil }
	}
	known[0].available = func(_ context.Context, c config.Config) error {
		return refuseBUSE(c, fmt.Errorf("%w: buse0", buse.ErrExists))
	}
	got, err := known.choose(t.Context(), c, zerolog.Nop())
	var refused *config.Error
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "major = 0: must be the number of no existing device") {
		t.Errorf("%v, %v", got, err)
	}
}

// Too little memory is a matter of settings, which are named.
func TestBUSENamesWhatTakesMemory(t *testing.T) {
	c := config.Default()
	c.Threads = 7
	err := refuseBUSE(c, fmt.Errorf("%w: 100 MB", buse.ErrMemory))
	var refused *config.Error
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	for _, text := range []string{"write.shared_buffer_size = 32: ", "read.shared_buffer_size (32)", "threads (7;", "write.memory (160)", "100 MB"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v, which does not say %q", err, text)
		}
	}
	if other := errors.New("another"); !errors.Is(refuseBUSE(c, other), other) || refuseBUSE(c, nil) != nil {
		t.Error("what is no refusal is changed")
	}
	if n := memoryBeside(c); n != 160<<20 {
		t.Errorf("%d bytes beside", n)
	}
	if c.Null = true; memoryBeside(c) != 0 {
		t.Error("the null volume takes memory")
	}
}

// Package config lists the same names as the table of transports.
func TestEveryTransportIsKnown(t *testing.T) {
	names := config.Transports()
	found := map[string]bool{}
	for _, x := range transports() {
		found[x.name] = true
		if !slices.Contains(names, x.name) {
			t.Errorf("the configuration does not know the transport %s", x.name)
		}
		// What has devices that outlive a daemon can find the number of its own taken.
		if (x.removeLeft == nil) != (x.vacant == nil) {
			t.Errorf("transport %s (%s): it is asked whether its number is free: %v", x.name, x.why, x.vacant != nil)
		}
	}
	for _, name := range names {
		if !found[name] {
			t.Errorf("there is no transport %s", name)
		}
	}
}

// Before one transport serves, the devices of all others go; while a volume
// that is not whole is opened, all go.
func TestRemoveLeft(t *testing.T) {
	broken := errors.New("it stays")
	var removed []string
	known := transports()
	for i, x := range known {
		if x.removeLeft != nil {
			x.removeLeft = func(context.Context, *served, zerolog.Logger) error {
				removed = append(removed, fmt.Sprint(i, x.name))
				return broken
			}
		}
	}
	for _, test := range []struct {
		keep *transport
		want []string
	}{
		{nil, []string{"1ublk", "2nbd"}},
		{known[0], []string{"1ublk", "2nbd"}},
		{known[1], []string{"2nbd"}},
		{known[2], []string{"1ublk"}},
		{known[3], []string{"1ublk", "2nbd"}}, // the server alone
	} {
		removed = nil
		if err := known.removeLeft(t.Context(), &served{}, test.keep, zerolog.Nop()); !errors.Is(err, broken) {
			t.Errorf("it ends with %v", err)
		}
		if !slices.Equal(removed, test.want) {
			t.Errorf("beside %v: %v, want %v", test.keep, removed, test.want)
		}
	}
}

// The configuration and BUSE accept the same: BUSE's rules are in package config
// too, which knows the keys.
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

// The kernel's device ends before the server that it is connected to.
func TestServerOutlivesItsDevice(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	server, listening := nullServer(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	attached, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- runNBD(ctx, server, listening, func(ctx context.Context, _ net.Addr) error {
			close(attached)
			<-ctx.Done()
			conn, err := net.Dial("unix", address) // it still takes connections
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			hello := make([]byte, 16)
			if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "NBDMAGICIHAVEOPT" {
				return fmt.Errorf("the greeting is %q, %w", hello, err)
			}
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
	err := runNBD(t.Context(), server, listening, func(context.Context, net.Addr) error { return broken })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	server, listening = nullServer(t, filepath.Join(t.TempDir(), "no", "such"))
	err = runNBD(t.Context(), server, listening, func(context.Context, net.Addr) error {
		t.Error("attached to a server that does not listen")
		return nil
	})
	if err == nil {
		t.Error("a server that cannot listen ends well")
	}
}

// What a path may have and a URI may not is escaped; the rest stays readable.
func TestURI(t *testing.T) {
	for _, test := range []struct {
		addr net.Addr
		want string
	}{
		{&net.UnixAddr{Name: "/run/bs3/config/nbd.sock", Net: "unix"}, "nbd+unix:///?socket=/run/bs3/config/nbd.sock"},
		{&net.UnixAddr{Name: "/a b+c&d#e%41'/é", Net: "unix"}, "nbd+unix:///?socket=/a%20b%2Bc%26d%23e%2541%27/%C3%A9"},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 10809}, "nbd://[::1]:10809"},
	} {
		if got := uri(test.addr); got != test.want {
			t.Errorf("%v is %s, want %s", test.addr, got, test.want)
		}
	}
}
