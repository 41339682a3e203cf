package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	"bs3/internal/device"
)

// Available returns nil if the kernel has its NBD client. Errors: ErrNoDriver.
func Available() error { return linux().available() }

// Vacant returns nil if the volume can have the device with this index: it is not
// connected, or it may be taken over. Device.Run asks as well, but then the volume
// is open. Vacant changes nothing, except that it disconnects the device if it is of
// the volume and must not be taken over. run is Options.Run. Errors: ErrNoDriver;
// ErrInUse, with or without ErrHeld.
func Vacant(ctx context.Context, index int, volume, run string, log zerolog.Logger) error {
	d := New(device.Geometry{}, nil, Options{Index: index, Volume: volume, Run: run, Recover: true, Log: log})
	if err := d.vacant(ctx); err != nil {
		return fmt.Errorf("kernel NBD device %s: %w", d.path(), err)
	}
	return nil
}

func (d *Device) vacant(ctx context.Context) error {
	if err := d.driver.available(); err != nil {
		return err
	}
	keep, err := d.remembered()
	if err != nil {
		return err
	}
	backend, connected, err := d.driver.backend(d.opts.Index)
	if err != nil || !connected || keep != "" && backend == keep {
		return err
	}
	if isOf(backend, d.opts.Volume) {
		if err := disconnect(d.driver, d.opts.Index, d.opts.Log); err != nil {
			return err
		}
	}
	return d.awaitFree(ctx)
}

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
		errs = append(errs, disconnect(d, index, log))
	}
	return errors.Join(errs...)
}

// disconnect disconnects a device of the volume.
func disconnect(d driver, index int, log zerolog.Logger) error {
	log.Warn().Str("device", blockPath(index)).
		Msg("disconnecting a block device of this volume that cannot be taken over; its users get I/O errors")
	if err := d.disconnect(index); err != nil {
		return fmt.Errorf("disconnect %s: %w", blockPath(index), err)
	}
	return nil
}

// prefix returns the beginning of the backends of a volume's devices.
func prefix(volume string) string { return "bs3:" + volume + ":" }

func isOf(backend, volume string) bool { return strings.HasPrefix(backend, prefix(volume)) }
