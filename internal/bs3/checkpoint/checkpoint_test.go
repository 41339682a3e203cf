package checkpoint

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// growingLog is a log that grows without being written.
type growingLog struct {
	maps *mapproxy.Proxy

	mu    sync.Mutex
	grown volume.Length
	looks int // at the growth
}

func (l *growingLog) Freeze() volume.Cut {
	l.mu.Lock()
	defer l.mu.Unlock()
	cut := volume.Cut{Seq: 1, Grown: l.grown, Map: l.maps.Freeze()}
	l.grown = volume.Length{}
	return cut
}

func (l *growingLog) Regrow(n volume.Length) { l.grow(n) }

func (l *growingLog) WaitDurable(context.Context, key.Key) error { return nil }

func (l *growingLog) Grown() volume.Growth {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looks++
	return volume.Growth{Length: l.grown}
}

func (l *growingLog) grow(n volume.Length) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grown.Add(n)
}

// While the log does not grow nothing wakes the keeper, also after a
// checkpoint that the interval made due.
func TestKeeperSleepsWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objtest.NewMemory()
		v := &layout.Volume{
			UUID: layout.NewUUID(), Generation: 1, Created: time.Now(), Epoch: 1, Writer: layout.Writer{Nonce: layout.NewNonce()},
			BlockSize: 512, ChunkSize: 8 * 512, Size: 8 * 512, LargestSize: 8 * 512,
		}
		b, err := layout.EncodeVolume(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Put(t.Context(), layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		log := &growingLog{maps: mapproxy.New(8)}
		log.maps.AddObject(layout.ObjectInfo{Key: 0, Epoch: 1, Fence: true})
		k := New(Config{
			Store: store, Owner: volume.NewOwner(v, store, zerolog.Nop()), Log: log, Logger: zerolog.Nop(),
			BlockSize: 512, Blocks: 8, Interval: time.Second,
			Outcome: func(what string, err error) {
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			},
		}, nil, "")
		if k.next() != nil {
			t.Error("a checkpoint is to come of a log that has not grown")
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			k.Run(ctx)
		}()
		for round := range 3 {
			one := volume.Length{Objects: 1, Bytes: 512}
			log.grow(one)
			k.Grew(volume.Growth{Length: one})
			time.Sleep(2 * time.Second)
			if kept := k.Kept(); len(kept) != min(round+1, layout.MaxCheckpoints) {
				t.Errorf("round %d: %d checkpoints", round, len(kept))
			}
			log.mu.Lock()
			before := log.looks
			log.mu.Unlock()
			time.Sleep(time.Hour)
			log.mu.Lock()
			if log.looks != before {
				t.Errorf("round %d: it was awake while the log did not grow", round)
			}
			log.mu.Unlock()
		}
		stop()
		<-ended
	})
}

// taken is a store in which every name is taken, and none is there.
type taken struct {
	objproxy.Store
	puts int
}

var errEnough = errors.New("enough")

func (s *taken) Put(context.Context, string, objproxy.Body, objproxy.Condition) (objproxy.Version, error) {
	if s.puts++; s.puts > 100 {
		return "", errEnough
	}
	return "", objproxy.ErrExists
}

// A store that contradicts itself is not asked without a pause.
func TestPutOncePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &taken{Store: objtest.NewMemory()}
		k := New(Config{Store: store, Logger: zerolog.Nop()}, nil, "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		name := func(counter uint32) string { return layout.PackName(1, counter) }
		if _, err := k.putOnce(ctx, []byte("a"), name); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %d puts: %v", store.puts, err)
		}
	})
}
