package bs3

import "context"

// Sweep returns when what the last checkpoint has left behind is removed.
func (e *Engine) Sweep(ctx context.Context) error { return e.keeper.Sweep(ctx) }
