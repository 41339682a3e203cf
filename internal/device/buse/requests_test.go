package buse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

const testBlocks = 64 // of the device of the directed tests

// driver calls the callbacks of a device as the library does.
type driver struct {
	t    testing.TB
	r    *requests
	cb   *callbacks
	opts Options
}

// newDriver starts a device of vol, with numbers that start again.
func newDriver(t testing.TB, vol device.Volume) *driver {
	t.Helper()
	opts := small()
	opts.CollisionArea = testArea * testBlock
	opts.fill()
	r := new(requests)
	r.start(t.Context(), vol, opts, runtime.Goexit)
	return &driver{t: t, r: r, cb: &callbacks{r}, opts: opts}
}

func newMemory() *devtest.Memory {
	return devtest.NewMemory(device.Geometry{Size: testBlocks * testBlock, BlockSize: testBlock})
}

// rec is a record of a chunk to be made.
type rec struct {
	op       operation
	first, n int
	number   uint32
	fill     byte
}

func write(first, n int, number uint32, fill byte) rec { return rec{opWrite, first, n, number, fill} }

// chunk returns the bytes of a chunk.
func (d *driver) chunk(list ...rec) []byte {
	p := bytes.Repeat([]byte{0xEE}, int(d.opts.ChunkSize)) // what an earlier chunk left
	data := p[d.opts.ChunkSize/testBlock*recordSize:]
	for i, r := range list {
		putRecord(p[i*recordSize:], r.op, int64(r.first)*testBlock, int64(r.n)*testBlock, r.number)
		if r.op == opWrite {
			n := copy(data, bytes.Repeat([]byte{r.fill}, r.n*testBlock))
			data = data[n:]
		}
	}
	return p
}

// call makes a call on a goroutine, as the library does. The channel reports whether
// it has returned: false if it never will.
func (d *driver) call(f func() error) <-chan bool {
	returned := make(chan bool, 1)
	go func() {
		ok := false
		defer func() { returned <- ok }()
		if err := f(); err != nil {
			d.t.Errorf("a callback returned %v, which the library takes for an acknowledgement", err)
		}
		ok = true
	}()
	return returned
}

func (d *driver) start(list ...rec) <-chan bool {
	p := d.chunk(list...)
	return d.call(func() error { return d.cb.BuseWrite(int64(len(list)), p) })
}

// send has a chunk taken.
func (d *driver) send(list ...rec) {
	d.t.Helper()
	if !<-d.start(list...) {
		d.t.Fatalf("chunk %v was not taken: %v", list, d.r.failure())
	}
}

// holds checks the blocks from first on; 0 stands for zeros.
func (d *driver) holds(first int, fills ...byte) {
	d.t.Helper()
	p := bytes.Repeat([]byte{0x77}, len(fills)*testBlock)
	if !<-d.call(func() error { return d.cb.BuseRead(int64(first), int64(len(fills)), p) }) {
		d.t.Fatalf("read failed: %v", d.r.failure())
	}
	for i, fill := range fills {
		if got := p[i*testBlock:][:testBlock]; !bytes.Equal(got, bytes.Repeat([]byte{fill}, testBlock)) {
			d.t.Errorf("block %d holds %#x, want %#x", first+i, got[0], fill)
		}
	}
}

// The fifth of the original's failures: the numbers that the kernel counts anew
// lost to those of before a crash.
func TestCountersThatStartAgainLoseNothing(t *testing.T) {
	vol := newMemory()
	d := newDriver(t, vol)
	for n := range uint32(100) {
		d.send(write(3, 2, n+1, byte(n+1)))
	}
	d.holds(2, 0, 100, 100, 0)
	d = newDriver(t, vol) // the daemon was killed; the volume has what it took
	d.holds(2, 0, 100, 100, 0)
	d.send(write(4, 1, 1, 201))
	d.holds(2, 0, 100, 201, 0)
	d.send(write(3, 2, 2, 202))
	d.holds(2, 0, 202, 202, 0)
}

// The sixth: the buffer that is shared with the kernel kept what it had.
func TestNeverWrittenBlocksReadZeros(t *testing.T) {
	d := newDriver(t, newMemory())
	d.holds(0, make([]byte, testBlocks)...)
	d.send(write(10, 1, 1, 5), write(12, 1, 2, 6))
	d.holds(9, 0, 5, 0, 6, 0)
	d.send(rec{op: opDiscard, first: 8, n: 3, number: 3}, rec{op: opWriteZeroes, first: 12, n: 1, number: 4})
	d.holds(9, 0, 0, 0, 0, 0)
}

