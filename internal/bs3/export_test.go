package bs3

import (
	"context"

	"bs3/internal/bs3/gc"
)

// Sweep returns when what the last checkpoint has left behind is removed.
func (e *Engine) Sweep(ctx context.Context) error { return e.keeper.Sweep(ctx) }

// GCByTime is what the clock would start.
func (e *Engine) GCByTime(ctx context.Context) (gc.Report, error) { return e.collector.ByTime(ctx) }
