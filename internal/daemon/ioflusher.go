package daemon

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// becomeIOFlusher has Linux treat this process as a part of its block layer
// (PR_SET_IO_FLUSHER, prctl(2)): an allocation of ours must not wait for memory
// that is freed by writing to the device that we serve, nor must a write to the
// store's directory wait for other writes that the device holds up.
//
// The state belongs to a thread, and a new thread inherits it. So all existing
// threads get it. A program with cgo may have threads that Go does not know, so
// there it does not work.
func becomeIOFlusher(log zerolog.Logger) {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno == 0 {
		return
	}
	event, why := log.Warn(), error(errno)
	switch {
	case errors.Is(errno, unix.EPERM):
		why = fmt.Errorf("%w: it needs CAP_SYS_RESOURCE", errno)
		if unix.Geteuid() != 0 {
			event = log.Info() // without root nothing is mounted that is written back to us
		}
	case errors.Is(errno, unix.ENOTSUP):
		why = fmt.Errorf("%w: this program was built with cgo", errno)
	}
	event.Err(why).Msg("no PR_SET_IO_FLUSHER: if memory runs short while a file system on the device is written to, both can come to a halt")
}
