package buse

import (
	"context"
	"sync/atomic"
	"testing"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// small are the least options that a device of blocks of 512 bytes can have.
func small() Options {
	return Options{
		Threads: 3, QueueDepth: 16,
		ChunkSize: 8 << 10, WriteBuffer: 64 << 10, ReadBuffer: 32 << 10, CollisionArea: 4 << 10,
	}
}

// served is a device that runs.
type served struct {
	*module
	dev    *Device
	unused chan struct{} // closed by Options.Unused
	ended  chan error
	stop   context.CancelFunc
}

// serve runs a device of vol on m.
func serve(t *testing.T, m *module, vol device.Volume, opts Options) *served {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ready := make(chan string, 1)
	opts.Ready = func(path string) { ready <- path }
	s := &served{module: m, unused: make(chan struct{}), ended: make(chan error, 1), stop: stop}
	opts.Unused = func() { close(s.unused) }
	s.dev = newDevice(vol, opts, m.sys)
	go func() { s.ended <- s.dev.Run(ctx) }()
	select {
	case path := <-ready:
		if path != s.dev.Path() {
			t.Errorf("%s is ready, not %s", path, s.dev.Path())
		}
	case err := <-s.ended:
		stop()
		t.Fatalf("Run: %v", err)
	}
	return s
}

// end stops the device and returns what Run does.
func (s *served) end(t *testing.T) error {
	t.Helper()
	s.stop()
	return <-s.ended
}

func TestContract(t *testing.T) {
	for name, test := range map[string]struct {
		geometry device.Geometry
		opts     Options
	}{
		"Block4096": {
			geometry: device.Geometry{Size: 8 << 20, BlockSize: 4096},
			opts:     Options{Threads: 4, WriteBuffer: 4 << 20, ReadBuffer: 2 << 20, ChunkSize: 512 << 10},
		},
		"Block512": {geometry: device.Geometry{Size: 1 << 20, BlockSize: 512}, opts: small()},
		"OneQueue": {
			geometry: device.Geometry{Size: 1 << 20, BlockSize: 512},
			opts:     Options{Threads: 1, WriteBuffer: 128 << 10, ReadBuffer: 128 << 10, ChunkSize: 64 << 10, CollisionArea: 64 << 10},
		},
		"MaxDiscard": {geometry: device.Geometry{Size: 1 << 20, BlockSize: 512, MaxDiscard: 5*512 + 100}, opts: small()},
	} {
		t.Run(name, func(t *testing.T) {
			devtest.Run(t, func(t *testing.T) device.Volume {
				s := serve(t, newModule(t), devtest.NewMemory(test.geometry), test.opts)
				t.Cleanup(func() {
					if err := s.end(t); err != nil {
						t.Errorf("Run: %v", err)
					}
					if !s.removed {
						t.Error("the device was not removed")
					}
				})
				var turn atomic.Int64
				g := test.geometry
				g.MaxDiscard = 0
				return &disk{m: s.module, g: g, next: func() int { return int(turn.Add(1)) % len(s.queues) }}
			})
		})
	}
}
