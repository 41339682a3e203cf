package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/device/blockdev"
)

// Available returns nil if this process can use the ublk driver of the kernel, or
// why it cannot. Errors: ErrNoDriver.
func Available() error { return available(linux{}) }

func available(d driver) error {
	ctl, err := openControl(d)
	if err != nil {
		return err
	}
	return ctl.close()
}

// openControl opens the control device. Errors: ErrNoDriver.
func openControl(d driver) (control, error) {
	ctl, err := d.control()
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNoDriver, err)
	}
	return ctl, err
}

// RemoveLeft removes the devices that dead servers of the volume with this identity
// left. It is for a daemon that shows the volume in another way: what that writes
// is not in the caches of such a device, which therefore must never be taken over.
// Without a driver, or the right to use it, there is nothing to do.
func RemoveLeft(ctx context.Context, identity uint64, log zerolog.Logger) error {
	return removeLeft(ctx, linux{}, identity, log)
}

func removeLeft(ctx context.Context, d driver, identity uint64, log zerolog.Logger) error {
	ctl, err := openControl(d)
	if errors.Is(err, ErrNoDriver) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ublk: %w", err)
	}
	s := &Server{opts: Options{ID: -1, Identity: identity, Log: log}, driver: d}
	_, _, err = s.claim(ctx, newManager(ctl))
	if err = errors.Join(err, ctl.close()); err != nil {
		return fmt.Errorf("ublk: remove the devices that dead servers have left: %w", err)
	}
	return nil
}

// Vacant returns nil if a server of the volume with this identity can have
// /dev/ublkbN, N being id: there is no such device, or it is the volume's own. A
// negative id can always be had. Server.Run asks as well, but then the volume is
// open. Vacant changes nothing, except that it removes a device of the volume that
// was stopped. Errors: ErrNoDriver, ErrInUse, ErrHeld.
func Vacant(ctx context.Context, id int, identity uint64) error {
	return vacant(ctx, linux{}, id, identity)
}

func vacant(ctx context.Context, d driver, id int, identity uint64) error {
	if id < 0 {
		return nil
	}
	ctl, err := openControl(d)
	if err == nil {
		s := &Server{opts: Options{ID: id, Identity: identity}, driver: d}
		err = errors.Join(s.vacant(ctx, newManager(ctl)), ctl.close())
	}
	if err != nil {
		return fmt.Errorf("ublk: %w", err)
	}
	return nil
}

func (s *Server) vacant(ctx context.Context, m *manager) error {
	ids, err := s.driver.devices()
	if err != nil {
		return fmt.Errorf("list the devices: %w", err)
	}
	for _, id := range ids {
		info, err := m.info(uint32(id))
		switch {
		case errors.Is(err, unix.ENODEV): // it has just gone
		case err != nil:
			return fmt.Errorf("ask for device %d: %w", id, err)
		case id == s.opts.ID && !s.owns(info):
			return s.others(info)
		case id == s.opts.ID && info.state == stateDead:
			return m.remove(ctx, info.id)
		case id == s.opts.ID:
			return nil
		case s.owns(info) && info.state == stateQuiesced:
			return s.elsewhere(info)
		}
	}
	// A removed device that is still open is no longer listed.
	gone, err := blockdev.Await(ctx, holdWait, func() (bool, error) {
		_, err := m.info(uint32(s.opts.ID))
		if errors.Is(err, unix.ENODEV) {
			return true, nil
		}
		return false, err
	})
	if err == nil && !gone {
		err = ErrHeld
	}
	if err != nil {
		return fmt.Errorf("%s: %w", blockPath(s.opts.ID), err)
	}
	return nil
}

// Waits reports whether a block device, by its name in sysfs (ublkbN), is a ublk
// device whose server has died: its requests wait for the next server.
func Waits(name string) (bool, error) { return waits(linux{}, name) }

func waits(d driver, name string) (bool, error) {
	number, ours := strings.CutPrefix(name, "ublkb")
	id, err := strconv.ParseUint(number, 10, 32)
	if !ours || err != nil {
		return false, nil //nolint:nilerr // not a ublk device
	}
	ctl, err := openControl(d)
	if err != nil {
		return false, fmt.Errorf("ublk: %w", err)
	}
	info, err := newManager(ctl).info(uint32(id))
	switch err = errors.Join(err, ctl.close()); {
	case errors.Is(err, unix.ENODEV): // its remaining users get errors
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ublk: ask for %s: %w", name, err)
	}
	// The kernel needs a moment to notice that a server is dead.
	dead := errors.Is(unix.Kill(int(info.pid), 0), unix.ESRCH)
	return info.state == stateQuiesced || info.state == stateLive && dead, nil
}
