package cli

import (
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bs3/internal/daemon"
)

func newStatus(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print how the running daemon is doing; sends no request to the store",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s daemon.Status
			if err := a.call(cmd, daemon.CallStatus, nil, &s); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s, time.Now())
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func printStatus(out io.Writer, s daemon.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := rows(w)
	row("volume", "%s, %s in blocks of %d B", s.UUID, size(s.Size), s.BlockSize)
	row("epoch", "%d", s.Epoch)
	meaning := "a flush waits for the store"
	switch s.Mode {
	case "local log":
		meaning = "a flush waits for the local log"
	case "barrier":
		meaning = "a flush keeps the order and waits for nothing"
	}
	row("mode", "%s: %s", s.Mode, meaning)
	if l := s.LocalLog; l != nil && l.Failed != "" {
		row("local log", "in %s, failed: %s", l.Path, l.Failed)
	} else if l != nil {
		row("local log", "in %s, %s of %s hold what the store has not; full at %d flushes", l.Path, size(l.Used), size(l.Size), l.FullFlushes)
	}
	if d := s.DiskCache; d != nil && d.Failed != "" {
		row("disk cache", "failed: %s", d.Failed)
	} else if d != nil {
		row("disk cache", "%s; %d blocks read were there, %d not; %d were not kept because the disk was too slow, %d were damaged", size(d.Size), d.Hits, d.Misses, d.Dropped, d.Damaged)
	}
	if s.Failed != "" {
		row("failed", "%s", s.Failed)
	}
	switch t := s.Transport; {
	case t.Device != "" && t.NBD != "":
		row("device", "%s (%s), and %s", t.Device, t.Name, t.NBD)
	case t.Device != "":
		row("device", "%s (%s)", t.Device, t.Name)
	case t.NBD != "":
		row("device", "%s", t.NBD)
	default:
		row("device", "not shown yet")
	}
	row("store", "%s", s.Store.Where)
	if since := s.Store.WaitingSince; since != nil {
		row("", "does not answer as it should since %s (%v): %s", since.Format(time.RFC3339), now.Sub(*since).Round(time.Second), s.Store.LastError)
	} else if s.Store.OldestRequest == nil {
		row("", "nothing waits for it to answer")
	}
	if since := s.Store.OldestRequest; since != nil {
		row("", "the oldest request that it has not answered was made %v ago", now.Sub(*since).Round(time.Millisecond))
	}
	if s.WrongAnswers > 0 {
		row("", "%d of its answers to reads held other bytes than were written; the log names them", s.WrongAnswers)
	}
	row("stored", "%d objects, %s of data, %s of it live (%s is garbage)", s.Objects, size(s.StoredBytes), size(s.LiveBytes), share(s.StoredBytes-s.LiveBytes, s.StoredBytes))
	if d := s.Spread; d == nil {
		row("", "%d full objects would hold what lives; nobody has looked yet how scattered it is", s.FullObjects)
	} else {
		row("", "%d full objects would hold what lives", s.FullObjects)
		row("", "%v ago %s", now.Sub(d.At).Round(time.Second), spreadText(*d))
	}
	row("snapshots", "%d", len(s.Snapshots))
	if p := s.Collection; p != nil {
		row("", "%s: moved %s of about %s", stageOf(*p), size(p.MovedBytes), size(p.TotalBytes))
	}
	if u := s.Undeleted; u != nil {
		row("", "%d objects and %d old checkpoints that nothing needs stay there: the store does not delete them since %s (%v): %s",
			u.Objects, u.Checkpoints, u.Since.Format(time.RFC3339), now.Sub(u.Since).Round(time.Second), u.Error)
	}
	row("since checkpoint", "%d objects, %s", s.LogObjects, size(s.LogBytes))
	row("since the start", "%s written by clients and %s more by garbage collection (amplification %.2f), which deleted %d objects with %s",
		size(s.WrittenBytes), size(s.Collected.MovedBytes), float64(s.WrittenBytes+s.Collected.MovedBytes)/float64(max(1, s.WrittenBytes)),
		s.Collected.Deleted, size(s.Collected.FreedBytes))
	if s.TidiedBytes > 0 {
		row("", "%s of that to merge small objects and to put scattered blocks in order", size(s.TidiedBytes))
	}
	row("log", "next key %d, all below %d are in the store", s.NextKey, s.DurableKey+1)
	row("memory", "%d of %d slots are free, %d objects are not in the store, %d writers wait", s.FreeSlots, s.Slots, s.ChunksInMemory, s.WritersWaiting)
	row("", "the map takes %s", size(s.MapBytes))
	return w.Flush()
}
