package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
)

// watchSignals gives a ctx that the first SIGINT or SIGTERM cancels. The
// second one calls exit at once: a clean stop waits for the store, and whoever
// signals twice does not want to. stop ends the watch and must be called.
func watchSignals(parent context.Context, log zerolog.Logger, exit func()) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGUSR1)
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
					// It has always meant this; unhandled, it would kill the daemon.
					log.Warn().Msg("SIGUSR1 asks for a garbage collection, which this version does not have yet")
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
