package writer

import (
	"slices"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/wlog"
)

// loan is a free slot from which the read cache on the disk is being written. It is
// taken back when there is no other.
type loan struct {
	slot   *wlog.Slot
	revoke func() bool
}

// AddSlots empties slots and adds them to chunk memory.
func (l *Log) AddSlots(slots []*wlog.Slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slots {
		s.Clear()
		l.mu.free = append(l.mu.free, s)
	}
}

// giveBack makes the slot of c free, and lends it to the read cache on the disk. Under the
// chunk lock.
func (l *Log) giveBack(c *chunk) {
	m := &l.mu
	defer m.line.wake()
	if l.c.Lend != nil && c.kept != nil {
		x := &loan{slot: c.slot}
		x.revoke = l.c.Lend(layout.Loc(c.obj.Key, 0), c.kept, c.slot.Stored(0, c.obj.Blocks), l.c.Owner.Epoch, func() { l.returned(x) })
		if x.revoke != nil {
			m.lent = append(m.lent, x)
			return
		}
	}
	m.free = append(m.free, c.slot)
}

// returned takes back the slot of a loan that has ended.
func (l *Log) returned(x *loan) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &l.mu
	i := slices.Index(m.lent, x)
	m.lent = slices.Delete(m.lent, i, i+1)
	m.free = append(m.free, x.slot)
	m.line.wake()
}

// takeSlot takes a free slot, and one that is lent only if there is no other: the one that
// was lent first. It returns nil if there is none. Under the chunk lock.
func (l *Log) takeSlot() (s *wlog.Slot) {
	m := &l.mu
	if last := len(m.free) - 1; last >= 0 {
		s, m.free = m.free[last], m.free[:last]
		return s
	}
	i := slices.IndexFunc(m.lent, func(x *loan) bool { return x.revoke() })
	if i < 0 {
		return nil
	}
	s = m.lent[i].slot
	m.lent = slices.Delete(m.lent, i, i+1)
	return s
}
