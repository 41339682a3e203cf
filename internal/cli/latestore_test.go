package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/config"
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

func TestLateStore(t *testing.T) {
	there := &closing{Store: objtest.NewMemory()}
	down := errors.New("no such directory yet")
	var tries atomic.Int32
	late := newLateStore(func(context.Context) (objproxy.Store, error) {
		if tries.Add(1) < 3 {
			return nil, down
		}
		return there, nil
	})
	if err := late.close(); err != nil || there.closed != 0 {
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
	if err := late.close(); err != nil || there.closed != 1 {
		t.Errorf("closed %d times: %v", there.closed, err)
	}
}

// Who waits for another one's attempt waits no longer than its ctx.
func TestLateStoreHonoursContexts(t *testing.T) {
	trying, ended := make(chan struct{}), make(chan error, 1)
	late := newLateStore(func(ctx context.Context) (objproxy.Store, error) {
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

// A store that can not even be opened is given up after five minutes; but not
// while chunk memory holds writes for it.
func TestWaitingForAStoreAtTheStart(t *testing.T) {
	for _, holds := range []bool{false, true} {
		t.Run(map[bool]string{false: "nothing to lose", true: "writes in chunk memory"}[holds], func(t *testing.T) {
			dir := t.TempDir()
			c := config.Default()
			c.Store, c.Dir.Path, c.State.Path = config.StoreDir, filepath.Join(dir, "store"), filepath.Join(dir, "state")
			c.Size, c.Write.Memory, c.Write.Linger = 1, 16, 600_000
			if holds {
				v, err := openVolume(t.Context(), c, &health{}, zerolog.Nop())
				if err != nil {
					t.Fatal(err)
				}
				if err := v.WriteAt(t.Context(), make([]byte, 4096), 0); err != nil {
					t.Fatal(err)
				}
				killed, cancel := context.WithCancel(t.Context())
				cancel()
				if err := v.close(killed); err == nil {
					t.Fatal("it was closed cleanly")
				}
				if err := os.RemoveAll(c.Dir.Path); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(c.Dir.Path, nil, 0o600); err != nil { // in the way of the directory
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				patience := time.Hour
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				_, err := openVolume(ctx, c, &health{}, zerolog.Nop())
				took := time.Since(start)
				switch {
				case holds && (took != patience || !errors.Is(err, context.DeadlineExceeded)):
					t.Errorf("it gave up after %v: %v", took, err)
				case !holds && (took < 5*time.Minute || took > 6*time.Minute || exitCode(err) != exitStore):
					t.Errorf("it gave up after %v, with exit code %d: %v", took, exitCode(err), err)
				}
			})
		})
	}
}
