package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"bs3/internal/bs3"
	"bs3/internal/bs3/volume"
	"bs3/internal/control"
	"bs3/internal/daemon"
	"bs3/internal/stores"
)

// snapshotFor is how long a request for a snapshot without a daemon is tried again
// while the store does not answer: what was read until then would be read again.
const snapshotFor = 2 * time.Minute

func newSnapshot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Make, list and delete snapshots: the volume as it was at one moment",
		Long: "A snapshot is the volume as it was at one moment. Nothing is copied for it, and no\n" +
			"I/O waits; what it holds is not deleted until it is. The volume record names it:\n" +
			"whoever can use the store can make one, with the daemon or without.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("one of create, list or delete is missing; see bs3 help snapshot")
		},
	}
	cmd.AddCommand(newSnapshotCreate(a), newSnapshotList(a), newSnapshotDelete(a))
	return cmd
}

func newSnapshotCreate(a *app) *cobra.Command {
	var offline bool
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Keep the volume as it is now under a name",
		Long: "create has the running daemon keep the volume as it is now, with everything that\n" +
			"was acknowledged, and waits until all of that is in the store. If no daemon\n" +
			"answers, or with --offline, it makes the snapshot of what is durable in the store,\n" +
			"also beside a daemon on another host, which need not be told. What a daemon has\n" +
			"acknowledged and not stored yet is not in it then.\n\n" +
			"A name is " + bs3.SnapshotNameRule + ".\n" +
			"Whether an interrupted create has made the snapshot, bs3 snapshot list tells.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.createSnapshot(cmd, args[0], offline) },
	}
	addOffline(cmd, &offline)
	return cmd
}

func newSnapshotList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print the snapshots of the volume in the store, newest last; needs no daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l snapshotList
			err := a.askStore(cmd, infoFor, func(ctx context.Context, s *stores.Store) error {
				v, err := volume.Find(ctx, s)
				if err != nil {
					return err
				}
				l = snapshotList{v.UUID.String(), volume.InfoOfAll(v.Snapshots)}
				return nil
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), l)
			}
			return printSnapshots(cmd.OutOrStdout(), l.Snapshots)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return cmd
}

func newSnapshotDelete(a *app) *cobra.Command {
	var offline bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a snapshot",
		Long: "delete has the running daemon forget a snapshot: what only that needed is deleted by\n" +
			"garbage collections from then on. If no daemon answers, or with --offline, it takes\n" +
			"the snapshot out of the volume record itself.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.deleteSnapshot(cmd, args[0], offline) },
	}
	addOffline(cmd, &offline)
	return cmd
}

func addOffline(cmd *cobra.Command, offline *bool) {
	cmd.Flags().BoolVar(offline, "offline", false, "use the store alone, and ask no daemon")
}

// snapshotList is what the volume record says of snapshots. Its JSON form is a
// contract.
type snapshotList struct {
	UUID      string                `json:"uuid"`      // of the volume
	Snapshots []volume.SnapshotInfo `json:"snapshots"` // in the order in which they were made
}

func printSnapshots(out io.Writer, all []volume.SnapshotInfo) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tCREATED\tKEY")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\t%d\n", s.Name, s.Created.Format(time.RFC3339), s.Key)
	}
	return w.Flush()
}

// snapshotChange is how snapshots are changed with a daemon, and how without.
type snapshotChange struct {
	call  string // the daemon's
	alone func(context.Context, *stores.Store) error
	note  func(behind bool) string // what alone has done; a writer may have flushed what is not in the store, or not
}

func (a *app) createSnapshot(cmd *cobra.Command, name string, offline bool) error {
	var made volume.SnapshotInfo
	err := a.changeSnapshots(cmd, name, offline, &made, snapshotChange{
		call: daemon.CallSnapshot,
		alone: func(ctx context.Context, s *stores.Store) (err error) {
			made, err = bs3.SnapshotOutside(ctx, s, zerolog.Nop(), name)
			return err
		},
		note: func(behind bool) string {
			const note = "made from the store alone: it holds what was durable there"
			if behind {
				return note + "; the volume has a local log, so it may be behind its writer"
			}
			return note
		},
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "snapshot %s created, with all objects up to %d\n", made.Name, made.Key)
	return err
}

func (a *app) deleteSnapshot(cmd *cobra.Command, name string, offline bool) error {
	err := a.changeSnapshots(cmd, name, offline, nil, snapshotChange{
		call: daemon.CallRemoveSnapshot,
		alone: func(ctx context.Context, s *stores.Store) error {
			return bs3.RemoveSnapshotOutside(ctx, s, zerolog.Nop(), name)
		},
		note: func(bool) string {
			return "deleted from the store alone: a daemon gives back what only it needed, with its next garbage collection"
		},
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "snapshot %s deleted\n", name)
	return err
}

// changeSnapshots has the daemon change the snapshot of that name, and takes its
// result. If the daemon is not to be asked, or does not answer, it does so alone.
func (a *app) changeSnapshots(cmd *cobra.Command, name string, offline bool, result any, change snapshotChange) error {
	if err := bs3.CheckSnapshotName(name); err != nil {
		return err
	}
	why := ""
	if !offline {
		err := a.call(cmd, change.call, daemon.SnapshotName{Name: name}, result)
		if !errors.Is(err, control.ErrNotRunning) {
			return err
		}
		c, err := a.config(cmd)
		if err != nil {
			return err
		}
		why = fmt.Sprintf("no daemon answers at %s; ", c.Control.Socket)
	}
	behind := false
	// First a look: what changes a directory makes files in it.
	err := a.askStore(cmd, infoFor, func(ctx context.Context, s *stores.Store) error {
		v, err := volume.Find(ctx, s)
		if err != nil {
			return err
		}
		behind = v.LocalLog != nil
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.changeStore(cmd, snapshotFor, change.alone); err != nil {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), why+change.note(behind))
	return nil
}
