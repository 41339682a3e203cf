package bs3

import (
	"context"
	"fmt"

	"bs3/internal/bs3/key"
)

// Flush implements device.Volume. In durable mode it returns when the durable
// key covers everything that was acknowledged before it; in barrier mode at
// once, for the order is the log's anyway.
func (e *Engine) Flush(ctx context.Context) error {
	if err := e.stopped(); err != nil {
		return err
	}
	if !e.opts.Durable {
		return nil
	}
	if err := e.flushToStore(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// flushToStore seals the open chunk and waits until all that was written
// before the call is in the store.
func (e *Engine) flushToStore(ctx context.Context) error {
	e.mu.Lock()
	last := e.sealThrough()
	e.mu.Unlock()
	return e.waitDurable(ctx, last)
}

// sealThrough seals the open chunk and gives the last key of the log. Under
// the chunk lock.
func (e *Engine) sealThrough() key.Key {
	e.seal()
	return e.keys.Next() - 1
}
