package kernel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"
)

// Available returns nil if the kernel has its NBD client. Errors: ErrNoDriver.
func Available() error { return linux().available() }

// DisconnectLeft disconnects the devices that dead servers of the volume left. It
// is for a daemon that shows the volume in another way: what that writes is not in
// the caches of such a device, which therefore must never be taken over. run is
// Options.Run.
func DisconnectLeft(volume, run string, log zerolog.Logger) error {
	return disconnectLeft(linux(), volume, run, log)
}

func disconnectLeft(d driver, volume, run string, log zerolog.Logger) error {
	// Its run goes first, as always: the device may be held open.
	err := (&Device{opts: Options{Run: run}}).forget()
	if err == nil {
		err = disconnectAll(d, volume, "", log)
	}
	if err != nil {
		return fmt.Errorf("kernel NBD: %w", err)
	}
	return nil
}

// disconnectAll disconnects all devices of the volume but the one with backend
// keep.
func disconnectAll(d driver, volume, keep string, log zerolog.Logger) error {
	devices, err := d.devices()
	if err != nil {
		return err
	}
	var errs []error
	for index, backend := range devices {
		if !isOf(backend, volume) || backend == keep {
			continue
		}
		log.Warn().Str("device", blockPath(index)).
			Msg("disconnecting a block device of this volume that cannot be taken over; its users get I/O errors")
		if err := d.disconnect(index); err != nil {
			errs = append(errs, fmt.Errorf("disconnect %s: %w", blockPath(index), err))
		}
	}
	return errors.Join(errs...)
}

// prefix returns the beginning of the backends of a volume's devices.
func prefix(volume string) string { return "bs3:" + volume + ":" }

func isOf(backend, volume string) bool { return strings.HasPrefix(backend, prefix(volume)) }
