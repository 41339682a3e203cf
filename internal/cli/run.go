package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"bs3/internal/config"
	"bs3/internal/daemon"
)

// run runs the daemon.
func (a *app) run(cmd *cobra.Command, _ []string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if a.takeover {
		c.Takeover = config.TakeoverAuto
	}
	c.ForgetLocalLog = a.forget
	if cmd.Flags().Changed("snapshot") {
		if c, err = c.ForSnapshot(a.snapshot, a.listen); err != nil {
			return err
		}
	} else if cmd.Flags().Changed("listen") {
		return errors.New("--listen is for --snapshot; the volume itself is at nbd.listen")
	}
	outliveOutput()
	log := newLogger(os.Stderr, c.Log, isTerminal(os.Stderr))
	for _, name := range config.UnknownVariables(os.Environ()) { //nolint:forbidigo // only their names, to warn of misspelt ones
		log.Warn().Str("variable", name).Msg("this variable sets nothing")
	}
	collect := make(chan struct{}, 1)
	ctx, stop := watchSignals(cmd.Context(), log, collect, func() {
		log.Warn().Str("state", c.State.Path).
			Msg("second signal: exit now; writes that are not in the store stay in the chunk memory for the next start")
		exitNow()
	})
	defer stop()
	return daemon.Run(ctx, c, daemon.Options{Log: log, Collect: collect, Serving: func(t daemon.Transport) {
		if a.local && t.NBD != "" && c.Snapshot == "" {
			printHints(cmd.OutOrStdout(), t.NBD, c.Size)
		}
	}})
}

// printHints prints what can be done with a volume that has just been shown.
func printHints(w io.Writer, uri string, size int64) {
	fmt.Fprintf(w, `
%d GB are being served. Ctrl-C stops; the data stays in .bs3/store. In another terminal:

  nbdinfo '%[2]s'
  nbdcopy --progress SOME-IMAGE '%[2]s'

or a file system, as root (libnbd-bin, fuse3):

  mkdir -p /tmp/bs3 /mnt/bs3 && nbdfuse /tmp/bs3 '%[2]s' &
  mkfs.ext4 /tmp/bs3/nbd                  # the first time
  mount -o loop /tmp/bs3/nbd /mnt/bs3

and to end that, before Ctrl-C here: umount /mnt/bs3 && fusermount3 -u /tmp/bs3

`, size, uri)
}
