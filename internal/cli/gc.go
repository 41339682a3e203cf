package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"bs3/internal/bs3/gc"
	"bs3/internal/daemon"
)

func newGC(a *app) *cobra.Command {
	var asJSON, dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Have the running daemon collect garbage, and wait for it",
		Long: "gc has the running daemon free the space of data that was overwritten or\n" +
			"discarded: live blocks are moved out of objects that hold few of them\n" +
			"(gc.live_data), and objects without live blocks are deleted. SIGUSR1 to the\n" +
			"daemon does the same. Interrupting gc does not stop the collection.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name := daemon.CallGC
			if dryRun {
				name = daemon.CallPlanGC
			} else if !asJSON {
				fmt.Fprintln(cmd.ErrOrStderr(), "the daemon collects garbage; Ctrl-C here does not stop it, and bs3 status shows how it is doing")
			}
			var r gc.Report
			if err := a.call(cmd, name, &r); err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), gcText(r, dryRun))
			}
			if r.FailedReads > 0 {
				return fmt.Errorf("%d objects cannot be read or are damaged: they stay as they are, and the daemon's log names them", r.FailedReads)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be moved and deleted; change nothing")
	addJSON(cmd, &asJSON)
	return cmd
}

// gcText formats the report, or the plan, of a collection for people.
func gcText(r gc.Report, plan bool) string {
	moved, deleted := "moved", "deleted"
	if plan {
		moved, deleted = "would move", "would delete"
	}
	return fmt.Sprintf("%s %s of live data out of %d objects\n%s %d objects, %s of data",
		moved, size(r.MovedBytes), r.Compacted, deleted, r.Deleted, size(r.FreedBytes))
}
