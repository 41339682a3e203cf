package writer

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"bs3/internal/bs3/layout"
)

// lender is a read cache on a disk: it never comes to what it is lent, but for the first
// loan, which it is using until release.
type lender struct {
	t     *testing.T
	mu    sync.Mutex
	loans int
	first *fakeLoan
}

type fakeLoan struct {
	stored, copy []byte
	back         func()
}

func (f *lender) lend(_ layout.Location, blocks []uint64, stored []byte, _ uint64, back func()) func() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(blocks)*layout.Stride(testBlock) != len(stored) {
		f.t.Errorf("%d blocks in %d bytes", len(blocks), len(stored))
	}
	l := &fakeLoan{stored, bytes.Clone(stored), back}
	f.loans++
	if f.first == nil {
		f.first = l
		return func() bool { l.unchanged(f.t); return false }
	}
	return func() bool { l.unchanged(f.t); return true }
}

func (l *fakeLoan) unchanged(t *testing.T) {
	if !bytes.Equal(l.stored, l.copy) {
		t.Error("memory that is lent was written to")
	}
}

// TestSlowDiskCacheDelaysNoWrite: what is lent to a disk that does not come to it, or hangs
// while it writes from it, is taken back when writes need it, but for what is in use.
func TestSlowDiskCacheDelaysNoWrite(t *testing.T) {
	f := &lender{t: t}
	l := newLog(t, func(c *Config) {
		c.Keep = func(layout.Location, []uint64, []byte, uint64, bool) {}
		c.Lend = f.lend
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 20 * testSlots * testChunk {
		if err := l.Write(ctx, bytes.Repeat([]byte{byte(i)}, testBlock), int64(i%testBlocks)*testBlock); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.FlushToStore(ctx); err != nil {
		t.Fatal(err)
	}
	l.Drained()
	if f.loans != 20*testSlots {
		t.Errorf("%d of %d chunks were lent", f.loans, 20*testSlots)
	}
	if n := l.Now().Free; n != testSlots {
		t.Errorf("%d of %d slots are free at rest", n, testSlots)
	}
	f.first.unchanged(t)

	// One that waits for the last slot goes on when the disk gives it back.
	l.mu.Lock()
	l.mu.free, l.mu.lent = nil, l.mu.lent[:1]
	if l.takeSlot() != nil {
		t.Error("a slot that is in use was taken")
	}
	l.mu.Unlock()
	if l.TryWrite(make([]byte, testBlock), 0) {
		t.Error("a write without memory")
	}
	wrote := make(chan error, 1)
	go func() { wrote <- l.Write(ctx, make([]byte, testBlock), 0) }()
	for l.Now().Waiting == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 2 { // the disk hangs, and that is not the log's fault
		if l.lineStuck() {
			t.Error("the log is thought to be stuck")
		}
	}
	f.first.back()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}
