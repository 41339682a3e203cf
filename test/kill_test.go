package test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// kill -9 of the daemon under a live client that has acknowledged writes which
// were not flushed. With its state the next daemon brings all of them back.
// Without, the volume is a prefix of what was acknowledged and has all that was
// flushed: from the store, or from the local log, unless that is lost too. Then
// only --forget-local-log opens the volume.
func TestKillUnderLiveClient(t *testing.T) {
	for _, test := range []struct {
		name, store string
		mode        string
		wiped       bool // the state is gone as well, as after a reboot
		lost        bool // so is the local log, as with the machine
		reopened    bool // the next daemon is killed too, while it opens the volume
		rounds      int
	}{
		{name: "kept/dir", store: onDir, mode: durable, rounds: 20},
		{name: "kept/versitygw", store: onVersitygw, mode: durable, rounds: 10},
		{name: "kept/dir/barrier", store: onDir, mode: barrier, rounds: 5},
		{name: "kept/dir/log", store: onDir, mode: localLog, rounds: 10},
		{name: "kept/dir/killed again", store: onDir, mode: durable, reopened: true, rounds: 10},
		{name: "wiped/dir", store: onDir, mode: durable, wiped: true, rounds: 20},
		{name: "wiped/versitygw", store: onVersitygw, mode: durable, wiped: true, rounds: 20},
		{name: "wiped/dir/barrier", store: onDir, mode: barrier, wiped: true, rounds: 5},
		{name: "wiped/dir/log", store: onDir, mode: localLog, wiped: true, rounds: 20},
		{name: "wiped/versitygw/log", store: onVersitygw, mode: localLog, wiped: true, rounds: 10},
		{name: "wiped/dir/log/killed again", store: onDir, mode: localLog, wiped: true, reopened: true, rounds: 10},
		{name: "lost/dir/log", store: onDir, mode: localLog, wiped: true, lost: true, rounds: 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			if *long {
				test.rounds = 50
			}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			// Small objects, so that many are on their way to the store at any time.
			v := newVolume(t, test.store).inMode(test.mode).with("write.chunk_size", 1).with("write.memory", 64)
			d := v.start()
			h := newHistory()
			if test.mode == localLog { // flushes cost little
				h.flushes = 20
			}
			replayed, held := 0, 0
			for round := 1; round <= test.rounds; round++ {
				before := v.info().Epoch
				h.untilKilled(t, v, d, rng)
				held += h.held()
				opens := uint64(1)
				if test.wiped {
					v.wipeState()
				}
				var args []string
				if test.lost {
					v.loseDisk()
					if code := v.launch().wait(); code != 78 {
						t.Fatalf("round %d: without its local log: exit code %d", round, code)
					}
					args = append(args, "--forget-local-log")
				}
				if test.reopened {
					again := v.launch()
					again.killAfter(time.Duration(rng.IntN(60)) * time.Millisecond)
					opens += v.info().Epoch - before
				}
				d = v.start(args...)
				if now := v.info().Epoch; now != before+opens {
					t.Fatalf("round %d: epoch is %d, was %d before %d opens", round, now, before, opens)
				}
				for _, line := range d.logged("replayed chunk memory") {
					replayed += field[int](t, line, "writes")
				}
				found := h.look(t, v)
				var err error
				if test.wiped {
					err = h.isPrefix(found, test.mode == durable || test.mode == localLog && !test.lost)
				} else {
					err = h.isComplete(found)
				}
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				h.startFrom(found)
			}
			d.stop()
			t.Logf("%d rounds: %d acknowledged writes were not flushed, %d were replayed", test.rounds, held, replayed)
			if held < test.rounds { // a single kill may come right after a flush
				t.Errorf("the kills left too little unflushed to prove anything")
			}
			if kept := !test.wiped || test.mode == localLog && !test.lost; (replayed > 0) != kept {
				t.Errorf("%d writes were replayed", replayed)
			}
		})
	}
}