// Whatever the order in which chunks come, and in a chunk the records, the
// higher number wins, block by block.
func TestTheHigherNumberWins(t *testing.T) {
	list := []rec{
		write(8, 8, 1, 1),
		write(10, 3, 2, 2),
		{op: opDiscard, first: 9, n: 2, number: 3},
		write(12, 4, 4, 4),
		{op: opWriteZeroes, first: 15, n: 1, number: 5},
	}
	want := []byte{0, 1, 0, 0, 2, 4, 4, 4, 0, 0}
	permutations(list, func(order []rec) {
		one := newDriver(t, newMemory())
		for _, r := range order {
			one.send(r)
		}
		one.holds(7, want...)

		together := newDriver(t, newMemory())
		together.send(order...)
		together.holds(7, want...)

		racing := newDriver(t, newMemory())
		var taken []<-chan bool
		for _, r := range order {
			taken = append(taken, racing.start(r))
		}
		for _, ok := range taken {
			if !<-ok {
				t.Fatalf("chunk was not taken: %v", racing.r.failure())
			}
		}
		racing.holds(7, want...)
		if t.Failed() {
			t.Fatalf("in the order %v", order)
		}
	})
}

func permutations(list []rec, do func([]rec)) {
	var next func(int)
	next = func(k int) {
		if k == len(list) {
			do(list)
			return
		}
		for i := k; i < len(list); i++ {
			list[k], list[i] = list[i], list[k]
			next(k + 1)
			list[k], list[i] = list[i], list[k]
		}
	}
	next(0)
}

