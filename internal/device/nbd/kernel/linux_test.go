package kernel

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// talk is a client whose kernel answers with fn.
func talk(fn genltest.Func) client {
	nbdFamily := genetlink.Family{ID: 0x1c, Name: family, Version: familyVersion}
	return client{dial: func() (*genetlink.Conn, error) { return genltest.Dial(genltest.ServeFamily(nbdFamily, fn)), nil }}
}

// What the kernel receives, by its own numbers (linux/nbd-netlink.h).
func TestMessages(t *testing.T) {
	to := connection{index: 3, size: 8 << 30, blockSize: 4096, flags: 0x165, deadTimeout: time.Hour, backend: "bs3:v:R", socket: 17}
	again := map[string]string{"1": "3", "2": "8589934592", "3": "4096", "5": "357", "7.1.1": "17", "8": "3600", "10": "bs3:v:R"}
	whole := maps.Clone(again)
	whole["4"] = "0"
	for name, test := range map[string]struct {
		do      func(client) error
		command uint8
		want    map[string]string
	}{
		"connect":    {func(c client) error { return c.connect(to) }, 1, whole},
		"reconnect":  {func(c client) error { return c.reconnect(to) }, 3, again},
		"disconnect": {func(c client) error { return c.disconnect(3) }, 2, map[string]string{"1": "3"}},
	} {
		t.Run(name, func(t *testing.T) {
			told := map[string]string{}
			err := test.do(talk(func(g genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
				if g.Header.Command != test.command || n.Header.Flags != netlink.Request|netlink.Acknowledge {
					t.Errorf("header %+v, %+v", g.Header, n.Header)
				}
				return []genetlink.Message{{}}, decode(told, g.Data)
			}))
			if err != nil || !maps.Equal(told, test.want) {
				t.Errorf("told %v, %v, want %v", told, err, test.want)
			}
			err = test.do(talk(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
				return nil, genltest.Error(int(unix.EBUSY))
			}))
			if !errors.Is(err, unix.EBUSY) {
				t.Errorf("the kernel's error becomes %v", err)
			}
		})
	}
}

// decode adds the attributes of b to told.
func decode(told map[string]string, b []byte) error {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	for d.Next() {
		name := fmt.Sprint(d.Type())
		switch d.Type() {
		case 1:
			told[name] = fmt.Sprint(d.Uint32())
		case 2, 3, 4, 5, 8:
			told[name] = fmt.Sprint(d.Uint64())
		case 10:
			told[name] = d.String()
		case 7:
			d.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					item := fmt.Sprint(name, ".", list.Type())
					list.Nested(func(fds *netlink.AttributeDecoder) error {
						for fds.Next() {
							told[fmt.Sprint(item, ".", fds.Type())] = fmt.Sprint(fds.Uint32())
						}
						return nil
					})
				}
				return nil
			})
		default:
			return fmt.Errorf("attribute %d", d.Type())
		}
	}
	return d.Err()
}

func TestAvailable(t *testing.T) {
	if err := talk(nil).available(); err != nil {
		t.Error(err)
	}
	without := client{dial: func() (*genetlink.Conn, error) {
		return genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(unix.ENOENT))
		}), nil
	}}
	if err := without.available(); !errors.Is(err, ErrNoDriver) {
		t.Errorf("without the module: %v", err)
	}
	broken := client{dial: func() (*genetlink.Conn, error) { return nil, unix.EPERM }}
	if err := broken.available(); !errors.Is(err, unix.EPERM) || errors.Is(err, ErrNoDriver) {
		t.Errorf("without netlink: %v", err)
	}
}

func TestSysfs(t *testing.T) {
	c := client{sysfs: t.TempDir()}
	for file, text := range map[string]string{
		"nbd0/pid": "17\n", "nbd0/backend": "bs3:vol:RUN\n", "nbd0/queue/io_timeout": "30000\n",
		"nbd1/size": "0\n",
		"nbd2/pid":  "18\n",
		"nbd3/pid":  "19\n", "nbd3/backend": "\n",
		"nbdx/backend": "nonsense\n", "sda/backend": "x\n",
	} {
		path := filepath.Join(c.sysfs, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for index, want := range []struct {
		backend   string
		connected bool
	}{{"bs3:vol:RUN", true}, {"", false}, {"", true}, {"", true}, {"", false}} {
		if backend, connected, err := c.backend(index); backend != want.backend || connected != want.connected || err != nil {
			t.Errorf("nbd%d: %q, %v, %v", index, backend, connected, err)
		}
	}
	if list, err := c.devices(); err != nil || !maps.Equal(list, map[int]string{0: "bs3:vol:RUN"}) {
		t.Errorf("devices %v, %v", list, err)
	}
	if err := c.stuckAfter(0, 2*time.Second); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(c.sysfs, "nbd0/queue/io_timeout")); err != nil || string(text[:4]) != "2000" {
		t.Errorf("io_timeout %q, %v", text, err)
	}
}
