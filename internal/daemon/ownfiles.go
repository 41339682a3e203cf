package daemon

import (
	"errors"
	"fmt"
	"strconv"

	"bs3/internal/config"
)

// refuseOwnDevice refuses directories of the daemon that lie on the device
// that it serves: its requests would wait for themselves. If a killed daemon has
// left that device, the first look into such a directory would wait already, so
// this comes before anything is touched. below is blockdev.Below; own reports
// whether a device, as sysfs calls it, may be the one of the volume that c
// describes. Errors: *config.Error.
func refuseOwnDevice(c config.Config, below func(path string, f func(device string) error) error,
	own func(c config.Config, device string) (bool, error),
) error {
	if c.Null {
		return nil
	}
	var problems []config.Problem
	for _, d := range c.Directories() {
		err := below(d.Path, func(device string) error {
			is, err := own(c, device)
			if err == nil && is {
				err = &ownDeviceError{device}
			}
			return err
		})
		var found *ownDeviceError
		switch {
		case errors.As(err, &found):
			problems = append(problems, config.Problem{Key: d.Key, Value: strconv.Quote(d.Path), Rule: "must not lie on " + found.Error()})
		case err != nil:
			return fmt.Errorf("%s = %q: find out on which device it lies: %w", d.Key, d.Path, err)
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
