package objproxy

import (
	"context"
	"testing"
)

// leaving is a ctx that is done, except at the first call of Err.
type leaving struct {
	context.Context
	looks int
}

func (c *leaving) Err() error {
	if c.looks++; c.looks == 1 {
		return nil
	}
	return c.Context.Err()
}

// TestSlotGivenToOneWhoLeft checks that a slot goes back that is granted at the
// moment at which the ctx of its request ends.
func TestSlotGivenToOneWhoLeft(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for _, ctx := range []context.Context{done, Background(done)} {
		s := newSlots(2)
		got, left := 0, 0
		for range 200 {
			release, err := s.acquire(&leaving{Context: ctx})
			if err == nil {
				got++
				release()
			} else {
				left++
			}
		}
		// Go chooses between two ready cases at random.
		if got == 0 || left == 0 {
			t.Errorf("%d got the slot and %d left: not what this test is about", got, left)
		}
		if s.free != 2 || s.background != 0 || s.users.Len()+s.others.Len() != 0 {
			t.Errorf("%d free, %d in the background, %d waiters", s.free, s.background, s.users.Len()+s.others.Len())
		}
	}
}
