// Package control has the server and the client of the control socket, on which
// a running daemon answers calls: HTTP on a unix socket that only its user can
// open. Which calls there are is up to the daemon (Calls).
//
// A call is POST /NAME, with its argument as JSON, if it has one. The answer is 200
// with the result as JSON, or another status with {"error": "…"}. A call ends when
// its client goes away.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/listen"
)

// Calls are what a server answers: by name, a function whose result is sent as
// JSON. They run concurrently; ctx ends when the client is gone or the server
// stops.
type Calls map[string]func(ctx context.Context, arg Argument) (any, error)

// Argument is what a client sends with its call.
type Argument struct{ body io.Reader }

// maxArgument bounds an argument in bytes.
const maxArgument = 64 << 10

// Decode decodes the argument into v, which must have a place for all that is in it:
// a newer client may ask for something that this daemon does not know. It may be
// called once.
func (a Argument) Decode(v any) error {
	b, err := io.ReadAll(a.body) // to its end: only then the client is seen to go away
	if err != nil {
		return fmt.Errorf("argument: %w", err)
	}
	strict := json.NewDecoder(bytes.NewReader(b))
	strict.DisallowUnknownFields()
	if err := strict.Decode(v); err != nil {
		return fmt.Errorf("argument %.100q: %w", b, err)
	}
	return nil
}

// Server serves calls on a unix socket. Listen makes it, and Run must be called
// once.
type Server struct {
	listener net.Listener
	release  func()
	calls    Calls
	log      zerolog.Logger
}

// Listen makes a server on the socket at path. Clients can connect from then on,
// and are served by Run.
func Listen(ctx context.Context, path string, calls Calls, log zerolog.Logger) (*Server, error) {
	l, release, err := listen.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return &Server{listener: l, release: release, calls: calls, log: log}, nil
}

// lastAnswers is how long a server that stops waits for its clients.
const lastAnswers = 2 * time.Second

type failure struct {
	Error string `json:"error"`
}

// Run serves until ctx ends; calls under way are cancelled then. It returns
// when all are done, and has removed the socket.
func (s *Server) Run(ctx context.Context) error {
	defer s.release()
	var calling sync.RWMutex // held for reading by calls under way
	mux := http.NewServeMux()
	for name, call := range s.calls {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
			calling.RLock()
			defer calling.RUnlock()
			var result any
			err := context.Cause(ctx)
			if err == nil {
				result, err = call(r.Context(), Argument{http.MaxBytesReader(w, r.Body, maxArgument)})
			}
			if err != nil {
				if r.Context().Err() == nil { // or else the client is gone, or we are
					s.log.Warn().Err(err).Str("call", name).Msg("a call on the control socket failed")
				}
				w.WriteHeader(http.StatusInternalServerError)
				result = failure{err.Error()}
			}
			_ = json.NewEncoder(w).Encode(result) // a client that is gone needs no answer
		})
	}
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("control socket: %w", err)
	case <-ctx.Done():
	}
	// The calls have seen ctx end. A client that does not send all of its request,
	// or does not read its answer, must not keep the daemon from stopping.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastAnswers)
	defer cancel()
	err := server.Shutdown(last)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
		calling.Lock()
		calling.Unlock() //nolint:staticcheck // the calls under way have ended, and none begins any more
	}
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// ErrNotRunning: no daemon serves the control socket.
var ErrNotRunning = errors.New("no daemon answers")

// Call makes one call to the daemon at path, with arg unless that is nil, and
// decodes its result into result, unless that is nil. Errors: ErrNotRunning, what the
// daemon answers, ctx's.
func Call(ctx context.Context, path, name string, arg, result any) error {
	var sent io.Reader
	if arg != nil {
		b, err := json.Marshal(arg)
		if err != nil {
			return fmt.Errorf("call %s: %w", name, err)
		}
		sent = bytes.NewReader(b)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://bs3/"+name, sent)
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	answer, err := client.Do(r)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("%w on %s: %w", ErrNotRunning, path, err)
		}
		return fmt.Errorf("call %s on %s: %w", name, path, err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	if answer.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(body, &f) != nil || f.Error == "" {
			return fmt.Errorf("call %s: the daemon answers %s: %s", name, answer.Status, bytes.TrimSpace(body))
		}
		return fmt.Errorf("call %s: %s", name, f.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	return nil
}
