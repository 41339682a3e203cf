package control

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

func TestCalls(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	if err := Call(t.Context(), path, "x", nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("without a server: %v", err)
	}
	waiting := make(chan struct{})
	cancelled := make(chan error, 1)
	server, err := Listen(t.Context(), path, Calls{
		"sum": func(context.Context, Argument) (any, error) { return map[string]int{"sum": 3}, nil },
		"greet": func(_ context.Context, arg Argument) (any, error) {
			var who struct{ Name string }
			err := arg.Decode(&who)
			return "hello, " + who.Name, err
		},
		"fail": func(context.Context, Argument) (any, error) { return nil, errors.New("no such luck") },
		"wait": func(ctx context.Context, _ Argument) (any, error) {
			close(waiting)
			<-ctx.Done()
			cancelled <- ctx.Err()
			return nil, ctx.Err()
		},
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()

	var got struct{ Sum int }
	if err := Call(t.Context(), path, "sum", nil, &got); err != nil {
		t.Fatal(err)
	}
	if got.Sum != 3 {
		t.Fatalf("%+v", got)
	}
	if err := Call(t.Context(), path, "fail", nil, nil); err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Fatalf("a failing call: %v", err)
	}
	if err := Call(t.Context(), path, "other", nil, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Fatalf("an unknown call: %v", err)
	}
	var greeting string
	if err := Call(t.Context(), path, "greet", struct{ Name string }{"you"}, &greeting); err != nil || greeting != "hello, you" {
		t.Fatalf("a call with an argument: %q, %v", greeting, err)
	}
	for want, arg := range map[string]any{
		"argument \"\"":          nil,
		"unknown field \"Age\"":  struct{ Age int }{3},
		"http: request body too": struct{ Name string }{strings.Repeat("x", maxArgument)},
	} {
		if err := Call(t.Context(), path, "greet", arg, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it should say %s: %v", want, err)
		}
	}
	impatient, leave := context.WithCancel(t.Context())
	go func() { <-waiting; leave() }()
	if err := Call(impatient, path, "wait", nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("a call given up: %v", err)
	}
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Fatalf("its ctx: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := Call(t.Context(), path, "sum", nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("after the server: %v", err)
	}
}

// A client that never sends the rest of its request does not keep the server
// from stopping.
func TestStopsBesideAHangingClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	asked := make(chan struct{})
	server, err := Listen(t.Context(), path, Calls{
		"ask": func(context.Context, Argument) (any, error) { close(asked); return 1, nil },
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(client, "POST /ask HTTP/1.1\r\nHost: bs3\r\nContent-Length: 1000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	cancel()
	if err := <-done; err != nil { // before the client is closed
		t.Error(err)
	}
}
