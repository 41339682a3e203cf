package reader

import (
	"context"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// When reading ahead ends, nobody waits any more for what was ordered.
func TestOrdersEnd(t *testing.T) {
	o := &order{key: 3, blocks: 5, done: make(chan struct{})}
	r := &Reader{}
	w := &r.wholes
	w.orders = make(chan *order, mostOrders)
	w.mu.underWay, w.mu.tried = map[key.Key]*order{o.key: o}, make(map[key.Key]bool)
	w.mu.blocks = o.blocks
	w.orders <- o
	w.end()
	select {
	case <-o.done:
	default:
		t.Error("an order has not ended")
	}
	if r.orderWhole(want{4, 1, 1}) != nil || w.mu.blocks != 0 || len(w.mu.underWay) != 0 {
		t.Error("something is ordered still")
	}
}

// Requests for much take the room of several, so that what is read ahead and what is
// fetched whole is bounded in memory together.
func TestTurns(t *testing.T) {
	r := newReadahead(128)
	var releases []func()
	for range aheadFetches {
		release, ok := r.takeTurns(t.Context(), 64<<20)
		if !ok {
			t.Fatal("there is no room")
		}
		releases = append(releases, release)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := r.takeTurns(ctx, 1); ok {
		t.Error("there is room for more than half of the downloaders")
	}
	for _, release := range releases {
		release()
	}
	if len(r.turns) != 0 || len(r.line) != 0 {
		t.Error("not all turns are free again")
	}
}

// A large buffer is hardly larger than what it is for.
func TestLargeBuffers(t *testing.T) {
	b := newBuffers(4100, 1)
	for _, n := range []uint32{256, 257, 1024, 1025, 1033, 16400} {
		if p := b.get(n); len(*p) != int(n)*4100 || cap(*p) > len(*p)*9/8 {
			t.Errorf("%d blocks get a buffer of %d", n, cap(*p)/4100)
		}
	}
}

// An object of which hardly anything lives costs more than what lives in it.
func TestWorthWhole(t *testing.T) {
	for _, c := range []struct {
		total, live, blocks uint32
		requests            int
		want                bool
	}{
		{1024, 1024, 1, 1, true},
		{1024, 1024, 600, 1, false},
		{1024, 1024, 600, 2, true},
		{1024, 64, 1, 1, true},
		{1024, 64, 64, 2, true},
		{1024, 63, 1, 1, false},
		{1024, 63, 63, 2, false},
		{1024, 2, 1, 1, false},
		{2, 2, 1, 1, true},
		{1, 1, 1, 1, false},
		{0, 0, 1, 1, false}, // it was collected
	} {
		if worthWhole(layout.ObjectInfo{Total: c.total, Live: c.live}, want{blocks: c.blocks, requests: c.requests}, 4096) != c.want {
			t.Errorf("%+v", c)
		}
	}
}
