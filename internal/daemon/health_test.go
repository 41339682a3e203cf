package daemon

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/config"
	"bs3/internal/stores"
)

// The status says that a request waits for its answer before it has failed.
func TestStatusOfASilentStore(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c := config.Default()
	c.S3.Remote, c.S3.Region, c.S3.AccessKey, c.S3.SecretKey = "http://"+l.Addr().String(), "r", "a", "s"
	store, err := stores.OpenToServe(t.Context(), c, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	h := &health{store: store, doing: "serving"}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() { _, _, _ = store.Get(ctx, "volume", nil, 0) })
	for !strings.HasPrefix(h.Status(), "serving; the store has not answered a request for ") {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	waiting.Wait()
	if got := h.Status(); got != "serving" {
		t.Errorf("nothing waits any more: %q", got)
	}
}
