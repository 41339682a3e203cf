package cli

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/gc"
	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/daemon"
)

// gcFlags are those of the verb gc.
type gcFlags struct{ json, dryRun, defrag bool }

func newGC(a *app) *cobra.Command {
	var f gcFlags
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Have the running daemon collect garbage, and wait for it",
		Long: "gc has the running daemon free the space of data that was overwritten or\n" +
			"discarded: live blocks are moved out of objects that hold few of them\n" +
			"(gc.live_data), and objects without live blocks are deleted. SIGUSR1 to the\n" +
			"daemon does the same. Interrupting gc does not stop the collection.\n\n" +
			"With --defrag it first writes again, in the order of the volume, what lies\n" +
			"scattered over many objects, so that it is read in order with few requests. That\n" +
			"reads and writes all such data once for each pass, and needs some 8 GB of room in\n" +
			"the store meanwhile; --dry-run says how much that is and what the requests cost.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.dryRun && f.defrag {
				return a.planDefrag(cmd, f)
			}
			return a.gc(cmd, f)
		},
	}
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only print what would be moved and deleted; change nothing")
	cmd.Flags().BoolVar(&f.defrag, "defrag", false, "also put scattered data in order")
	addJSON(cmd, &f.json)
	return cmd
}

func (a *app) gc(cmd *cobra.Command, f gcFlags) error {
	name := daemon.CallGC
	switch {
	case f.dryRun:
		name = daemon.CallPlanGC
	case f.defrag:
		name = daemon.CallDefrag
	}
	if !f.dryRun && !f.json {
		fmt.Fprintln(cmd.ErrOrStderr(), "the daemon collects garbage; Ctrl-C here does not stop it, and bs3 status shows how it is doing")
	}
	stop := a.showCollection(cmd, f.dryRun || f.json)
	var r daemon.Collection
	err := a.call(cmd, name, nil, &r)
	stop()
	if err != nil {
		return err
	}
	if f.json {
		if err := printJSON(cmd.OutOrStdout(), r); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), gcText(r.Report, f.dryRun))
		if r.Spread != nil && (f.dryRun || f.defrag) {
			fmt.Fprintln(cmd.OutOrStdout(), spreadText(*r.Spread))
		}
	}
	if r.FailedReads > 0 {
		return fmt.Errorf("%d objects cannot be read or are damaged: they stay as they are, and the daemon's log names them", r.FailedReads)
	}
	return nil
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

// spreadText formats how live blocks are spread over objects for people.
func spreadText(s gc.Spread) string {
	return fmt.Sprintf("%d objects hold live data, %d full ones would do; a cold read of it in order takes about %d requests, %d if it lay in order",
		s.Objects, s.FullObjects, s.Requests, s.FullRequests)
}

// What a million requests cost where most volumes are: S3 Standard, us-east-1.
const (
	usdGets = 0.40
	usdPuts = 5.00
)

// defragPlan is a plan with its price. Its JSON form is a contract.
type defragPlan struct {
	gc.DefragPlan
	Price price `json:"price"`
}

// price is what requests cost, without the transfer of bytes.
type price struct {
	MillionGets float64 `json:"usd_per_million_gets"`
	MillionPuts float64 `json:"usd_per_million_puts"`
	USD         float64 `json:"usd"`
}

func priceOf(p gc.DefragPlan) price {
	return price{usdGets, usdPuts, (usdGets*float64(p.Gets) + usdPuts*float64(p.Puts)) / 1e6}
}

func (a *app) planDefrag(cmd *cobra.Command, f gcFlags) error {
	var p gc.DefragPlan
	if err := a.call(cmd, daemon.CallPlanDefrag, nil, &p); err != nil {
		return err
	}
	if f.json {
		return printJSON(cmd.OutOrStdout(), defragPlan{p, priceOf(p)})
	}
	fmt.Fprintln(cmd.OutOrStdout(), defragText(p))
	return nil
}

// defragText formats a plan for people.
func defragText(p gc.DefragPlan) string {
	if p.Passes == 0 {
		return spreadText(p.Spread) + "\nnothing would be gained"
	}
	c := priceOf(p)
	return fmt.Sprintf("%s\nwould read about %s and write as much, in %d passes, with %d GETs and %d PUTs\n"+
		"at $%.2f and $%.2f for a million of them that is $%.4f; what the transfer costs is not in it",
		spreadText(p.Spread), size(p.Bytes), p.Passes, p.Gets, p.Puts, c.MillionGets, c.MillionPuts, c.USD)
}

// showEvery is how often the daemon is asked how its collection is doing.
const showEvery = time.Second

// showCollection draws how the daemon's collection is doing on the terminal, if
// there is one and quiet is not set, until stop is called.
func (a *app) showCollection(cmd *cobra.Command, quiet bool) (stop func()) {
	show, done := showProgress(quiet)
	if show == nil {
		return done
	}
	c, err := a.config(cmd)
	if err != nil {
		return done // the call says so
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	tick := time.NewTicker(showEvery)
	var watch sync.WaitGroup
	watch.Go(func() {
		watchCollection(ctx, tick.C, func(ctx context.Context) (s daemon.Status, err error) {
			return s, control.Call(ctx, c.Control.Socket, daemon.CallStatus, nil, &s)
		}, show)
	})
	return func() {
		cancel()
		tick.Stop()
		watch.Wait()
		done()
	}
}

// watchCollection asks for the status with each tick, and shows the collection
// that is under way, until ctx ends.
func watchCollection(ctx context.Context, tick <-chan time.Time, status func(context.Context) (daemon.Status, error), show func(fsck.Progress)) {
	for {
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
		s, err := status(ctx)
		if p := s.Collection; err == nil && p != nil {
			show(fsck.Progress{Stage: stageOf(*p) + ", MB", Done: p.MovedBytes / config.MB, Total: p.TotalBytes / config.MB})
		}
	}
}

// stageOf says what a collection is doing.
func stageOf(p gc.Progress) string {
	if p.Pass == 0 {
		return "collecting garbage"
	}
	return fmt.Sprintf("putting blocks in order, pass %d of %d", p.Pass, p.Passes)
}
