package cli

import (
	"context"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bs3/internal/bs3/volume"
	"bs3/internal/stores"
)

// infoFor is how long info asks for one object of a store that does not answer.
// A person waits for it, not a device.
const infoFor = 30 * time.Second

func newInfo(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Print which volume the store holds; changes nothing and disturbs no daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var info *volume.Info
			err := a.askStore(cmd, infoFor, func(ctx context.Context, s *stores.Store) (err error) {
				info, err = volume.ReadInfo(ctx, s)
				return err
			})
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

func printInfo(out io.Writer, v *volume.Info) error {
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
	row("snapshots", "%d", len(v.Snapshots))
	row("as of the newest", "%d objects, %s of data, %s of it live", v.Objects, size(v.StoredBytes), size(v.LiveBytes))
	if v.LiveObjects > 0 {
		row("", "%d objects hold live data, %d full ones would do; it lies in about %d pieces of %s", v.LiveObjects, v.FullObjects, v.Pieces, size(v.LiveBytes/int64(max(1, v.Pieces))))
	}
	row("log after it", "%d objects, %s of data", v.LogObjects, size(v.LogBytes))
	return w.Flush()
}
