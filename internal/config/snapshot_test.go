package config

import (
	"strings"
	"testing"
)

// A daemon that serves a snapshot has no address and no device of the volume's own.
func TestForSnapshot(t *testing.T) {
	parse := func(text string) Config {
		t.Helper()
		c, err := Parse("/etc/bs3/disk.toml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, test := range map[string]struct {
		text, snapshot, listen string
		want                   string // the address
		refused                string // or what the error says
	}{
		"by itself":          {"", "s", "", "unix:/run/bs3/disk/nbd.sock.s", ""},
		"another socket":     {"nbd.listen = 'unix:/a'", "v1.0", "", "unix:/a.v1.0", ""},
		"asked for":          {"", "s", "unix:/b", "unix:/b", ""},
		"TCP":                {"nbd.listen = 'tcp:localhost:10809'", "s", "tcp:localhost:10810", "tcp:localhost:10810", ""},
		"TCP, not asked for": {"nbd.listen = 'tcp:localhost:10809'", "s", "", "", "--listen"},
		"any port":           {"nbd.listen = 'tcp:localhost:1'", "s", "tcp:localhost:0", "tcp:localhost:0", ""},
		"the volume's own":   {"nbd.listen = 'unix:/a'", "s", "unix:/a", "", "the volume itself"},
		"no address":         {"", "s", "/b", "", "--listen"},
		"too long":           {"nbd.listen = 'unix:/" + strings.Repeat("a", 90) + "'", strings.Repeat("s", 63), "", "", "107"},
		"no name":            {"", "", "", "", "--snapshot"},
		"null":               {"null = true", "s", "", "", "null"},
	} {
		t.Run(name, func(t *testing.T) {
			c := parse(test.text)
			c.Transport, c.NBD.Device, c.Profiler = TransportAuto, "/dev/nbd0", true
			got, err := c.ForSnapshot(test.snapshot, test.listen)
			if test.refused != "" {
				if err == nil || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || got.NBD.Listen != test.want || got.Snapshot != test.snapshot || got.Name != "disk@"+test.snapshot ||
				got.Transport != TransportNBD || got.NBD.Device != "" || got.Profiler {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}
