package blockdev

import (
	"context"
	"time"
)

// PollEvery is the time between two looks at what does not announce its changes.
const PollEvery = 20 * time.Millisecond

// Await calls look every PollEvery until it is done, for at most limit, and
// reports whether it was. Errors: those of look, and of ctx.
func Await(ctx context.Context, limit time.Duration, look func() (done bool, err error)) (bool, error) {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(PollEvery)
	defer tick.Stop()
	for {
		if done, err := look(); done || err != nil {
			return done, err
		}
		select {
		case <-tick.C:
		case <-end.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
