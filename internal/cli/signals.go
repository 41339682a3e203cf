package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
)

// watchSignals gives a ctx that the first SIGINT, SIGTERM or SIGHUP (the
// terminal is gone) cancels. The second one calls exit at once: a clean stop waits for the store, and whoever
// signals twice does not want to. SIGUSR1 leaves a wish in collect, unless
// there is no room for one. stop ends the watch and must be called.
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
						log.Info().Msg("SIGUSR1: a garbage collection is asked for")
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
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
		cancel()
	}
}

// outliveOutput makes writing to standard output or error fail when nobody reads
// it any more. By default that ends a Go program, and whoever reads the daemon's
// log (a pipe, journald) must not be able to end the device.
func outliveOutput() { signal.Ignore(syscall.SIGPIPE) }
