package objproxy_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

// closing is a store that counts how often it is closed.
type closing struct {
	objproxy.Store
	closed int
}

func (c *closing) Close() error {
	c.closed++
	return nil
}

func TestLate(t *testing.T) {
	there := &closing{Store: objtest.NewMemory()}
	down := errors.New("no such directory yet")
	var tries atomic.Int32
	late := objproxy.NewLate(func(context.Context) (objproxy.Store, error) {
		if tries.Add(1) < 3 {
			return nil, down
		}
		return there, nil
	})
	if err := late.Close(); err != nil || there.closed != 0 {
		t.Errorf("closed before it is open: %v", err)
	}
	if _, err := late.List(t.Context(), "", "", 1); !errors.Is(err, down) {
		t.Errorf("list: %v", err)
	}
	if err := late.Delete(t.Context(), []string{"x"}); !errors.Is(err, down) {
		t.Errorf("delete: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := late.Put(t.Context(), "x", objproxy.Body{Data: []byte("content")}, objproxy.Condition{}); err != nil {
				t.Errorf("put: %v", err)
			}
			if n, _, err := late.Get(t.Context(), "x", make([]byte, 64), -1); n != 7 || err != nil {
				t.Errorf("get: %d bytes, %v", n, err)
			}
		})
	}
	wg.Wait()
	if n := tries.Load(); n != 3 {
		t.Errorf("it was opened %d times", n)
	}
	for range 2 {
		if err := late.Close(); err != nil || there.closed != 1 {
			t.Errorf("closed %d times: %v", there.closed, err)
		}
	}
}

// Waiting for another request's attempt ends with the ctx.
func TestLateHonoursContexts(t *testing.T) {
	trying, ended := make(chan struct{}), make(chan error, 1)
	late := objproxy.NewLate(func(ctx context.Context) (objproxy.Store, error) {
		close(trying)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	first, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := late.List(first, "", "", 1)
		ended <- err
	}()
	<-trying
	second, leave := context.WithTimeout(t.Context(), time.Millisecond)
	defer leave()
	if _, err := late.List(second, "", "", 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the one that waits: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that opens: %v", err)
	}
}
