package bs3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
	"bs3/internal/device"
)

const blockSize = 512

var bootA, bootB = [16]byte{1}, [16]byte{2}

// options describes a small volume: 1000 blocks, chunks of 8, on store.
func options(t *testing.T, store objproxy.Store) bs3.Options {
	t.Helper()
	return bs3.Options{
		Store: store, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel),
		Host: bs3.Host{ID: "machine-a", Name: "a", Boot: bootA},
		Size: 1000 * blockSize, BlockSize: blockSize, ChunkSize: 8 * blockSize,
		Durable: true, Memory: 6 * 8 * blockSize, Uploaders: 4,
		StatePath: t.TempDir(), OpenFor: 5 * time.Second,
	}
}

func open(t *testing.T, o bs3.Options) *bs3.Engine {
	t.Helper()
	e, err := bs3.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return e
}

func shut(t *testing.T, e *bs3.Engine) {
	t.Helper()
	if err := e.Close(t.Context()); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// checkpointed writes a checkpoint, and returns when what it replaces is gone.
func checkpointed(t *testing.T, e *bs3.Engine) error {
	t.Helper()
	if err := e.Checkpoint(t.Context()); err != nil {
		return err
	}
	return e.Sweep(t.Context())
}

// kill ends an engine as SIGKILL would, as far as one process can: it stops
// at once, stores nothing more, and its lock is given back.
func kill(t testing.TB, e *bs3.Engine) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Close(ctx); err == nil {
		t.Fatal("close without a context succeeded")
	}
}

// shadow is what a volume should hold.
type shadow struct{ bytes []byte }

func newShadow(e *bs3.Engine) *shadow { return &shadow{make([]byte, e.Geometry().Size)} }

func (s *shadow) write(t *testing.T, e *bs3.Engine, rnd *rand.Rand, block, blocks int) {
	t.Helper()
	p := make([]byte, blocks*blockSize)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	if err := e.WriteAt(t.Context(), p, int64(block*blockSize)); err != nil {
		t.Fatalf("write: %v", err)
	}
	copy(s.bytes[block*blockSize:], p)
}

func (s *shadow) discard(t *testing.T, e *bs3.Engine, block, blocks int) {
	t.Helper()
	if err := e.Discard(t.Context(), int64(block*blockSize), int64(blocks*blockSize)); err != nil {
		t.Fatalf("discard: %v", err)
	}
	clear(s.bytes[block*blockSize : (block+blocks)*blockSize])
}

func (s *shadow) compare(t *testing.T, e *bs3.Engine) {
	t.Helper()
	p := bytes.Repeat([]byte{0xEE}, len(s.bytes))
	if err := e.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatalf("read: %v", err)
	}
	for b := 0; b < len(p); b += blockSize {
		if !bytes.Equal(p[b:b+blockSize], s.bytes[b:b+blockSize]) {
			t.Fatalf("block %d differs", b/blockSize)
		}
	}
}

// some does n random requests.
func (s *shadow) some(t *testing.T, e *bs3.Engine, rnd *rand.Rand, n int) {
	t.Helper()
	for range n {
		block := rnd.IntN(980)
		switch blocks := 1 + rnd.IntN(20); rnd.IntN(10) {
		case 0:
			s.discard(t, e, block, blocks)
		case 1:
			if err := e.Flush(t.Context()); err != nil {
				t.Fatalf("flush: %v", err)
			}
		default:
			s.write(t, e, rnd, block, blocks)
		}
	}
}

func TestWriteReadReopen(t *testing.T) {
	for _, durable := range []bool{true, false} {
		t.Run(fmt.Sprintf("durable=%v", durable), func(t *testing.T) {
			store := objtest.NewMemory()
			o := options(t, store)
			o.Durable = durable
			o.ReadCache = 300 * blockSize
			rnd := rand.New(rand.NewPCG(1, 2))
			e := open(t, o)
			s := newShadow(e)
			for i := range 6 {
				s.some(t, e, rnd, 60)
				s.compare(t, e)
				if i%2 == 0 {
					shut(t, e)
				} else {
					kill(t, e)
				}
				if i == 4 { // cleanly closed: the state is not needed
					if err := os.RemoveAll(o.StatePath); err != nil {
						t.Fatal(err)
					}
				}
				e = open(t, o)
				s.compare(t, e)
			}
			shut(t, e)
		})
	}
}

func TestRefusals(t *testing.T) {
	store := objtest.NewMemory()
	base := options(t, store)
	shut(t, open(t, base))
	for name, change := range map[string]func(*bs3.Options){
		"block size": func(o *bs3.Options) {
			o.BlockSize = 4096
			o.ChunkSize = 8 * 4096
			o.Size = 100 * 4096
			o.Memory = 1 << 20
		},
		"chunk size": func(o *bs3.Options) { o.ChunkSize *= 2 },
		"size":       func(o *bs3.Options) { o.Size *= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			before := objects(t, store)
			o := base
			change(&o)
			_, err := bs3.Open(t.Context(), o)
			if !errors.Is(err, volume.ErrRefused) {
				t.Fatalf("open: %v", err)
			}
			t.Log(err)
			if after := objects(t, store); after != before {
				t.Fatalf("the store changed: %s, was %s", after, before)
			}
		})
	}
}

// objects lists a store's names and versions.
func objects(t *testing.T, store objproxy.Store) string {
	t.Helper()
	list, err := store.List(t.Context(), "", "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(list)
}

func TestNeverWrittenReadsZeros(t *testing.T) {
	e := open(t, options(t, objtest.NewMemory()))
	defer shut(t, e)
	for _, read := range []func(p []byte) error{
		func(p []byte) error { return e.ReadAt(t.Context(), p, 4*blockSize) },
		func(p []byte) error {
			if !e.TryReadAt(p, 4*blockSize) {
				return errors.New("a hole would block")
			}
			return nil
		},
	} {
		p := bytes.Repeat([]byte{0xAA}, 5*blockSize)
		if err := read(p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Fatal("a block that was never written holds what the buffer held")
		}
	}
}

var (
	_ device.Volume    = (*bs3.Engine)(nil)
	_ device.Fast      = (*bs3.Engine)(nil)
	_ device.Allocator = (*bs3.Engine)(nil)
	_                  = filepath.Join
)
