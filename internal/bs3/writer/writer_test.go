package writer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/era"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

const (
	testBlock  = 512
	testBlocks = 2 * layout.LeafBlocks
	testChunk  = 8 // blocks
	testSlots  = 6
)

// newLog returns the log of an empty volume in a memory store, which has a
// record that names its writer.
func newLog(t *testing.T, change ...func(*Config)) *Log {
	t.Helper()
	store := objtest.NewMemory()
	v := &layout.Volume{
		UUID: layout.NewUUID(), Generation: 1, Created: time.Now(), Epoch: 1, Writer: layout.Writer{Nonce: layout.NewNonce()},
		BlockSize: testBlock, ChunkSize: testChunk * testBlock, Size: testBlocks * testBlock, LargestSize: testBlocks * testBlock,
	}
	b, err := layout.EncodeVolume(v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	c := Config{
		Store: store, Owner: volume.NewOwner(v, store, zerolog.Nop()),
		Life: life.New(t.Context(), zerolog.Nop()), Log: zerolog.Nop(),
		BlockSize: testBlock, ChunkBlocks: testChunk, Slots: testSlots, Durable: true, Uploaders: 4,
	}
	for _, f := range change {
		f(&c)
	}
	r := Recovered{Map: mapproxy.New(testBlocks), Seq: 1}
	r.Map.AddObject(layout.ObjectInfo{Key: 0, Epoch: 1, Fence: true})
	l := New(c, r)
	l.AddSlots(wlog.NewHeapMemory(&layout.MemoryHeader{UUID: v.UUID, BlockSize: testBlock, ChunkBlocks: testChunk, Slots: testSlots}).Slots())
	l.Start()
	t.Cleanup(func() {
		c.Life.End()
		l.Close()
	})
	return l
}

// A discard has taken a whole leaf out of the map and its goroutine has not
// had the lock again when a collection runs to its end.
func TestSettleAfterDelete(t *testing.T) {
	l := newLog(t)
	if err := errors.Join(l.Write(t.Context(), make([]byte, testChunk*testBlock), 0), l.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	// Zero, up to the point where inTurn has returned:
	var pending *mapproxy.Unsettled
	if err := l.inTurn(t.Context(), 0, func() { pending = l.zero(0, testBlocks) }); err != nil {
		t.Fatal(err)
	}
	outcome := func(what string, err error) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var fetches era.Readers
	collector := gc.New(gc.Config{
		Options: gc.Options{LiveData: 0.5}, Store: l.c.Store, UUID: l.c.Owner.UUID, Log: l, Map: l.View(),
		Checkpoints: checkpoint.New(checkpoint.Config{
			Store: l.c.Store, Owner: l.c.Owner, Log: l, Logger: zerolog.Nop(), BlockSize: testBlock, Blocks: testBlocks, Outcome: outcome,
		}, nil, ""),
		Fetches: &fetches, Misses: func() uint64 { return 0 }, Life: l.c.Life, Logger: zerolog.Nop(),
		BlockSize: testBlock, ChunkBlocks: testChunk, Outcome: outcome,
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		collector.Run(ctx)
	}()
	r, err := collector.Collect(t.Context())
	t.Logf("%+v %v", r, err)
	stop()
	<-ended
	l.settle(pending)
	if dead := l.Dead([]key.Key{1}); len(dead) != 1 {
		t.Error("the object, whose blocks were discarded, does not count as dead")
	}
	if _, err := l.Verify(); err != nil {
		t.Error(err)
	}
}

// What keeps a log from moving keeps a probe from success.
func TestProbeOfStuckLog(t *testing.T) {
	l := newLog(t)
	late := errors.New("too late")
	probe := func() error {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
		defer cancel()
		return l.Probe(ctx, func() {})
	}
	if err := probe(); err != nil {
		t.Fatal(err)
	}

	// A reader of chunk memory that stays.
	v := l.Enter()
	if err := probe(); !errors.Is(err, late) {
		t.Errorf("with a reader that stays: %v", err)
	}
	l.Leave(v)

	// A chunk lock that is not given back.
	l.mu.Lock()
	probed := make(chan error, 1)
	go func() { probed <- probe() }()
	select {
	case err := <-probed:
		t.Errorf("without the chunk lock: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	l.mu.Unlock()
	if err := <-probed; err != nil {
		t.Error(err)
	}

	// A writer that nobody has told of the free slots. One look is not enough to
	// know: it may be about to try.
	l.mu.Lock()
	w := l.mu.line.join()
	l.mu.Unlock()
	if err := probe(); err != nil {
		t.Errorf("the first look at a writer: %v", err)
	}
	if err := probe(); !errors.Is(err, errLineStuck) {
		t.Errorf("with a writer that waits for nothing: %v", err)
	}
	l.mu.Lock()
	l.mu.line.quit(w)
	l.mu.Unlock()
	if err := probe(); err != nil {
		t.Error(err)
	}
}

// A chunk that is opened to replay a write has that write when it is sealed,
// however soon it lingers for too long.
func TestReplayMakesNoEmptyObjects(t *testing.T) {
	l := newLog(t, func(c *Config) { c.Linger = 1 })
	data := make([]byte, testBlock)
	stored, crcs := append(data, 0, 0, 0, 0), layouttest.CRCs(data, testBlock)
	for i := range uint64(2000) {
		e := wlog.NewEntry(layout.Record{Seq: 1 + i, Block: i % testBlocks, Blocks: 1, Kind: layout.KindWrite}, stored, crcs, testBlock)
		if err := l.Replay(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.FlushToStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	tails := volume.Tails{Store: l.c.Store, UUID: l.c.Owner.UUID, ChunkBlocks: testChunk}
	for k := key.Key(1); k < l.Now().Next; k++ {
		tail, err := tails.Read(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		if len(tail.Object.Records) == 0 {
			t.Errorf("object %d holds nothing", k)
		}
	}
}
