package daemon

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"bs3/internal/config"
	"bs3/internal/device/ublk"
)

func TestRefuseOwnDevice(t *testing.T) {
	dead := errors.New("too late")
	lies := map[string][]string{ // what each directory lies on
		"/run/bs3/x": nil, "/disk": {"vda"}, "/ublk": {"vda", "ublkb0"}, "/part": {"vda", "ublkb0p1", "ublkb0"}, "/waits": {"vda", "ublkb7"},
		"/nbd": {"nbd0"}, "/buse": {"buse0"}, "/odd": {"odd"},
	}
	below := func(path string, f func(string) error) error {
		for _, device := range lies[path] {
			if err := f(device); err != nil {
				return err
			}
		}
		if path == "/ublk" {
			return dead // its device was refused, and it was still looked at
		}
		return nil
	}
	waits := func(device string) (bool, error) {
		if device == "odd" {
			return false, errors.New("odd")
		}
		return device == "ublkb7", nil
	}
	known := transports()
	for _, x := range known {
		if x.name == config.TransportUblk {
			x.own = ublkOwn(func(device string) (bool, error) { return waits(device) })
		}
	}
	for name, test := range map[string]struct {
		change  func(c *config.Config)
		refused []string // keys
	}{
		"nowhere":                   {func(*config.Config) {}, nil},
		"on a disk":                 {func(c *config.Config) { c.State.Path, c.Cache.Path = "/disk", "/disk" }, nil},
		"on its ublk device":        {func(c *config.Config) { c.State.Path, c.Ublk.ID = "/ublk", 0 }, []string{"state.path"}},
		"on a partition of it":      {func(c *config.Config) { c.Cache.Path, c.Ublk.ID = "/part", 0 }, []string{"cache.path"}},
		"on another ublk device":    {func(c *config.Config) { c.State.Path, c.Ublk.ID = "/part", 1 }, nil},
		"on one without a daemon":   {func(c *config.Config) { c.State.Path = "/waits" }, []string{"state.path"}},
		"on its NBD device":         {func(c *config.Config) { c.State.Path, c.NBD.Device = "/nbd", "/dev/nbd0" }, []string{"state.path"}},
		"on another NBD device":     {func(c *config.Config) { c.State.Path, c.NBD.Device = "/nbd", "/dev/nbd1" }, nil},
		"on its BUSE device":        {func(c *config.Config) { c.State.Path = "/buse" }, []string{"state.path"}},
		"on another's BUSE device":  {func(c *config.Config) { c.State.Path, c.Transport = "/buse", "ublk" }, nil},
		"the store":                 {func(c *config.Config) { c.Store, c.Dir.Path, c.Ublk.ID = "dir", "/part", 0 }, []string{"dir.path"}},
		"a store that is not used":  {func(c *config.Config) { c.Dir.Path, c.Ublk.ID = "/part", 0 }, nil},
		"all that is wrong at once": {func(c *config.Config) { c.State.Path, c.Cache.Path = "/waits", "/buse" }, []string{"state.path", "cache.path"}},
		"nothing to look at":        {func(c *config.Config) { c.Null, c.State.Path = true, "/waits" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.Default()
			c.State.Path = "/run/bs3/x"
			test.change(&c)
			err := refuseOwnDevice(c, below, known.own)
			if len(test.refused) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var refused *config.Error
			if !errors.As(err, &refused) || len(refused.Problems) != len(test.refused) {
				t.Fatalf("%v", err)
			}
			for i, key := range test.refused {
				if p := refused.Problems[i]; p.Key != key || !strings.Contains(p.Rule, "/dev/") {
					t.Errorf("%v, want %s", p, key)
				}
			}
		})
	}

	c := config.Default()
	c.State.Path = "/odd"
	if err := refuseOwnDevice(c, below, known.own); err == nil || !strings.Contains(err.Error(), "state.path") {
		t.Errorf("a device that cannot be found out: %v", err)
	}
	for _, no := range []error{ublk.ErrNoDriver, fs.ErrPermission} {
		waits = func(string) (bool, error) { return false, no }
		if err := refuseOwnDevice(c, below, known.own); err != nil {
			t.Errorf("%v: %v", no, err)
		}
	}
}
