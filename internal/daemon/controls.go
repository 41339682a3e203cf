package daemon

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/volume"
	"bs3/internal/control"
	"bs3/internal/stores"
)

// The calls on the control socket, and their results.
const (
	CallStatus         = "status"          // Status
	CallGC             = "gc"              // gc.Report
	CallPlanGC         = "gc-plan"         // Collection
	CallDefrag         = "defrag"          // Collection
	CallPlanDefrag     = "defrag-plan"     // gc.DefragPlan
	CallCheckpoint     = "checkpoint"      // none
	CallSnapshot       = "snapshot"        // of a SnapshotName: volume.SnapshotInfo
	CallRemoveSnapshot = "snapshot-remove" // of a SnapshotName: none
)

// SnapshotName is the argument of calls about one snapshot.
type SnapshotName struct {
	Name string `json:"name"`
}

// Collection is what a garbage collection did, or would do. Its JSON form is a
// contract.
type Collection struct {
	gc.Report
	// Spread is how the live blocks are spread over objects after it, or now; nil if
	// that is not said.
	Spread *gc.Spread `json:"spread,omitempty"`
}

// Status is how a daemon is doing. Its JSON form is a contract.
type Status struct {
	bs3.Status
	Store     StoreStatus `json:"store"`
	Transport Transport   `json:"transport"`
}

// StoreStatus is how the store of a daemon is doing.
type StoreStatus struct {
	Where        string     `json:"where"`
	WaitingSince *time.Time `json:"waiting_since"` // null while it answers
	LastError    string     `json:"last_error,omitempty"`
	// OldestRequest is when the oldest request was made that the store has not
	// answered yet; null if there is none.
	OldestRequest *time.Time `json:"oldest_request"`
}

// controls answer the calls.
type controls struct {
	engine        *bs3.Engine
	store         *stores.Store
	noCheckpoints bool
	log           zerolog.Logger
	shown         atomic.Pointer[Transport] // nil until it is
}

// errNoCheckpoints refuses what needs checkpoints. Without them nothing is ever
// deleted; and with one the volume could not be opened as it is configured.
var errNoCheckpoints = errors.New("skip_checkpoint = true: no checkpoint is written, and so no garbage is collected")

// errNoOwnSnapshots refuses snapshots for the same reason: a writer names a checkpoint.
var errNoOwnSnapshots = errors.New("skip_checkpoint = true: no checkpoint is written, and so the daemon makes no snapshot; bs3 snapshot create --offline makes one")

func (d *controls) calls() control.Calls {
	withCheckpoints := func(call func(ctx context.Context) (any, error)) func(context.Context, control.Argument) (any, error) {
		return func(ctx context.Context, _ control.Argument) (any, error) {
			if d.noCheckpoints {
				return nil, errNoCheckpoints
			}
			return call(ctx)
		}
	}
	return control.Calls{
		CallStatus:     func(context.Context, control.Argument) (any, error) { return d.status(), nil },
		CallGC:         withCheckpoints(func(ctx context.Context) (any, error) { return d.engine.GC(ctx) }),
		CallPlanGC:     withCheckpoints(d.plan),
		CallDefrag:     withCheckpoints(func(ctx context.Context) (any, error) { return d.collection(d.engine.Defrag(ctx)) }),
		CallPlanDefrag: withCheckpoints(func(ctx context.Context) (any, error) { return d.engine.PlanDefrag(ctx) }),
		CallCheckpoint: withCheckpoints(func(ctx context.Context) (any, error) { return nil, d.engine.Checkpoint(ctx) }),
		CallSnapshot:   d.snapshot,
		CallRemoveSnapshot: func(ctx context.Context, arg control.Argument) (any, error) {
			var s SnapshotName
			if err := arg.Decode(&s); err != nil {
				return nil, err
			}
			return nil, d.engine.RemoveSnapshot(ctx, s.Name)
		},
	}
}

func (d *controls) snapshot(ctx context.Context, arg control.Argument) (any, error) {
	if d.noCheckpoints {
		return nil, errNoOwnSnapshots
	}
	var s SnapshotName
	if err := arg.Decode(&s); err != nil {
		return nil, err
	}
	made, err := d.engine.Snapshot(ctx, s.Name)
	if err != nil {
		return nil, err
	}
	return volume.InfoOf(made), nil
}

// collection adds to a report what is known of the volume.
func (d *controls) collection(r gc.Report, err error) (Collection, error) {
	return Collection{r, d.engine.Status().Spread}, err
}

// plan says what a collection would do, and looks at the volume for it.
func (d *controls) plan(ctx context.Context) (any, error) {
	if _, err := d.engine.Spread(ctx); err != nil {
		return nil, err
	}
	return d.collection(d.engine.PlanGC(ctx))
}

// collect runs a garbage collection that nobody waits for.
func (d *controls) collect(ctx context.Context) {
	if d.noCheckpoints {
		d.log.Warn().Err(errNoCheckpoints).Msg("no garbage collection")
		return
	}
	_, _ = d.engine.GC(ctx) // the engine logs how it went
}

func (d *controls) status() Status {
	s := Status{Status: d.engine.Status(), Store: StoreStatus{Where: d.store.Where}}
	if shown := d.shown.Load(); shown != nil {
		s.Transport = *shown
	}
	if since, err, waiting := d.store.Waiting(); waiting {
		s.Store.WaitingSince = &since
		s.Store.LastError = err.Error()
	}
	if since, underWay := d.store.Oldest(); underWay {
		s.Store.OldestRequest = &since
	}
	return s
}
