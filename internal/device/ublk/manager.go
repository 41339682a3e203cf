package ublk

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bs3/internal/device/blockdev"
)

const (
	// deathWait bounds how long a dying server may take to let go of its device.
	deathWait = 30 * time.Second
	// holdWait bounds how long the users of a removed device may take to close it.
	holdWait = 5 * time.Second
)

// manager sends control commands.
type manager struct {
	ctl      control
	features uint64 // of the driver; 0 if it cannot report them
	legacy   bool   // the driver knows no encoded commands, or few
}

func newManager(ctl control) *manager {
	m := &manager{ctl: ctl}
	// Drivers before Linux 6.5 do not know this command and return all sorts of
	// errors. They know the old numbers, which newer ones may not.
	err := m.command(cmdGetFeatures, anyID, bytesOf(&m.features))
	m.legacy = err != nil
	return m
}

// bytesOf returns the memory of a struct of the ABI.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

func (m *manager) command(nr, id uint32, data []byte) error {
	return m.commandWithin(0, nr, id, data, 0)
}

func (m *manager) commandWithin(limit time.Duration, nr, id uint32, data []byte, value uint64) error {
	op := encode(nr)
	if m.legacy {
		op = nr
	}
	return m.ctl.command(op, ctrlCmd{devID: id, queueID: noQueue, data: [2]uint64{value}}, data, limit)
}

// info returns the description of a device. Errors: ENODEV if there is none.
func (m *manager) info(id uint32) (info devInfo, err error) {
	err = m.command(cmdGetDevInfo, id, bytesOf(&info))
	return info, err
}

// add makes a device and sets its parameters. want.id may be anyID.
func (m *manager) add(want devInfo, p params) (devInfo, error) {
	info := want
	info.flags = flagUserRecovery | flagUserRecoveryReissue
	if m.features&flagUserCopy != 0 {
		info.flags |= flagUserCopy
	} else {
		info.flags |= flagNeedGetData
	}
	if err := m.command(cmdAddDev, want.id, bytesOf(&info)); err != nil {
		return info, err
	}
	// Now info has the flags that the driver knows.
	err := m.command(cmdSetParams, info.id, bytesOf(&p))
	if err == nil && info.flags&(flagUserCopy|flagNeedGetData) == 0 {
		err = errors.New("the driver and this server have no common way to copy data")
	}
	if err != nil {
		return info, errors.Join(fmt.Errorf("set up device %d: %w", info.id, err), m.command(cmdDelDev, info.id, nil))
	}
	return info, nil
}

// params returns the parameters of a device.
func (m *manager) params(id uint32) (params, error) {
	p := params{len: uint32(unsafe.Sizeof(params{}))}
	err := m.command(cmdGetParams, id, bytesOf(&p))
	return p, err
}

// start makes the block device appear. It waits for the reads that look for
// partitions.
func (m *manager) start(id uint32, pid int) error {
	return m.commandWithin(0, cmdStartDev, id, nil, uint64(pid))
}

// startRecovery prepares a device whose server died for another one.
func (m *manager) startRecovery(id uint32) error { return m.command(cmdStartUserRecovery, id, nil) }

// endRecovery releases the requests that have waited.
func (m *manager) endRecovery(id uint32, pid int) error {
	return m.commandWithin(0, cmdEndUserRecovery, id, nil, uint64(pid))
}

// stop removes the block device after the requests in flight. Those that wait for a
// new server fail.
func (m *manager) stop(id uint32) error { return m.command(cmdStopDev, id, nil) }

// remove removes a stopped device. It is no error if that is already gone. Errors:
// ErrHeld.
func (m *manager) remove(ctx context.Context, id uint32) error {
	err := m.tryRemove(ctx, id)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (m *manager) tryRemove(ctx context.Context, id uint32) error {
	if !m.legacy {
		err := m.command(cmdDelDevAsync, id, nil)
		if err == nil {
			var gone bool
			gone, err = blockdev.Await(ctx, holdWait, func() (bool, error) {
				_, err := m.info(id)
				if errors.Is(err, unix.ENODEV) {
					return true, nil
				}
				return false, err
			})
			if err == nil && !gone {
				err = ErrHeld
			}
		}
		if !errors.Is(err, unix.EOPNOTSUPP) { // Linux 6.5 to 6.8
			return err
		}
	}
	// Before Linux 6.3 nothing interrupts the wait of this command for the users.
	err := m.commandWithin(holdWait, cmdDelDev, id, nil, 0)
	if errors.Is(err, errLimit) {
		err = ErrHeld
	}
	return err
}
