package cli

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"bs3/internal/bs3"
	"bs3/internal/control"
)

// The calls of the control socket.
const (
	callStatus     = "status"
	callGC         = "gc"
	callPlanGC     = "gc-plan"
	callCheckpoint = "checkpoint"
)

// controls are what a running daemon can be asked for besides the device.
type controls struct {
	engine        *bs3.Engine
	store         *store
	noCheckpoints bool
	log           zerolog.Logger
	shown         atomic.Pointer[transportStatus] // nil until it is
}

// errNoCheckpoints refuses what needs checkpoints, without which nothing is
// ever deleted; and one that was written would keep the volume from being
// opened as it is configured.
var errNoCheckpoints = errors.New("skip_checkpoint = true: no checkpoint is written, and so no garbage is collected")

func (d *controls) calls() control.Calls {
	withCheckpoints := func(call func(ctx context.Context) (any, error)) func(ctx context.Context) (any, error) {
		if d.noCheckpoints {
			return func(context.Context) (any, error) { return nil, errNoCheckpoints }
		}
		return call
	}
	return control.Calls{
		callStatus:     func(context.Context) (any, error) { return d.status(), nil },
		callGC:         withCheckpoints(func(ctx context.Context) (any, error) { return d.engine.GC(ctx) }),
		callPlanGC:     withCheckpoints(func(ctx context.Context) (any, error) { return d.engine.PlanGC(ctx) }),
		callCheckpoint: withCheckpoints(func(ctx context.Context) (any, error) { return nil, d.engine.Checkpoint(ctx) }),
	}
}

// collect runs a garbage collection that nobody waits for.
func (d *controls) collect(ctx context.Context) {
	if d.noCheckpoints {
		d.log.Warn().Err(errNoCheckpoints).Msg("no garbage collection")
		return
	}
	_, _ = d.engine.GC(ctx) // the engine logs how it went
}

// status is how a daemon is doing. Its JSON form is a contract.
type status struct {
	bs3.Status
	Store     storeStatus     `json:"store"`
	Transport transportStatus `json:"transport"`
}

// transportStatus is how users get at the volume. All is empty until they can.
type transportStatus struct {
	Name   string `json:"name"`   // as in the configuration, but never auto
	Device string `json:"device"` // path of the block device, if there is one
	NBD    string `json:"nbd"`    // URI of the NBD server, if there is one
}

type storeStatus struct {
	Where        string     `json:"where"`
	WaitingSince *time.Time `json:"waiting_since"` // null while it answers
	LastError    string     `json:"last_error,omitempty"`
}

func (d *controls) status() status {
	s := status{Status: d.engine.Status(), Store: storeStatus{Where: d.store.where}}
	if shown := d.shown.Load(); shown != nil {
		s.Transport = *shown
	}
	if since, err, waiting := d.store.waiting(); waiting {
		s.Store.WaitingSince = &since
		s.Store.LastError = err.Error()
	}
	return s
}

// call makes one call to the daemon that the configuration describes.
func (a *app) call(cmd *cobra.Command, name string, result any) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if c.Null {
		return errors.New("null = true: there is no volume to ask about")
	}
	err = control.Call(cmd.Context(), c.Control.Socket, name, result)
	if errors.Is(err, control.ErrNotRunning) {
		start := "bs3 run -c " + a.path
		if a.local {
			start = "bs3 run --local"
		}
		return fmt.Errorf("%w; start it with %s (one that is still opening the volume, or closing it, does not answer either)", err, start)
	}
	return err
}