// A chunk that is older than what another is about to have taken must not be
// done before that is taken: a flush would be acknowledged with neither.
func TestOlderChunkWaitsForTheNewer(t *testing.T) {
	vol := newMemory()
	d := newDriver(t, vol)
	release := vol.Block(devtest.Write)
	newer := d.start(write(5, 1, 2, 2))
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	older := d.start(write(5, 1, 1, 1))
	elsewhere := d.start(write(testArea, 1, 1, 3)) // another area waits for nobody but the volume
	if err := vol.AwaitBlocked(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	select {
	case <-older:
		t.Error("the older chunk is done, and the block holds neither")
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if !<-newer || !<-older || !<-elsewhere {
		t.Fatalf("not taken: %v", d.r.failure())
	}
	d.holds(4, 0, 2, 0)
	if n := vol.Calls(devtest.Write); n != 2 {
		t.Errorf("%d writes, want those of the two that count", n)
	}
}

// A flush is done when all queues have answered, and by then what each had
// before it was taken and flushed.
func TestFlushCoversAllQueues(t *testing.T) {
	vol := newMemory()
	s := serve(t, newModule(t), vol, small())
	defer func() {
		if err := s.end(t); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	data := bytes.Repeat([]byte{9}, testBlock)
	for q := range s.queues {
		if err := s.write(q, opWrite, int64(q)*testBlock, testBlock, data, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := vol.Calls(devtest.Write); n != 0 {
		t.Fatalf("%d writes before anything asked for them", n)
	}
	release := vol.Block(devtest.Flush)
	done := make(chan error, 1)
	go func() { done <- s.flush(nil) }()
	if err := vol.AwaitBlocked(t.Context(), len(s.queues)); err != nil {
		t.Fatal(err)
	}
	if n := vol.Calls(devtest.Write); n != len(s.queues) {
		t.Errorf("%d writes when the flushes began, want %d", n, len(s.queues))
	}
	select {
	case err := <-done:
		t.Errorf("the flush was acknowledged (%v) before the volume's", err)
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDamagedChunkHarmsNothing(t *testing.T) {
	good := write(0, 2, 7, 7)
	for name, test := range map[string]struct {
		records int64 // 0 = all
		damage  func(p []byte)
		says    string
	}{
		"operation":       {damage: func(p []byte) { p[recordSize+24] = 7 }, says: "operation 7"},
		"no length":       {damage: func(p []byte) { clear(p[recordSize+8:][:8]) }, says: "not whole blocks"},
		"beyond the end":  {damage: func(p []byte) { putRecord(p[recordSize:], opDiscard, testBlocks*testBlock, testBlock, 8) }, says: "of a device of 64"},
		"across the end":  {damage: func(p []byte) { putRecord(p[recordSize:], opDiscard, (testBlocks-1)*testBlock, 2*testBlock, 8) }, says: "of a device of 64"},
		"across areas":    {damage: func(p []byte) { putRecord(p[recordSize:], opWriteZeroes, (testArea-1)*testBlock, 2*testBlock, 8) }, says: "collision area"},
		"huge":            {damage: func(p []byte) { copy(p[recordSize:], bytes.Repeat([]byte{0xFF}, 16)) }, says: "of a device of 64"},
		"huge length":     {damage: func(p []byte) { copy(p[recordSize+8:], bytes.Repeat([]byte{0xFF}, 8)) }, says: "of a device of 64"},
		"length around":   {damage: func(p []byte) { p[recordSize] = 1; copy(p[recordSize+8:], bytes.Repeat([]byte{0xFF}, 8)) }, says: "of a device of 64"},
		"too many":        {records: 17, damage: func([]byte) {}, says: "17 records where there is space for 16"},
		"fewer than none": {records: -1, damage: func([]byte) {}, says: "-1 records"},
	} {
		t.Run(name, func(t *testing.T) {
			vol := newMemory()
			d := newDriver(t, vol)
			d.send(write(0, 2, 3, 3))
			before := vol.Calls(devtest.Write) + vol.Calls(devtest.Flush)
			p := d.chunk(good, good)
			test.damage(p)
			n := int64(2)
			if test.records != 0 {
				n = test.records
			}
			if <-d.call(func() error { return d.cb.BuseWrite(n, p) }) {
				t.Error("the damaged chunk was acknowledged")
			}
			if err := d.r.failure(); !errors.Is(err, errChunk) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("failure %v, want one about %q", err, test.says)
			}
			if n := vol.Calls(devtest.Write) + vol.Calls(devtest.Flush) - before; n != 0 {
				t.Errorf("%d calls of the volume", n)
			}
			d.holds(0, 3, 3, 0)
		})
	}
	t.Run("more data than there is", func(t *testing.T) {
		vol := newMemory()
		d := newDriver(t, vol)
		p := d.chunk(write(0, 8, 1, 1), write(8, 8, 1, 1)) // the records take the place of one block
		if <-d.call(func() error { return d.cb.BuseWrite(2, p) }) || vol.Calls(devtest.Write) != 0 {
			t.Error("the damaged chunk was acknowledged or taken")
		}
	})
}

func TestReadThatCannotBeMeant(t *testing.T) {
	for name, test := range map[string]struct {
		first, blocks int64
		bytes         int
	}{
		"below zero":     {-1, 1, testBlock},
		"nothing":        {0, 0, 0},
		"beyond the end": {testBlocks, 1, testBlock},
		"across the end": {testBlocks - 1, 2, 2 * testBlock},
		"around":         {1, 1<<63 - 1, testBlock},
		"small buffer":   {0, 2, 2*testBlock - 1},
	} {
		vol := newMemory()
		d := newDriver(t, vol)
		if <-d.call(func() error { return d.cb.BuseRead(test.first, test.blocks, make([]byte, test.bytes)) }) {
			t.Errorf("%s: the read was acknowledged", name)
		}
		if n := vol.Calls(devtest.Read); d.r.failure() == nil || n != 0 {
			t.Errorf("%s: failure %v after %d calls of the volume", name, d.r.failure(), n)
		}
	}
}

// Whatever fails is not acknowledged, ends Run with its reason, and leaves the
// device behind; afterwards nothing uses the volume.
func TestFailedVolume(t *testing.T) {
	broken := fmt.Errorf("%w: fenced by another writer", device.ErrStopped)
	for name, test := range map[string]struct {
		op  devtest.Op
		ask func(s *served) error
	}{
		"Write": {devtest.Write, func(s *served) error {
			return errors.Join(s.write(0, opWrite, 0, testBlock, make([]byte, testBlock), nil), s.flush(nil))
		}},
		"Discard": {devtest.Discard, func(s *served) error { return errors.Join(s.write(0, opDiscard, 0, testBlock, nil, nil), s.flush(nil)) }},
		"Flush": {devtest.Flush, func(s *served) error {
			return errors.Join(s.write(0, opWrite, 0, testBlock, make([]byte, testBlock), nil), s.flush(nil))
		}},
		"Read": {devtest.Read, func(s *served) error { return s.read(0, make([]byte, testBlock), 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			vol := newMemory()
			m := newModule(t)
			s := serve(t, m, vol, small())
			vol.Fail(broken, test.op)
			answered := make(chan error, 1)
			go func() { answered <- test.ask(s) }()
			err := <-s.ended
			if !errors.Is(err, broken) {
				t.Errorf("Run: %v", err)
			}
			for _, says := range []string{s.dev.Path(), "left behind", "echo 0 > " + m.sys.directory(0) + "/power && rmdir"} {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("Run does not say %q: %v", says, err)
				}
			}
			vol.Fail(nil, test.op)
			calls := vol.Calls(devtest.Read)
			go func() { _ = s.read(1, make([]byte, testBlock), testBlock) }() // answered by nobody
			select {
			case err := <-answered:
				t.Errorf("the request was answered: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			if m.removed || m.stopped {
				t.Error("the device was stopped or removed")
			}
			if n := vol.Calls(devtest.Read); n != calls {
				t.Error("the volume was used after Run had returned")
			}
			m.kill()
		})
	}
}

// What the volume refuses without having stopped is tried again, while other
// requests are served.
func TestRefusalsAreTriedAgain(t *testing.T) {
	for name, test := range map[string]struct {
		op devtest.Op
		r  rec
	}{
		"Write":       {devtest.Write, write(5, 1, 2, 4)},
		"Flush":       {devtest.Flush, write(5, 1, 2, 4)},
		"Discard":     {devtest.Discard, rec{op: opDiscard, first: 5, n: 1, number: 2}},
		"WriteZeroes": {devtest.WriteZeroes, rec{op: opWriteZeroes, first: 5, n: 1, number: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				vol := newMemory()
				d := newDriver(t, vol)
				d.send(write(5, 1, 1, 1))
				calls := vol.Calls(test.op)
				vol.Fail(errors.New("refused"), test.op)
				taken := d.start(test.r)
				if err := vol.AwaitCalls(t.Context(), test.op, calls+4); err != nil {
					t.Fatal(err)
				}
				d.holds(6, 0)
				vol.Fail(nil, test.op)
				if !<-taken {
					t.Fatalf("not taken: %v", d.r.failure())
				}
				d.holds(5, test.r.fill, 0)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		vol := newMemory()
		d := newDriver(t, vol)
		d.send(write(5, 1, 1, 1))
		vol.Fail(errors.New("an object is missing"), devtest.Read)
		p := bytes.Repeat([]byte{0x77}, testBlock)
		done := d.call(func() error { return d.cb.BuseRead(5, 1, p) })
		if err := vol.AwaitCalls(t.Context(), devtest.Read, 4); err != nil {
			t.Fatal(err)
		}
		d.send(write(5, 1, 2, 2))
		vol.Fail(nil, devtest.Read)
		if !<-done || p[0] != 2 {
			t.Errorf("the read gave %d: %v", p[0], d.r.failure())
		}
	})
}

// A request that is tried again does not hold up the end of the others.
func TestRefusalEndsWithTheDevice(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	s := serve(t, m, vol, small())
	vol.Fail(errors.New("an object is missing"), devtest.Read)
	go func() { _ = s.read(0, make([]byte, testBlock), 0) }() // answered by nobody
	if err := vol.AwaitCalls(t.Context(), devtest.Read, 1); err != nil {
		t.Fatal(err)
	}
	vol.Fail(device.ErrStopped, devtest.Write)
	go func() {
		_ = s.write(1, opWrite, 0, testBlock, make([]byte, testBlock), nil) // as above
		_ = s.flush(nil)
	}()
	if err := <-s.ended; !errors.Is(err, device.ErrStopped) {
		t.Errorf("Run: %v", err)
	}
	m.kill()
}

// Requests that wait for the volume when another has failed are cancelled
// before Run returns.
func TestFailureCancelsTheOthers(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	s := serve(t, m, vol, small())
	vol.Block(devtest.Read)
	go func() { _ = s.read(0, make([]byte, testBlock), 0) }() // answered by nobody
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	vol.Fail(device.ErrStopped, devtest.Flush)
	go func() {
		_ = s.write(1, opWrite, 0, testBlock, make([]byte, testBlock), nil) // as above
		_ = s.flush(nil)
	}()
	if err := <-s.ended; !errors.Is(err, device.ErrStopped) {
		t.Errorf("Run: %v", err)
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := vol.AwaitBlocked(now, 0); err != nil {
		t.Errorf("after Run: %v", err)
	}
	m.kill()
}

// What the module has acknowledged and kept is taken by a clean stop, which
// waits for the volume.
func TestCleanStop(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	s := serve(t, m, vol, small())
	want := bytes.Repeat([]byte{8}, 3*testBlock)
	for q := range s.queues {
		if err := s.write(q, opWrite, int64(q)*testBlock, testBlock, want[:testBlock], nil); err != nil {
			t.Fatal(err)
		}
	}
	release := vol.Block(devtest.Write)
	s.stop()
	if err := vol.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		t.Fatalf("Run returned %v before the volume has taken all", err)
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if err := s.end(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	if !m.removed {
		t.Error("the device was not removed")
	}
	got := make([]byte, len(want))
	if err := vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the volume lacks what was acknowledged (%v)", err)
	}
}

// What users have written and not synced is in the kernel, and a clean stop takes
// it too.
func TestStopWritesBack(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	s := serve(t, m, vol, small())
	want := bytes.Repeat([]byte{8}, 3*testBlock)
	s.hold(testBlock, want)
	if err := s.end(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	got := make([]byte, len(want))
	if err := vol.ReadAt(t.Context(), got, testBlock); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the volume lacks what the kernel held (%v)", err)
	}
}

// A volume that fails meanwhile is no reason to wait for the kernel.
func TestFailureWhileWritingBack(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	s := serve(t, m, vol, small())
	s.hold(0, make([]byte, testBlock))
	vol.Fail(device.ErrStopped, devtest.Write)
	if err := s.end(t); !errors.Is(err, device.ErrStopped) {
		t.Errorf("Run: %v", err)
	}
	if m.stopped || m.removed {
		t.Error("the device was stopped or removed with a write that was not taken")
	}
	m.kill()
}

// A removal waits for a flush that nobody will answer. By then nothing uses the
// volume, and whoever waits for that knows.
func TestRemovalThatNeverEnds(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	var late atomic.Int32 // how many threads of flushes are held up
	heldUp, goOn := make(chan struct{}), make(chan struct{})
	m.lag = func() {
		if late.Add(-1) >= 0 {
			heldUp <- struct{}{}
			<-goOn
		}
	}
	s := serve(t, m, vol, small())
	want := bytes.Repeat([]byte{8}, testBlock)
	if err := s.write(0, opWrite, 0, testBlock, want, nil); err != nil {
		t.Fatal(err)
	}
	late.Store(int32(len(s.queues)))
	flushed := make(chan error, 1)
	go func() { flushed <- s.flush(nil) }()
	for range s.queues {
		<-heldUp
	}
	s.stop()
	<-s.unused
	got := make([]byte, testBlock)
	if err := vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the volume lacks what was acknowledged (%v)", err)
	}
	m.mu.Lock()
	m.wait(func() bool { return m.drained })
	m.mu.Unlock()
	close(goOn)
	select {
	case err := <-s.ended:
		t.Errorf("Run: %v", err)
	case err := <-flushed:
		t.Errorf("the late flush was answered: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	m.kill()
	if err := <-s.ended; !errors.Is(err, errIO) {
		t.Errorf("Run: %v", err)
	}
}

// A volume that fails while the device is being stopped ends Run as well.
func TestFailureWhileStopping(t *testing.T) {
	vol := newMemory()
	m := newModule(t)
	s := serve(t, m, vol, small())
	if err := s.write(0, opWrite, 0, testBlock, make([]byte, testBlock), nil); err != nil {
		t.Fatal(err)
	}
	vol.Fail(device.ErrStopped, devtest.Write)
	if err := s.end(t); !errors.Is(err, device.ErrStopped) {
		t.Errorf("Run: %v", err)
	}
	if m.removed {
		t.Error("the device was removed with a write that was not taken")
	}
	m.kill()
}

// Somebody else has written 0 to power.
func TestStoppedByAnother(t *testing.T) {
	m := newModule(t)
	s := serve(t, m, newMemory(), small())
	if err := m.StopDevice(); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; !errors.Is(err, ErrStopped) {
		t.Errorf("Run: %v", err)
	}
	if !m.removed {
		t.Error("the device was not removed")
	}
	s.stop()
}

// Many chunks of all queues at a time, on a few areas: for the race detector.
func TestRacingChunks(t *testing.T) {
	d := newDriver(t, newMemory())
	const rounds, chunks = 50, 8
	for round := range uint32(rounds) {
		var wg sync.WaitGroup
		for i := range uint32(chunks) {
			wg.Go(func() {
				if !<-d.start(write(0, 8, round*chunks+i+1, byte(i+1)), write(16, 2, round*chunks+chunks-i, byte(i+1))) {
					t.Errorf("chunk was not taken: %v", d.r.failure())
				}
			})
		}
		wg.Wait()
		d.holds(0, chunks, chunks, chunks, chunks, chunks, chunks, chunks, chunks, 0)
		d.holds(16, 1, 1, 0)
	}
}
