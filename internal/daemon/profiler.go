package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// startProfiler serves net/http/pprof on 127.0.0.1, for this machine only: a
// profile shows memory. stop ends it and waits.
func startProfiler(ctx context.Context, port int, log zerolog.Logger) (stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("profiler: %w", err)
	}
	mux := http.NewServeMux() // not the default one, to which any package may add
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("the profiler has stopped")
		}
	})
	log.Info().Str("url", "http://"+l.Addr().String()+"/debug/pprof/").Msg("profiler")
	return func() {
		// This cuts a profile under way short, so that stopping does not wait for it.
		if err := server.Close(); err != nil {
			log.Warn().Err(err).Msg("close the profiler")
		}
		wg.Wait()
	}, nil
}
