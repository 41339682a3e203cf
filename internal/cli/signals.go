package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
)

// watchSignals returns a ctx that the first SIGINT, SIGTERM or SIGHUP (the
// terminal is gone) cancels. The second one calls exit, because a clean stop
// waits for the store. SIGUSR1 sends to collect, unless nothing is free there.
// stop ends the watch; it must be called, and may be called again.
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
		stopping := false
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
				case stopping:
					exit()
				default:
					stopping = true
					log.Info().Stringer("signal", s).Msg("stopping; a second signal exits at once")
					cancel()
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
