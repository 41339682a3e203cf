package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"bs3/internal/device/blockdev"
)

// obtain returns a device to serve: one that a dead server of this volume left, if
// that may be taken over (taken), or a new one. It removes those that may not.
func (s *Server) obtain(ctx context.Context, m *manager) (info devInfo, taken bool, err error) {
	if info, taken, err = s.claim(ctx, m); taken || err != nil {
		return info, taken, err
	}
	want := devInfo{
		queues: uint16(s.opts.Queues), depth: uint16(s.opts.QueueDepth), maxIOBytes: maxIOBytes,
		id: anyID, serverFlags: s.opts.Identity,
	}
	if s.opts.ID >= 0 {
		want.id = uint32(s.opts.ID)
	}
	if err := s.unmark(); err != nil { // for a device that is gone
		return info, false, err
	}
	// The number of a removed device becomes free a moment after its last user left.
	added, err := blockdev.Await(ctx, holdWait, func() (bool, error) {
		info, err = m.add(want, newParams(s.vol.Geometry()))
		if errors.Is(err, unix.EEXIST) {
			return false, nil
		}
		return true, err
	})
	if err == nil && !added {
		err = fmt.Errorf("%w: %s: %w", ErrInUse, blockPath(s.opts.ID), ErrHeld)
	} else if err != nil {
		err = fmt.Errorf("add a device: %w", err)
	}
	return info, false, err
}

// claim takes over a device that a dead server of this volume left (taken), or
// removes it.
func (s *Server) claim(ctx context.Context, m *manager) (info devInfo, taken bool, err error) {
	ids, err := s.driver.devices()
	if err != nil {
		return info, false, fmt.Errorf("list the devices: %w", err)
	}
	for _, id := range ids {
		info, err := m.info(uint32(id))
		switch {
		case errors.Is(err, unix.ENODEV): // it has just gone
		case err != nil:
			return info, false, fmt.Errorf("ask for device %d: %w", id, err)
		case !s.owns(info):
			if id == s.opts.ID {
				return info, false, s.others(info)
			}
		default:
			taken, err := s.takeOver(ctx, m, info)
			if taken || err != nil {
				return info, taken, err
			}
		}
	}
	return info, false, nil
}

// owns reports whether a device is of this volume.
func (s *Server) owns(info devInfo) bool {
	return s.opts.Identity != 0 && info.serverFlags == s.opts.Identity
}

// others returns the error of a number that another volume's device has.
func (s *Server) others(info devInfo) error {
	return fmt.Errorf("%w: %s is not of this volume (server process %d, %s)",
		ErrInUse, blockPath(int(info.id)), info.pid, stateName(info.state))
}

// elsewhere returns the error of a device of this volume that waits under another
// number.
func (s *Server) elsewhere(info devInfo) error {
	return fmt.Errorf("%w: %s of this volume waits for a server, but this one is to serve %s",
		ErrInUse, blockPath(int(info.id)), blockPath(s.opts.ID))
}

// takeOver takes over a device of this volume from its dead server, or removes it
// (false).
func (s *Server) takeOver(ctx context.Context, m *manager, info devInfo) (taken bool, err error) {
	id, path := info.id, blockPath(int(info.id))
	log := s.opts.Log.With().Str("device", path).Int32("dead_server", info.pid).Logger()
	// The kernel needs a moment to notice that a server is dead.
	left, err := blockdev.Await(ctx, deathWait, func() (bool, error) {
		info, err = m.info(id)
		return info.state != stateLive, err
	})
	if errors.Is(err, unix.ENODEV) {
		return false, nil // it has removed itself
	}
	if err != nil {
		return false, fmt.Errorf("wait for the last server of %s to end: %w", path, err)
	}
	if !left {
		return false, fmt.Errorf("%w: %s is served by process %d", ErrInUse, path, info.pid)
	}
	p, err := m.params(id)
	if err != nil {
		return false, fmt.Errorf("ask for the parameters of %s: %w", path, err)
	}
	switch {
	case info.state != stateQuiesced || info.flags&flagUserRecoveryReissue == 0:
		log.Info().Msg("removing a stopped block device of this volume")
	case !s.opts.Recover:
		log.Warn().Msg("removing the block device, which this daemon cannot take over; its users get I/O errors")
	case s.marked():
		log.Warn().Msg("removing the block device: a server died while taking it over; its users get I/O errors")
	case !p.fits(s.vol.Geometry()):
		log.Warn().Msg("removing the block device: the volume's geometry has changed; its users get I/O errors")
	case s.opts.ID >= 0 && id != uint32(s.opts.ID):
		return false, s.elsewhere(info)
	default:
		log.Info().Msg("taking the block device over")
		return true, s.resume(ctx, m, id)
	}
	if err := m.stop(id); err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("stop %s: %w", path, err)
	}
	err = m.remove(ctx, id)
	if errors.Is(err, ErrHeld) && id != uint32(s.opts.ID) {
		log.Warn().Err(err).Msg("the number of the block device stays in use")
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("remove %s: %w", path, err)
	}
	return false, err
}

// resume prepares the device of a dead server for this one.
func (s *Server) resume(ctx context.Context, m *manager, id uint32) error {
	ready, err := blockdev.Await(ctx, deathWait, func() (bool, error) {
		err := m.startRecovery(id)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL):
			// EINVAL: an earlier server began this, and died before it had a queue.
			return true, nil
		case errors.Is(err, unix.EBUSY): // the dead one still has it open
			return false, nil
		}
		return false, err
	})
	if err == nil && !ready {
		err = fmt.Errorf("%w: its last server does not close it", ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("take over %s: %w", blockPath(int(id)), err)
	}
	return nil
}

// mark records that a device may be half taken over from now on.
func (s *Server) mark() error {
	if s.opts.Marker == "" {
		return nil
	}
	return os.WriteFile(s.opts.Marker, nil, 0o600)
}

// marked reports whether a server died between mark and unmark.
func (s *Server) marked() bool {
	_, err := os.Stat(s.opts.Marker)
	return s.opts.Marker != "" && err == nil
}

// unmark records that no device is half taken over.
func (s *Server) unmark() error {
	if s.opts.Marker == "" {
		return nil
	}
	if err := os.Remove(s.opts.Marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// stateName returns a name for people.
func stateName(state uint16) string {
	switch state {
	case stateDead:
		return "stopped"
	case stateLive:
		return "live"
	case stateQuiesced:
		return "waiting for a server"
	default:
		return fmt.Sprintf("state %d", state)
	}
}
