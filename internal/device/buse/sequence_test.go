package buse

import (
	"math/rand/v2"
	"testing"

	"bs3/internal/device"
)

// An empty device costs a pointer for each collision area, and what is written
// 4 bytes a block.
func TestAreasAreMadeWhenWritten(t *testing.T) {
	s := newSequences(newFormat(device.Geometry{Size: 1 << 40, BlockSize: 4096}, 1<<20))
	if n := len(s.areas); n != 1<<20 {
		t.Errorf("%d areas", n)
	}
	a, err := s.enter(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	a.leave()
	for i := range s.areas {
		if made := s.areas[i].Load() != nil; made != (i == 3) {
			t.Fatalf("area %d made: %v", i, made)
		}
	}
	if n := len(a.newest); n != 256 {
		t.Errorf("%d numbers for an area of 256 blocks", n)
	}
}

// A counter that goes round four times, with steps as large as they can be
// without a bubble of records that is larger than memory. Some blocks are
// written all the time and some next to never. A true number of 64 bits beside
// says what is newer.
func TestNumbersGoRound(t *testing.T) {
	const blocks = 16
	for range 200 {
		a := &area{newest: make([]uint32, blocks)}
		rnd := rand.New(rand.NewPCG(rand.Uint64(), 0))
		var highest uint64
		var newest [blocks]uint64
		for highest < 4<<32 {
			step := 1 + rnd.Uint64N(1<<rnd.UintN(29))
			highest += step
			number := highest
			if rnd.IntN(4) == 0 && highest > 1<<25 {
				number -= rnd.Uint64N(1 << 25) // late
			}
			i := rnd.Int64N(blocks)
			if i > 2 && rnd.IntN(50) > 0 {
				i = 0
			}
			if number == newest[i] {
				continue // the module gives each only once
			}
			skip, take := a.newer(i, i+1, uint32(number))
			if skip+take != 1 || (take == 1) != (number > newest[i]) {
				t.Fatalf("block %d: number %d after %d is taken: %v", i, number, newest[i], take == 1)
			}
			if take == 1 {
				a.note(i, i+1, uint32(number))
				newest[i] = number
			} else if highest-number > 1<<25 {
				t.Fatal("the test is wrong")
			}
		}
	}
}

// Zero stands for nothing, but is a number too once in a round.
func TestNumberZero(t *testing.T) {
	for _, order := range [][]uint32{{1<<32 - 1, 0, 1}, {0, 1<<32 - 1, 1}, {1, 0, 1<<32 - 1}, {0, 1, 1<<32 - 1}} {
		a := &area{newest: make([]uint32, 1)}
		a.note(0, 1, 1<<32-2)
		var last uint32
		for _, number := range order {
			if _, take := a.newer(0, 1, number); take == 1 {
				a.note(0, 1, number)
				last = number
			}
		}
		if last != 1 {
			t.Errorf("in the order %v the last to be taken is %d", order, last)
		}
	}
}

func TestNewerFindsRuns(t *testing.T) {
	a := &area{newest: []uint32{0, 5, 9, 9, 3, 0, 9}}
	for _, test := range []struct{ i, end, skip, take int64 }{
		{0, 7, 0, 2}, {2, 7, 2, 2}, {6, 7, 1, 0}, {3, 4, 1, 0}, {4, 5, 0, 1}, {2, 2, 0, 0},
	} {
		if skip, take := a.newer(test.i, test.end, 7); skip != test.skip || take != test.take {
			t.Errorf("from %d to %d: passes over %d and takes %d, want %d and %d", test.i, test.end, skip, take, test.skip, test.take)
		}
	}
}
