package writer

import (
	"context"

	"bs3/internal/bs3/era"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/wlog"
)

// Enter lets Read and Has look at chunk memory until Leave.
func (l *Log) Enter() era.Visit { return l.readers.Enter() }

// Leave ends what Enter began.
func (l *Log) Leave(v era.Visit) { l.readers.Leave(v) }

// Read copies whole blocks from loc on to dst if they are in chunk memory. The
// caller must have looked loc up after Enter, and not have called Leave since. A
// chunk is in memory before the map shows it, and until the durable key covers
// it: false means that the store has it for good.
func (l *Log) Read(dst []byte, loc layout.Location) bool {
	c := l.ring.get(loc.Key())
	if c == nil {
		return false
	}
	c.slot.Read(dst, loc.Index())
	return true
}

// Has reports whether Read would find what lies at loc.
func (l *Log) Has(loc layout.Location) bool { return l.ring.get(loc.Key()) != nil }

// Object returns what the object table says of object k; zero if it was collected
// meanwhile.
func (l *Log) Object(k key.Key) layout.ObjectInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, _ := l.mu.maps.Object(k)
	return o
}

// Drained waits until no chunk is in memory; at rest that takes a moment.
func (l *Log) Drained() { l.inMemory.Wait() }

// Reading reports whether a request of the store, perhaps one that was given
// up, may still read chunk memory.
func (l *Log) Reading() bool { return l.bodies.Load() > 0 }

// Gone waits until nobody who has entered before reads chunk memory.
func (l *Log) Gone(ctx context.Context) error { return l.readers.Gone(ctx) }

// Slot returns a slot outside chunk memory, and waits until fewer than
// heapChunks are in use. It comes back by Drop or Rewrite, or with its chunk.
// Errors: device.ErrStopped, that of ctx.
func (l *Log) Slot(ctx context.Context) (*wlog.Slot, error) {
	select {
	case l.heap <- struct{}{}:
	case <-l.c.Life.Done():
		return nil, l.c.Life.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return wlog.NewHeapSlot(l.c.Owner.UUID, l.c.ChunkBlocks, l.c.BlockSize), nil
}

// Drop gives back a slot that Slot returned.
func (l *Log) Drop(*wlog.Slot) { <-l.heap }

// Replay writes again what an earlier writer had acknowledged. Its chunks are
// built outside chunk memory, which what is replayed may fill. Errors:
// device.ErrStopped, that of ctx.
func (l *Log) Replay(ctx context.Context, r wlog.Entry) error {
	var slot *wlog.Slot
	for !l.tryReplay(r, slot) {
		var err error
		if slot, err = l.Slot(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tryReplay appends r to the open chunk, or to one that it opens on slot, if
// that is not nil. If there is no room, what is open is sealed.
func (l *Log) tryReplay(r wlog.Entry, slot *wlog.Slot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slot != nil {
		l.begin(slot)
	}
	if !l.room(len(r.CRCs)) {
		l.seal()
		return false
	}
	if r.Kind == layout.KindZero {
		for u := l.zero(r.Block, uint64(r.Blocks)); !l.mu.maps.Settle(u); {
			continue
		}
		return true
	}
	l.write(r.Block, r.Data(), r.CRCs)
	return true
}
