package daemon

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

func TestProfiler(t *testing.T) {
	var said bytes.Buffer
	stop, err := startProfiler(t.Context(), 0, zerolog.New(&said))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(said.String(), `"url":"`)
	url, _, _ := strings.Cut(rest, `"`)
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Fatalf("it listens on %q", url)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "goroutine") {
		t.Errorf("%s: %s, %v", url, resp.Status, err)
	}
	stop()
	if resp, err := http.Get(url); err == nil {
		_ = resp.Body.Close()
		t.Error("it goes on after stop")
	}
}

func TestProfilerPortInUse(t *testing.T) {
	var said bytes.Buffer
	stop, err := startProfiler(t.Context(), 0, zerolog.New(&said))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	_, rest, _ := strings.Cut(said.String(), "127.0.0.1:")
	digits, _, _ := strings.Cut(rest, "/")
	port := 0
	for _, d := range digits {
		port = 10*port + int(d-'0')
	}
	if stop, err := startProfiler(t.Context(), port, zerolog.Nop()); err == nil {
		stop()
		t.Errorf("two profilers on port %d", port)
	}
}