// killAfter kills the daemon after a moment.
func (d *daemon) killAfter(moment time.Duration) {
	select {
	case <-d.ended:
	case <-time.After(moment):
	}
	d.kill()
}

// untilKilled lets the writers work for a moment and kills the daemon.
func (h *history) untilKilled(t *testing.T, v *volume, d *daemon, rng *rand.Rand) {
	t.Helper()
	clients := []*client{dial(t, v.socket), dial(t, v.socket)}
	enough := h.acked.Load() + 200
	moment := time.Duration(20+rng.IntN(100)) * time.Millisecond
	result := make(chan error, 1)
	go func() {
		result <- h.run(clients, rng.Uint64(), func() bool { return h.acked.Load() >= enough })
	}()
	d.waitFor("enough writes to be acknowledged", func() bool { return h.acked.Load() >= enough || len(result) > 0 })
	select {
	case err := <-result:
		t.Fatalf("the writers ended before the daemon did: %v", err)
	case <-time.After(moment):
	}
	d.kill()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		c.close()
	}
}

// look reads all blocks and returns for each the change that wrote it.
func (h *history) look(t *testing.T, v *volume) []uint64 {
	t.Helper()
	c := dial(t, v.socket)
	defer c.close()
	found := make([]uint64, len(h.blocks))
	for w := range writers {
		data := c.read(int64(w)*areaBlocks*blockSize, areaBlocks*blockSize)
		for i := range areaBlocks {
			b := w*areaBlocks + i
			id, err := stamped(data[i*blockSize:][:blockSize], b)
			if err != nil {
				t.Fatal(err)
			}
			found[b] = id
		}
	}
	return found
}

// isComplete checks that every acknowledged change is there. One that was in
// flight may be, as a whole.
func (h *history) isComplete(found []uint64) error {
	there, missing := map[*change]int{}, map[*change]int{}
	for b, list := range h.blocks {
		last := list[len(list)-1]
		if found[b] == last.id {
			there[last] = b
			continue
		}
		missing[last] = b
		if last.done > 0 || found[b] != list[len(list)-2].id {
			return fmt.Errorf("block %d has change %d; its changes were %v", b, found[b], show(list))
		}
	}
	for x, b := range missing {
		// After a discard another discard cannot be seen.
		if other, ok := there[x]; ok && x.id != 0 {
			return fmt.Errorf("a torn write: block %d has it, block %d has not: %+v", other, b, *x)
		}
	}
	return nil
}

// isPrefix checks that no change is there that was sent after a missing one was
// acknowledged, and that what was flushed is there.
func (h *history) isPrefix(found []uint64, durable bool) error {
	var present *change // that was sent last
	var lost *change    // that was acknowledged first
	for b, list := range h.blocks {
		is := func(x *change) bool { return x.id == found[b] }
		oldest := slices.IndexFunc(list, is)
		if oldest < 0 {
			return fmt.Errorf("block %d has change %d, which is older than the last look or another block's; its changes were %v", b, found[b], show(list))
		}
		// Discards look alike: doubts are decided in favour of the volume.
		if x := list[oldest]; present == nil || x.sent > present.sent {
			present = x
		}
		newest := len(list) - 1
		for !is(list[newest]) {
			newest--
		}
		for _, x := range list[newest+1:] {
			if x.done == 0 {
				continue
			}
			if durable && x.done < h.flushed.Load() {
				return fmt.Errorf("block %d has change %d, but a later one was flushed (at %d); its changes were %v", b, found[b], h.flushed.Load(), show(list))
			}
			if lost == nil || x.done < lost.done {
				lost = x
			}
		}
	}
	if lost != nil && present.sent > lost.done {
		return fmt.Errorf("not a prefix: %+v is missing, %+v is there", *lost, *present)
	}
	return nil
}

// startFrom begins a new history with what look found.
func (h *history) startFrom(found []uint64) {
	for b := range h.blocks {
		h.blocks[b] = []*change{{id: found[b], first: b, n: 1, done: 1}}
	}
}

func show(list []*change) (s []change) {
	for _, x := range list {
		s = append(s, *x)
	}
	return s
}
