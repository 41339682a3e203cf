package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"bs3/internal/config"
	"bs3/internal/device/ublk"
)

// ground is how it is found out on what a directory lies.
type ground struct {
	below func(path string, f func(device string) error) error // as blockdev.Below
	waits func(device string) (bool, error)                    // as ublk.Waits
}

// refuseOwnDevice refuses directories of the daemon that lie on the device
// that it serves: its requests would wait for themselves, and at the start, with
// a device that a killed daemon has left, already the first look into them. So
// it comes before anything is touched. Errors: *config.Error.
func (g ground) refuseOwnDevice(c config.Config) error {
	if c.Null {
		return nil
	}
	dirs := []config.Problem{{Key: "state.path", Value: c.State.Path}}
	if c.Cache.Path != "" {
		dirs = append(dirs, config.Problem{Key: "cache.path", Value: c.Cache.Path})
	}
	if c.Store == config.StoreDir {
		dirs = append(dirs, config.Problem{Key: "dir.path", Value: c.Dir.Path})
	}
	var problems []config.Problem
	for _, p := range dirs {
		err := g.below(p.Value, func(device string) error {
			own, err := g.isOwn(c, device)
			if err == nil && own {
				err = &ownDeviceError{device}
			}
			return err
		})
		var own *ownDeviceError
		switch {
		case errors.As(err, &own):
			p.Value, p.Rule = strconv.Quote(p.Value), "must not lie on "+own.Error()
			problems = append(problems, p)
		case err != nil:
			return fmt.Errorf("%s = %q: on which device it lies: %w", p.Key, p.Value, err)
		}
	}
	if len(problems) > 0 {
		return &config.Error{Problems: problems}
	}
	return nil
}

// ownDeviceError ends a look at what is below a path.
type ownDeviceError struct{ device string }

func (e *ownDeviceError) Error() string {
	return "/dev/" + e.device + ", which is the device of this volume, or waits for its daemon"
}

// isOwn says whether a device, as sysfs calls it, may be the one of the volume
// that c describes. That of a dead daemon may be any that waits for a server;
// whatever it is, it must not be waited for.
func (g ground) isOwn(c config.Config, device string) (bool, error) {
	switch device {
	case filepath.Base(c.NBD.Device), "ublkb" + strconv.Itoa(c.Ublk.ID):
		return true, nil
	case "buse" + strconv.Itoa(c.Major):
		return c.Transport == config.TransportBUSE || c.Transport == config.TransportAuto, nil
	}
	waiting, err := g.waits(device)
	if errors.Is(err, ublk.ErrNoDriver) || errors.Is(err, fs.ErrPermission) {
		return false, nil // no server of ours can have had it
	}
	return waiting, err
}
