package wlog

import (
	"slices"
	"testing"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
)

// TestBehind: a record that the count leaves out is seen if it is of the same
// chunk and the next one, and not what an earlier chunk has left there.
func TestBehind(t *testing.T) {
	const chunk = 4
	s := NewHeapSlot(logUUID, chunk, logBlock)
	add := func(seq uint64, blocks int) {
		data := make([]byte, blocks*logBlock)
		r := layout.Record{Block: seq, Blocks: uint32(blocks), Kind: layout.KindWrite, Index: uint32(seq-1) % chunk, Seq: seq}
		s.Add(r, data, layouttest.CRCs(data, logBlock))
	}
	behind := func(n uint32) (uint64, bool) {
		t.Helper()
		layout.PutSlotCount(s.mem, n)
		entries, err := s.Entries()
		if err != nil || len(entries) != int(n) {
			t.Fatalf("%d entries: %v", len(entries), err)
		}
		r, ok := s.Behind(entries)
		return r.Seq, ok
	}
	s.Begin(layout.SlotHeader{Key: 1, Nonce: logNonce, Epoch: 1, FirstSeq: 1})
	for seq := range uint64(3) {
		add(1+seq, 1)
	}
	if seq, ok := behind(3); ok {
		t.Errorf("behind all of them lies write %d", seq)
	}
	for n := range uint32(2) {
		if seq, ok := behind(1 + n); !ok || seq != uint64(n)+2 {
			t.Errorf("behind %d lies write %d, %v", 1+n, seq, ok)
		}
	}
	if _, ok := behind(0); ok {
		t.Error("a slot that was emptied holds what nobody needs")
	}
	s.Begin(layout.SlotHeader{Key: 2, Nonce: logNonce, Epoch: 1, FirstSeq: 5})
	add(5, 1)
	if seq, ok := behind(1); ok {
		t.Errorf("write %d of an earlier chunk counts", seq)
	}
}

// TestLogEntriesAgain: what was found can be read more than once.
func TestLogEntriesAgain(t *testing.T) {
	dir := lockDir(t)
	l := newLog(t, dir, 64)
	for i := range uint64(5) {
		write(t, l, addition(1, 1+2*i, 0, 1))
	}
	l = reopen(t, dir, l)
	for range 3 {
		if next := replays(t, l, 1); next != 11 {
			t.Fatalf("the log ends at write %d", next)
		}
	}
	if next := replays(t, l, 5); next != 11 {
		t.Errorf("from write 5 on the log ends at %d", next)
	}
}

// TestDropIntent: one claim is forgotten, and the chain of the others stays.
func TestDropIntent(t *testing.T) {
	dir := lockDir(t)
	nonce := func(n byte) layout.Nonce { return layout.Nonce{n} }
	for _, in := range []Intent{{nonce(2), nonce(1), true}, {nonce(3), nonce(2), true}, {nonce(3), nonce(9), false}} {
		if err := dir.AddIntent(in); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []byte{7, 3} { // one that there is not, and one that was tried twice
		if err := dir.DropIntent(nonce(n)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := dir.intents()
	if err != nil || !slices.Equal(list, []Intent{{nonce(2), nonce(1), true}}) {
		t.Errorf("%v, %v", list, err)
	}
	if err := dir.DropIntent(nonce(2)); err != nil {
		t.Fatal(err)
	}
	if list, err := dir.intents(); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}
