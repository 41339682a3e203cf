package writer

import (
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// Objects returns what the object table says of at most n keys from from on,
// and whether there are more; also the durable key, and the one that is given
// out next.
func (l *Log) Objects(from key.Key, n int) (objects []layout.ObjectInfo, more bool, durable, next key.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	objects, more = l.mu.maps.Objects(from, n)
	return objects, more, l.mu.durable, l.mu.keys.Next()
}

// Live reports whether object k has live blocks.
func (l *Log) Live(k key.Key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, here := l.mu.maps.Object(k)
	return here && o.Live > 0
}

// Dead returns those of keys that are in the object table and have no live
// block, in the memory of keys.
func (l *Log) Dead(keys []key.Key) []key.Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	dead := keys[:0]
	for _, k := range keys {
		if o, here := l.mu.maps.Object(k); here && o.Live == 0 { // or a discard still counts it off
			dead = append(dead, k)
		}
	}
	return dead
}

// Forget takes objects that were deleted off the object table, and returns how
// many data blocks they had.
func (l *Log) Forget(keys []key.Key) (blocks uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		o, _ := l.mu.maps.Object(k)
		blocks += uint64(o.Total)
		l.mu.maps.RemoveObject(k)
	}
	l.mu.grown.Deleted += len(keys)
	return blocks
}

// Written returns how many bytes were written since the open, also by the replay of
// chunk memory.
func (l *Log) Written() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.written
}

// Activity returns the sequence number of the next record, and whether nothing
// was written since the last checkpoint.
func (l *Log) Activity() (seq uint64, idle bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.seq, l.mu.grown.Objects == 0 && l.mu.cur == nil
}

// Rewrite makes slot, in which the data blocks of moves lie, an object of the
// log, in one step: the open chunk is sealed before it takes the next key, and
// only blocks that still lie where they were read are moved. It returns how
// many; if there are none, no key is taken.
func (l *Log) Rewrite(slot *wlog.Slot, moves []volume.Move) (moved int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps := l.mu.maps
	c := &chunk{slot: slot}
	for i, m := range moves {
		if maps.Get(m.Block) != m.Source {
			continue
		}
		if last := len(c.obj.Records) - 1; last >= 0 && follows(c.obj.Records[last], m, i) {
			c.obj.Records[last].Blocks++
			continue
		}
		c.obj.Records = append(c.obj.Records, layout.Record{Block: m.Block, Blocks: 1, Kind: layout.KindMove, Index: uint32(i), Source: m.Source})
	}
	if len(c.obj.Records) == 0 || l.c.Life.Err() != nil {
		l.Drop(slot)
		return 0
	}
	l.seal()
	l.place(c)
	for _, m := range moves {
		slot.Take(m.CRC)
	}
	for _, r := range c.obj.Records {
		for i := range r.Blocks {
			if maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(c.obj.Key, r.Index+i)) { // a block may be there twice
				moved++
			}
		}
	}
	l.enqueue(c)
	return moved
}

// Fold gives back memory of the map around block that it does not need any more.
func (l *Log) Fold(block uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.maps.Fold(block)
}

// follows reports whether m, at data index i, extends r.
func follows(r layout.Record, m volume.Move, i int) bool {
	return m.Block == r.Block+uint64(r.Blocks) && i == int(r.Index+r.Blocks) &&
		m.Source.Key() == r.Source.Key() && m.Source.Index() == r.Source.Index()+r.Blocks
}
