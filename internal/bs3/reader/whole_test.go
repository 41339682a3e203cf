package reader

import (
	"testing"

	"bs3/internal/bs3/key"
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
	if r.orderWhole(4, 1) != nil || w.mu.blocks != 0 || len(w.mu.underWay) != 0 {
		t.Error("something is ordered still")
	}
}
