package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
)

// infoFor bounds how long info tries again when the store does not answer. A
// person waits for it, not a device.
const infoFor = 30 * time.Second

func newInfo(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Say what volume the store holds; changes nothing and disturbs no daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := a.info(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), info)
			}
			return printInfo(cmd.OutOrStdout(), info)
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func (a *app) info(cmd *cobra.Command) (info *bs3.VolumeInfo, err error) {
	err = a.askStore(cmd, func(ctx context.Context, s *store) (err error) {
		trying, cancel := withLimit(ctx, infoFor)
		defer cancel()
		info, err = readInfo(ctx, trying, s)
		return err
	})
	return info, err
}

// readInfo asks the store, again after an answer that may change until trying
// ends. How long a good answer takes depends on the length of the log.
func readInfo(ctx, trying context.Context, s *store) (info *bs3.VolumeInfo, err error) {
	var final error
	err = keepTrying(trying, func() error {
		info, final = bs3.Info(ctx, s)
		if errors.Is(final, objproxy.ErrTransient) {
			return final
		}
		return nil
	})
	if err == nil {
		err = final
	}
	return info, s.explain(err)
}

func printInfo(out io.Writer, v *bs3.VolumeInfo) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := rows(w)
	row("volume", "%v", v.UUID)
	row("size", "%s", size(v.Size))
	row("block size", "%d B", v.BlockSize)
	row("chunk size", "%s", size(int64(v.ChunkSize)))
	row("format", "%d", v.Format)
	row("created", "%s", v.Created.Format(time.RFC3339))
	if v.Deleted {
		row("deleted", "yes")
	}
	state := "not released: it is running, or it died"
	if v.Writer.Released {
		state = "released"
	}
	row("epoch", "%d, %s", v.Epoch, state)
	row("writer", "%s (machine %s), pid %d, since %s, state %s", v.Writer.Host, v.Writer.Machine, v.Writer.PID,
		v.Writer.Since.Format(time.RFC3339), v.Writer.StatePath)
	if l := v.LocalLog; l != nil {
		row("local log", "in %s of host %s (machine %s): it may hold flushed writes", l.Path, l.Hostname, l.Host)
	}
	row("checkpoints", "%d", len(v.Checkpoints))
	row("as of the newest", "%d objects, %s of data, %s of it live", v.Objects, size(v.StoredBytes), size(v.LiveBytes))
	row("log after it", "%d objects, %s of data", v.LogObjects, size(v.LogBytes))
	return w.Flush()
}

const (
	// Between two tries: from the first to the second, doubling.
	firstWait, lastWait = 100 * time.Millisecond, 5 * time.Second
)

// keepTrying calls try until it succeeds or ctx ends, waiting longer and
// longer in between. The error wraps the ctx's cause and the last one of try.
func keepTrying(ctx context.Context, try func() error) error {
	wait := firstWait
	for {
		err := try()
		if err == nil {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-timer.C:
		}
		wait = min(2*wait, lastWait)
	}
}

// withLimit bounds ctx by limit; its cause is errStore then.
func withLimit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: no proper answer for %v", errStore, limit))
}
