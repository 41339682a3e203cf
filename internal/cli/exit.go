package cli

import (
	"errors"
	"os"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/volume"
	"bs3/internal/config"
	"bs3/internal/control"
)

// Exit codes, as in sysexits.h where it has one. A panic of Go exits with 2, so
// 2 is none of ours.
const (
	exitOK       = 0
	exitOther    = 1
	exitDamaged  = 65
	exitStore    = 69
	exitNoDaemon = 75
	exitFenced   = 76
	exitRefused  = 78
)

// exits is the one table of exit codes, for the help and for exitCode. The first
// row whose is returns true counts; the last one takes the rest.
func exits() []exit {
	return []exit{
		{exitOK, "all is well", func(err error) bool { return err == nil }},
		{exitDamaged, "fsck has found damage", func(err error) bool { return errors.Is(err, fsck.ErrDamage) }},
		{exitFenced, "another writer has taken the volume over", func(err error) bool { return errors.Is(err, volume.ErrFenced) }},
		{exitRefused, "the configuration, or the volume as it is configured, is refused; nothing was changed", isRefused},
		{exitStore, volume.ErrStore.Error(), func(err error) bool { return errors.Is(err, volume.ErrStore) }},
		{exitNoDaemon, "no daemon answers on the control socket", func(err error) bool { return errors.Is(err, control.ErrNotRunning) }},
		{exitOther, "any other error", func(error) bool { return true }},
	}
}

type exit struct {
	code    int
	meaning string
	is      func(error) bool
}

func isRefused(err error) bool {
	var c *config.Error
	return errors.As(err, &c) || errors.Is(err, volume.ErrRefused)
}

// exitCode returns the exit code for err.
func exitCode(err error) int {
	for _, e := range exits() {
		if e.is(err) {
			return e.code
		}
	}
	return exitOther
}

// exitNow ends the process without cleaning up: whoever signals twice does not
// want to wait.
func exitNow() { os.Exit(exitOther) } //nolint:forbidigo // this is what the second signal asks for
