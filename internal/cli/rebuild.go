package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/volume"
	"bs3/internal/config"
	"bs3/internal/stores"
)

// rebuildFlags are the flags of fsck --rebuild-record.
type rebuildFlags struct {
	write bool
	uuid  string
	size  int64 // GB
}

func (f *rebuildFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.write, "write", false, "with --rebuild-record: store the record, unless there is one")
	cmd.Flags().StringVar(&f.uuid, "uuid", "", "with --rebuild-record: the volume, if there are parts of several")
	cmd.Flags().Int64Var(&f.size, "size", 0, "with --rebuild-record: the size in GB, if no checkpoint tells it (default: that of the configuration)")
}

// rebuildRecord makes the volume record again, prints it, and stores it if the
// flags say so.
func (a *app) rebuildRecord(cmd *cobra.Command, flags rebuildFlags, opts fsck.Options, asJSON, quiet bool) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	var r *fsck.Rebuilt
	err = a.askStore(cmd, fsckFor, func(ctx context.Context, s *stores.Store) (err error) {
		var done func()
		opts.Progress, done = showProgress(quiet || asJSON)
		defer done()
		r, err = fsck.Rebuild(ctx, s, fsck.RebuildOptions{
			Options: opts, UUID: flags.uuid, Size: flags.size * config.GB,
			UsualSize: c.Size * config.GB, ChunkSize: uint32(c.Write.ChunkSize * config.MB),
		})
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), r)
	} else {
		err = printRebuilt(cmd.OutOrStdout(), r, quiet)
	}
	switch {
	case err != nil:
	case flags.write:
		if err = writeRecord(cmd.Context(), c, r); err == nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "the record is stored; open the volume with: bs3 run --takeover")
		}
	default:
		fmt.Fprintln(cmd.ErrOrStderr(), "nothing was stored; to store this record: --write")
	}
	return errors.Join(err, r.Report.Err())
}

// writeRecord stores the record of r in the configured store.
func writeRecord(ctx context.Context, c config.Config, r *fsck.Rebuilt) (err error) {
	ctx, stop := watchSignals(ctx, zerolog.Nop(), nil, exitNow)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, fsckFor, fmt.Errorf("%w: no proper answer for %v", volume.ErrStore, fsckFor))
	defer cancel()
	s, err := stores.OpenToServe(ctx, c, zerolog.Nop())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := r.Write(ctx, s); err != nil {
		return explain(s.Where, fmt.Errorf("store the record: %w", err))
	}
	return nil
}

func printRebuilt(out io.Writer, r *fsck.Rebuilt, quiet bool) error {
	if !quiet {
		fmt.Fprintln(out, "The volume record, and where each value comes from:")
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, v := range r.Values {
			fmt.Fprintf(w, "  %s\t%s\t(%s)\n", v.Name, v.Text, v.From)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(out, "What cannot be known:")
		for _, u := range r.Unknown {
			fmt.Fprintln(out, "  "+u)
		}
		fmt.Fprintln(out, "The volume, checked with this record:")
	}
	return printFsck(out, r.Report, quiet)
}
