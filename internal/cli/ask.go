package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"bs3/internal/bs3"
	"bs3/internal/bs3/volume"
	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/stores"
)

// call makes one call to the daemon that the configuration describes.
func (a *app) call(cmd *cobra.Command, name string, arg, result any) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if c.Null {
		return errors.New("null = true: there is no volume to ask about")
	}
	err = control.Call(cmd.Context(), c.Control.Socket, name, arg, result)
	if errors.Is(err, control.ErrNotRunning) {
		start := "bs3 run -c " + a.path
		if a.local {
			start = "bs3 run --local"
		}
		return fmt.Errorf("%w; start it with %s (a daemon that is still opening the volume, or closing it, does not answer either)", err, start)
	}
	return err
}

// askStore opens the configured store as it is, and calls ask with it. patience
// is how long a request is tried again while the store does not answer.
func (a *app) askStore(cmd *cobra.Command, patience time.Duration, ask func(context.Context, *stores.Store) error) error {
	return a.useStore(cmd, patience, stores.OpenToAsk, ask)
}

// changeStore is askStore for what changes something of what is there.
func (a *app) changeStore(cmd *cobra.Command, patience time.Duration, change func(context.Context, *stores.Store) error) error {
	return a.useStore(cmd, patience, stores.OpenToChange, change)
}

// opener is stores.OpenToAsk or stores.OpenToChange.
type opener func(ctx context.Context, c config.Config, patience time.Duration) (*stores.Store, error)

func (a *app) useStore(cmd *cobra.Command, patience time.Duration, open opener, use func(context.Context, *stores.Store) error) (err error) {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if c.Null {
		return errors.New("null = true: there is no store to ask")
	}
	ctx, stop := watchSignals(cmd.Context(), zerolog.Nop(), nil, exitNow)
	defer stop()
	s, err := open(ctx, c, patience)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return explain(s.Where, use(ctx, s))
}

// explain adds to an error which store it is about, and volume.ErrStore unless it
// is an answer about the volume.
func explain(where string, err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{
		context.Canceled, volume.ErrStore, volume.ErrNoVolume, volume.ErrRefused, volume.ErrMoving,
		bs3.ErrSnapshotExists, bs3.ErrNoSnapshot, bs3.ErrMostSnapshots,
	} {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	return fmt.Errorf("%w: %s: %w", volume.ErrStore, where, err)
}
