// Package life says how long an open volume serves, and why it ended.
package life

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"

	"bs3/internal/device"
)

// Life is the time for which a volume serves. It is safe for concurrent use.
type Life struct {
	log    zerolog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}
	once   sync.Once
	err    atomic.Pointer[error] // nil while it serves; set before done is closed
}

// New returns a life that does not end with ctx, only by Fail or End.
func New(ctx context.Context, log zerolog.Logger) *Life {
	l := &Life{log: log, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return l
}

// Context returns a context that ends with the life; its cause is Err.
func (l *Life) Context() context.Context { return l.ctx }

// Done returns a channel that is closed when the life has ended.
func (l *Life) Done() <-chan struct{} { return l.done }

// Err returns nil while the volume serves, and afterwards why it stopped
// (device.ErrStopped, wrapped).
func (l *Life) Err() error {
	// Each request asks this: a load costs less than looking at done.
	if err := l.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Fail ends the life because of err, and logs it. If the life has ended
// already, Fail does nothing.
func (l *Life) Fail(err error) {
	l.once.Do(func() {
		l.log.Error().Err(err).Msg("the volume has failed")
		l.end(fmt.Errorf("%w: %w", device.ErrStopped, err))
	})
}

// End ends the life in an orderly way, unless it has ended.
func (l *Life) End() {
	l.once.Do(func() { l.end(fmt.Errorf("%w: closed", device.ErrStopped)) })
}

func (l *Life) end(err error) {
	l.err.Store(&err)
	close(l.done)
	l.cancel(err)
}

// Limit returns a ctx that also ends with the life. The caller must call
// release.
func (l *Life) Limit(ctx context.Context) (limited context.Context, release func()) {
	limited, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return limited, func() { stop(); cancel(nil) }
}
