package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// sameWithin is how soon a signal that comes again is still the first one.
const sameWithin = 100 * time.Millisecond

// watchSignals returns a ctx that the first SIGINT, SIGTERM or SIGHUP (the
// terminal is gone) cancels. The second one calls exit, because a clean stop
// waits for the store. The same signal within sameWithin of the first is no second
// one: timeout(1) and others signal a process and then its group. SIGUSR1 sends to
// collect, unless nothing is free there. stop ends the watch; it must be called, and
// may be called again.
func watchSignals(parent context.Context, log zerolog.Logger, collect chan<- struct{}, exit func()) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGUSR1)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var first os.Signal
		var since time.Time // when it came
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				switch {
				case s == syscall.SIGUSR1:
					select {
					case collect <- struct{}{}:
						log.Info().Msg("SIGUSR1: a garbage collection was requested")
					default:
						log.Info().Msg("SIGUSR1: a garbage collection is waiting already")
					}
				case first == nil:
					first, since = s, time.Now()
					log.Info().Stringer("signal", s).Msg("stopping; a second signal exits at once")
					cancel()
				case s != first || time.Since(since) >= sameWithin:
					exit()
				}
			}
		}
	})
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
		cancel()
	})
}

// outliveOutput makes writes to standard output or error fail once nobody reads
// there. By default they end a Go program, and the reader of the daemon's log (a
// pipe, journald) must not be able to end the device.
func outliveOutput() { signal.Ignore(syscall.SIGPIPE) }
