package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"bs3/internal/bs3/fsck"
	"bs3/internal/stores"
)

// fsckFor is how long fsck asks for one object of a store that does not answer:
// a store that is away for a moment must not end hours of checking.
const fsckFor = 2 * time.Minute

func newFsck(a *app) *cobra.Command {
	var asJSON, quiet, data, again bool
	var rebuild rebuildFlags
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check everything that the store holds of the volume; changes nothing and disturbs no daemon",
		Long: "fsck checks the volume record, the checkpoints, every object of the log, and the\n" +
			"map that they make. It changes nothing, and may run while a daemon writes. What it\n" +
			"finds is an error, a warning (usual after a crash, but damage looks the same) or a\n" +
			"note (info). If there is any error, the exit code is 65.\n\n" +
			"If the volume record is lost, --rebuild-record makes it again from checkpoints and\n" +
			"objects, prints it, and checks the volume with it. It stores the record only with\n" +
			"--write, and never replaces one. (A daemon that still runs puts the record back by\n" +
			"itself, when something is written or when it stops.)",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if again {
				return a.rebuildRecord(cmd, rebuild, fsck.Options{Data: data}, asJSON, quiet)
			}
			if rebuild != (rebuildFlags{}) {
				return errors.New("--write, --uuid and --size are for --rebuild-record")
			}
			var report *fsck.Report
			err := a.askStore(cmd, fsckFor, func(ctx context.Context, s *stores.Store) (err error) {
				progress, done := showProgress(quiet || asJSON)
				defer done()
				report, err = fsck.Check(ctx, s, fsck.Options{Data: data, Progress: progress})
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printFsck(cmd.OutOrStdout(), report, quiet)
			}
			return errors.Join(err, report.Err())
		},
	}
	addJSON(cmd, &asJSON)
	cmd.Flags().BoolVar(&data, "data", false, "also read all data that the map needs, and check every block")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress, no summary, only errors and warnings")
	cmd.Flags().BoolVar(&again, "rebuild-record", false, "make the lost volume record again, and print it")
	rebuild.add(cmd)
	return cmd
}

// showProgress returns a function that draws a bar on the terminal, or nil if
// there is none or quiet is set. done takes the bar away.
func showProgress(quiet bool) (show func(fsck.Progress), done func()) {
	if quiet || !isTerminal(os.Stderr) {
		return nil, func() {}
	}
	var bar *progressbar.ProgressBar
	var stage string
	var total int64
	done = func() {
		if bar != nil {
			_ = bar.Exit() // what a terminal does not take is lost
		}
	}
	return func(p fsck.Progress) {
		if bar == nil || p.Stage != stage || p.Total != total { // it may not be known at first
			done()
			stage, total = p.Stage, p.Total
			most := total
			if most == 0 {
				most = -1 // not known
			}
			bar = progressbar.NewOptions64(most,
				progressbar.OptionSetDescription(stage),
				progressbar.OptionSetWriter(os.Stderr),
				progressbar.OptionShowCount(),
				progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionClearOnFinish(),
			)
		}
		_ = bar.Set64(p.Done) // as above
	}, done
}

func printFsck(out io.Writer, r *fsck.Report, quiet bool) error {
	for _, f := range r.Findings {
		if !quiet || f.Severity != fsck.SeverityInfo {
			fmt.Fprintln(out, f)
		}
	}
	if more := r.Errors + r.Warnings + r.Infos - len(r.Findings); more > 0 {
		fmt.Fprintf(out, "and %d more\n", more)
	}
	if quiet {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := rows(w)
	row("volume", "%v", r.UUID)
	row("log", "ends before object %d; %d objects read", r.LogEnd, r.Objects)
	row("map", "%s", mapSource(r))
	row("live data", "%s, in objects of %s", size(r.LiveBytes), size(r.StoredBytes))
	row("dead objects", "%d of %s, which garbage collection will free", r.DeadObjects, size(r.DeadBytes))
	if len(r.Snapshots) > 0 {
		row("held by snapshots", "%d objects of %s, which only they need", r.HeldObjects, size(r.HeldBytes))
	}
	if r.GoneObjects > 0 {
		row("", "%d more are in the object table, and deleted", r.GoneObjects)
	}
	if r.Blocks > 0 {
		row("data blocks read", "%d", r.Blocks)
	}
	row("found", "%d errors, %d warnings, %d notes", r.Errors, r.Warnings, r.Infos)
	return w.Flush()
}

func mapSource(r *fsck.Report) string {
	switch n := len(r.Checkpoints); {
	case n == 0:
		return "made from the whole log; there is no checkpoint"
	case r.FromStart:
		return fmt.Sprintf("made from the whole log and compared with %d checkpoints", n)
	case n == 1:
		return "made from the checkpoint and the log after it"
	}
	return "made from the oldest checkpoint and the log after it, and compared with the newest"
}
