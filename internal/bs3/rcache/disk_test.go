package rcache

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
)

const diskBlock = 512

var diskUUID = layout.UUID{7}

func openDisk(t testing.TB, path string, sets int64) *Disk {
	t.Helper()
	return openDiskOf(t, path, sets, nil)
}

func openDiskOf(t testing.TB, path string, sets int64, where Where) *Disk {
	t.Helper()
	head := layout.CacheHeader{BlockSize: diskBlock}
	d, err := OpenDisk(path, diskUUID, diskBlock, layout.CacheHeaderSize+sets*head.SetSize()+100, where, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// blocksOf returns the n blocks from loc of an object of the given epoch.
func blocksOf(loc layout.Location, epoch uint64, n int) []byte {
	var b []byte
	for i := range n {
		rnd := rand.New(rand.NewPCG(uint64(loc)+uint64(i), epoch))
		for range diskBlock / 8 {
			x := rnd.Uint64()
			b = append(b, byte(x), byte(x>>8), byte(x>>16), byte(x>>24), byte(x>>32), byte(x>>40), byte(x>>48), byte(x>>56))
		}
	}
	return b
}

// storedOf is blocksOf with check values.
func storedOf(loc layout.Location, epoch uint64, n int) []byte {
	return layouttest.Stored(diskUUID, loc.Key(), loc.Index(), blocksOf(loc, epoch, n), diskBlock)
}

// settle waits until everything that was put is written.
func settle(d *Disk) {
	var held [][]byte
	for range mostJobs {
		held = append(held, <-d.free)
	}
	for _, b := range held {
		d.free <- b
	}
}

// get checks what the cache returns for n blocks, and returns how many it has.
func get(t testing.TB, d *Disk, loc layout.Location, epoch uint64, n int) (has int) {
	t.Helper()
	dst := bytes.Repeat([]byte{0xEE}, n*diskBlock)
	next := 0
	d.Get(loc, epoch, dst, func(at, some int, found bool) {
		if at != next || some <= 0 {
			t.Errorf("run of %d blocks at %d, where %d is next", some, at, next)
		}
		next = at + some
		if !found {
			return
		}
		has += some
		if !bytes.Equal(dst[at*diskBlock:next*diskBlock], blocksOf(loc.Add(uint32(at)), epoch, some)) {
			t.Errorf("%v, epoch %d: wrong data", loc.Add(uint32(at)), epoch)
		}
	})
	if next != n {
		t.Errorf("it reported %d of %d blocks", next, n)
	}
	return has
}

// TestDiskKeeps checks that what was put is found, by its location and epoch
// only, and by the next process too.
func TestDiskKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d := openDisk(t, path, 8)
	loc := layout.Loc(5, 30)
	d.Put(loc, 3, numbers(200), storedOf(loc, 3, 200)) // of several groups
	settle(d)
	for range 2 {
		for _, test := range []struct {
			loc   layout.Location
			epoch uint64
			n     int
			want  int
		}{
			{loc, 3, 200, 200}, {loc, 3, 1, 1}, {loc.Add(70), 3, 100, 100}, {layout.Loc(5, 0), 3, 250, 200},
			{loc, 2, 200, 0}, {loc, 4, 200, 0}, {layout.Loc(4, 30), 3, 200, 0}, {layout.Loc(6, 30), 3, 200, 0}, {loc.Add(200), 3, 50, 0},
		} {
			if got := get(t, d, test.loc, test.epoch, test.n); got != test.want {
				t.Errorf("%v, epoch %d: %d of %d blocks, not %d", test.loc, test.epoch, got, test.n, test.want)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d = openDisk(t, path, 8)
	}
	if s := d.Stats(); s.Size > layout.CacheHeaderSize+8*d.head.SetSize()+100 || s.Err != nil || s.Hits > 0 {
		t.Errorf("%+v", s)
	}
	_ = d.Close()
}

// TestDiskOther checks that a cache of another volume or size is created anew.
func TestDiskOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	loc := layout.Loc(5, 0)
	fill := func() {
		d := openDisk(t, path, 4)
		d.Put(loc, 3, numbers(10), storedOf(loc, 3, 10))
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if d = openDisk(t, path, 4); get(t, d, loc, 3, 10) != 10 {
			t.Fatal("it is not there")
		}
		_ = d.Close()
	}
	for name, change := range map[string]func(b []byte) []byte{
		"volume": func(b []byte) []byte {
			return append(layout.AppendCacheHeader(nil, &layout.CacheHeader{UUID: layout.UUID{1}, BlockSize: diskBlock, Sets: 4}), b[4096:]...)
		},
		"size": func(b []byte) []byte {
			return append(layout.AppendCacheHeader(nil, &layout.CacheHeader{UUID: diskUUID, BlockSize: diskBlock, Sets: 3}), b[4096:]...)
		},
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"empty":   func([]byte) []byte { return nil },
		"garbage": func(b []byte) []byte { return bytes.Repeat([]byte{0x5a}, len(b)) },
	} {
		fill()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o600); err != nil {
			t.Fatal(err)
		}
		d := openDisk(t, path, 4)
		if n := get(t, d, loc, 3, 10); n > 0 {
			t.Errorf("%s: %d blocks are there", name, n)
		}
		_ = d.Close()
	}
	if _, err := OpenDisk(path, diskUUID, diskBlock, 4096, nil, nil); err == nil {
		t.Error("a cache without a set")
	}
	if _, err := OpenDisk(filepath.Join(path, "x"), diskUUID, diskBlock, 1<<20, nil, nil); err == nil {
		t.Error("a cache below a file")
	}
}

// TestDiskTorn checks that nothing wrong is read from the file, whatever a crash
// makes of it.
func TestDiskTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	rnd := rand.New(rand.NewPCG(1, 2))
	found, lost := 0, 0
	for range 100 {
		d := openDisk(t, path, 3)
		for range 40 {
			loc := layout.Loc(key.Key(rnd.IntN(20)), rnd.Uint32N(300))
			n, epoch := 1+rnd.IntN(40), uint64(1+rnd.IntN(2))
			if rnd.IntN(2) == 0 {
				d.Put(loc, epoch, numbers(n), storedOf(loc, epoch, n))
				settle(d)
			} else {
				has := get(t, d, loc, epoch, n)
				found, lost = found+has, lost+n-has
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + rnd.IntN(20) {
			to, from := 4096+512*rnd.IntN((len(b)-4096)/512), 4096+512*rnd.IntN((len(b)-4096)/512)
			switch rnd.IntN(3) {
			case 0:
				clear(b[to : to+512])
			case 1:
				copy(b[to:to+512], b[from:])
			default:
				b[to+rnd.IntN(512)] ^= 1 << rnd.IntN(8)
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 || lost == 0 {
		t.Errorf("%d found, %d not", found, lost)
	}
}

// TestDiskReplaces checks that all of the space is used before anything is
// replaced, and that what is read stays longer.
func TestDiskReplaces(t *testing.T) {
	d := openDisk(t, filepath.Join(t.TempDir(), "cache"), 1)
	defer func() { _ = d.Close() }()
	put := func(k key.Key, n int) {
		d.Put(layout.Loc(k, 0), 1, numbers(n), storedOf(layout.Loc(k, 0), 1, n))
		settle(d)
	}
	const part = layout.CacheSetBlocks / 5
	for k := range key.Key(5) {
		put(k, part)
	}
	for k := range key.Key(5) {
		if n := get(t, d, layout.Loc(k, 0), 1, part); n != part {
			t.Fatalf("object %d: %d of %d blocks of a cache that is just full", k, n, part)
		}
	}
	put(5, part) // all were read: the oldest goes
	if n := get(t, d, layout.Loc(0, 0), 1, part); n != 0 {
		t.Errorf("%d blocks of the oldest object are left", n)
	}
	get(t, d, layout.Loc(1, 0), 1, part)
	put(6, part)
	if n := get(t, d, layout.Loc(1, 0), 1, part); n != part {
		t.Errorf("%d of %d blocks are left of the object that was read", n, part)
	}
	if n := get(t, d, layout.Loc(2, 0), 1, part); n != 0 {
		t.Errorf("%d blocks are left of the one that was not", n)
	}
}

// TestDiskReplacesWhatWasRead checks that each new block gets a place of its own where
// nearly all of a set was read, so that the hand passes it twice.
func TestDiskReplacesWhatWasRead(t *testing.T) {
	d := openDisk(t, filepath.Join(t.TempDir(), "cache"), 1)
	defer func() { _ = d.Close() }()
	put := func(k key.Key, n int) {
		d.Put(layout.Loc(k, 0), 1, numbers(n), storedOf(layout.Loc(k, 0), 1, n))
		settle(d)
	}
	put(0, layout.CacheSetBlocks)
	get(t, d, layout.Loc(0, 10), 1, layout.CacheSetBlocks-10)
	put(1, groupBlocks)
	if n := get(t, d, layout.Loc(1, 0), 1, groupBlocks); n != groupBlocks {
		t.Errorf("%d of %d new blocks are there", n, groupBlocks)
	}
}

// TestDiskBeside checks that readers never see anything wrong while the writer
// runs.
func TestDiskBeside(t *testing.T) {
	d := openDisk(t, filepath.Join(t.TempDir(), "cache"), 2)
	var stop atomic.Bool
	var found atomic.Int64
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(9, uint64(r)))
			for !stop.Load() {
				found.Add(int64(get(t, d, layout.Loc(key.Key(rnd.IntN(30)), rnd.Uint32N(40)), 1, 1+rnd.IntN(20))))
			}
		})
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	for range 3000 {
		loc := layout.Loc(key.Key(rnd.IntN(30)), rnd.Uint32N(40))
		n := 1 + rnd.IntN(20)
		d.Put(loc, 1, numbers(n), storedOf(loc, 1, n))
	}
	settle(d)
	stop.Store(true)
	readers.Wait()
	s := d.Stats()
	t.Logf("%d blocks found, %+v", found.Load(), s)
	if found.Load() == 0 {
		t.Error("nothing was ever found")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// brokenFile is a disk that fails.
type brokenFile struct {
	diskFile
	reads, writes error
	held          chan struct{} // writes wait for it
}

func (f *brokenFile) ReadAt(p []byte, off int64) (int, error) {
	if f.reads != nil {
		return 0, f.reads
	}
	return f.diskFile.ReadAt(p, off)
}

func (f *brokenFile) WritePieces(pieces [][]byte, off int64) error {
	if f.held != nil {
		<-f.held
	}
	if f.writes != nil {
		return f.writes
	}
	return f.diskFile.WritePieces(pieces, off)
}

// TestDiskBreaks checks that a disk that fails is not used any more, which is
// reported once, and that nobody waits for a slow one.
func TestDiskBreaks(t *testing.T) {
	broken := errors.New("broken")
	loc := layout.Loc(5, 0)
	for name, b := range map[string]*brokenFile{"reads": {reads: broken}, "writes": {writes: broken}} {
		inner := openDisk(t, filepath.Join(t.TempDir(), "cache"), 2)
		b.diskFile = inner.file
		var said []error
		d := newDisk(b, inner.head, nil, func(err error) { said = append(said, err) })
		for range 3 {
			d.Put(loc, 1, numbers(10), storedOf(loc, 1, 10))
			settle(d)
			if n := get(t, d, loc, 1, 10); n != 0 {
				t.Errorf("%s: %d blocks", name, n)
			}
		}
		if len(said) != 1 || !errors.Is(said[0], broken) || !errors.Is(d.Stats().Err, broken) {
			t.Errorf("%s: %v, %+v", name, said, d.Stats())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	inner := openDisk(t, filepath.Join(t.TempDir(), "cache"), 2)
	slow := &brokenFile{diskFile: inner.file, held: make(chan struct{})}
	d := newDisk(slow, inner.head, nil, func(err error) { t.Error(err) })
	for i := range uint32(2 * mostJobs) {
		d.Put(layout.Loc(1, i*groupBlocks), 1, numbers(2), storedOf(layout.Loc(1, i*groupBlocks), 1, 2))
	}
	if s := d.Stats(); s.Dropped != 2*mostJobs {
		t.Errorf("%+v", s)
	}
	close(slow.held)
	for range 2 { // the second one has no effect
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// hangingFile is a disk that hangs.
type hangingFile struct {
	diskFile
	mu      sync.Mutex
	held    chan struct{} // reads and writes wait for it; nil: they do not
	fails   error         // after that
	takes   time.Duration // each read
	hanging int
}

func (f *hangingFile) hang() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := make(chan struct{})
	f.held = held
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.held = nil
		close(held)
	}
}

func (f *hangingFile) await() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if held := f.held; held != nil {
		f.hanging++
		f.mu.Unlock()
		<-held
		f.mu.Lock()
		f.hanging--
	}
	return f.fails
}

func (f *hangingFile) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(f.takes)
	if err := f.await(); err != nil {
		return 0, err
	}
	return f.diskFile.ReadAt(p, off)
}

func (f *hangingFile) WritePieces(pieces [][]byte, off int64) error {
	if err := f.await(); err != nil {
		return err
	}
	return f.diskFile.WritePieces(pieces, off)
}

// onHangingDisk runs f, in virtual time, with a cache that holds ten blocks at loc.
func onHangingDisk(t *testing.T, f func(t *testing.T, d *Disk, file *hangingFile, loc layout.Location, said *[]error)) {
	synctest.Test(t, func(t *testing.T) {
		inner := openDisk(t, filepath.Join(t.TempDir(), "cache"), 2)
		file := &hangingFile{diskFile: inner.file}
		var said []error
		d := newDisk(file, inner.head, nil, func(err error) { said = append(said, err) })
		loc := layout.Loc(5, 0)
		d.Put(loc, 1, numbers(10), storedOf(loc, 1, 10))
		settle(d)
		if n := get(t, d, loc, 1, 10); n != 10 {
			t.Fatalf("%d of 10 blocks", n)
		}
		f(t, d, file, loc, &said)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		close(inner.stop) // of its writer; the file is closed
	})
}

// TestDiskHangs checks that nobody waits long for a disk that hangs, or for ever to
// close it, that it is not asked until it answers again, and that a late answer
// reaches nobody.
func TestDiskHangs(t *testing.T) {
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, loc layout.Location, said *[]error) {
		for range 2 {
			*said = nil
			release := file.hang()
			start := time.Now()
			var wg sync.WaitGroup
			for range 3 * mostReads {
				wg.Go(func() {
					dst := make([]byte, 10*diskBlock)
					d.Get(loc, 1, dst, func(_, n int, found bool) {
						if n != 10 || found {
							t.Errorf("a run of %d blocks, found: %v, on a disk that hangs", n, found)
						}
					})
					time.Sleep(time.Hour) // the disk answers meanwhile
					if !bytes.Equal(dst, make([]byte, len(dst))) {
						t.Error("a late answer came to who does not wait for it")
					}
				})
			}
			time.Sleep(hangTime + time.Second)
			synctest.Wait()
			if file.hanging > mostReads {
				t.Errorf("%d reads hang", file.hanging)
			}
			if err := d.Stats().Err; !errors.Is(err, ErrHangs) || len(*said) != 1 || !errors.Is((*said)[0], ErrHangs) {
				t.Errorf("said %v, the state is %v", *said, err)
			}
			hang := time.Since(start)
			if n := get(t, d, loc, 1, 10); n != 0 || time.Since(start) != hang {
				t.Errorf("%d blocks of a disk that hangs, after %v", n, time.Since(start)-hang)
			}
			d.Put(loc.Add(20), 1, numbers(1), storedOf(loc.Add(20), 1, 1))
			release()
			synctest.Wait()
			if err := d.Stats().Err; err != nil || len(*said) != 2 || (*said)[1] != nil {
				t.Errorf("said %v, the state is %v, after the disk has answered", *said, err)
			}
			if n := get(t, d, loc, 1, 10); n != 10 {
				t.Errorf("%d of 10 blocks after the disk has answered", n)
			}
			wg.Wait()
		}
	})
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, loc layout.Location, said *[]error) {
		var first, second sync.WaitGroup
		releaseFirst := file.hang()
		first.Go(func() { get(t, d, loc, 1, 10) })
		synctest.Wait()
		releaseSecond := file.hang()
		second.Go(func() { get(t, d, loc, 1, 10) })
		first.Wait()
		second.Wait()
		releaseFirst()
		synctest.Wait()
		if n := get(t, d, loc, 1, 10); n != 0 || len(*said) != 1 {
			t.Errorf("%d blocks while one of two reads still hangs, said %v", n, *said)
		}
		releaseSecond()
		synctest.Wait()
		if n := get(t, d, loc, 1, 10); n != 10 || len(*said) != 2 {
			t.Errorf("%d blocks after both have returned, said %v", n, *said)
		}
	})
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, loc layout.Location, said *[]error) {
		release := file.hang()
		get(t, d, loc, 1, 10)
		file.mu.Lock()
		file.fails = errors.New("broken")
		file.mu.Unlock()
		release()
		synctest.Wait()
		if err := d.Stats().Err; !errors.Is(err, file.fails) || len(*said) != 2 || !errors.Is((*said)[1], file.fails) {
			t.Errorf("said %v, the state is %v, after the disk has failed", *said, err)
		}
	})
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, loc layout.Location, said *[]error) {
		release := file.hang()
		d.Put(loc.Add(20), 1, numbers(1), storedOf(loc.Add(20), 1, 1))
		start := time.Now()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 2*hangTime || len(*said) != 1 {
			t.Errorf("a close took %v, said %v", took, *said)
		}
		release()
	})
}

// TestSlowDiskDoesNotHang: a disk hangs if a read takes too long, not if many have to
// wait for their turn.
func TestSlowDiskDoesNotHang(t *testing.T) {
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, loc layout.Location, said *[]error) {
		file.takes = hangTime / 3 // and a group takes two
		var wg sync.WaitGroup
		for range 2 * mostReads {
			wg.Go(func() {
				if n := get(t, d, loc, 1, 10); n != 10 {
					t.Errorf("%d of 10 blocks", n)
				}
			})
		}
		wg.Wait()
		if len(*said) != 0 {
			t.Errorf("said %v", *said)
		}
	})
}

// BenchmarkDiskHit is a read of one block from the page cache of the kernel.
func BenchmarkDiskHit(b *testing.B) {
	const block = 4096
	d, err := OpenDisk(filepath.Join(b.TempDir(), "cache"), diskUUID, block, 256<<20, nil, func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	data := make([]byte, 1024*block)
	for k := range key.Key(32) {
		d.Put(layout.Loc(k, 0), 1, numbers(1024), layouttest.Stored(diskUUID, k, 0, data, block))
		settle(d)
	}
	dst := make([]byte, block)
	misses := 0
	rnd := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(block)
	b.ReportAllocs()
	for b.Loop() {
		d.Get(layout.Loc(key.Key(rnd.IntN(32)), rnd.Uint32N(1024)), 1, dst, func(_, _ int, found bool) {
			if !found {
				misses++
			}
		})
	}
	b.ReportMetric(float64(misses)/float64(b.N), "misses/op")
}

// TestDiskDropsDamage: a block that does not match its check value is not found,
// is counted, and can be put again.
func TestDiskDropsDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d := openDisk(t, path, 2)
	defer func() { _ = d.Close() }()
	loc := layout.Loc(5, 64)
	d.Put(loc, 1, numbers(3), storedOf(loc, 1, 3))
	settle(d)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, blocksOf(loc.Add(1), 1, 1))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{^b[at+77]}, int64(at+77)); err != nil {
		t.Fatal(err)
	}
	if n := get(t, d, loc, 1, 3); n != 2 || d.Stats().Damaged != 1 {
		t.Errorf("%d of three blocks, %d damaged", n, d.Stats().Damaged)
	}
	settle(d)
	if n := get(t, d, loc, 1, 3); n != 2 || d.Stats().Damaged != 1 { // it was dropped
		t.Errorf("%d of three blocks, %d damaged", n, d.Stats().Damaged)
	}
	d.Put(loc, 1, numbers(3), storedOf(loc, 1, 3))
	settle(d)
	if n := get(t, d, loc, 1, 3); n != 3 || d.Stats().Damaged != 1 {
		t.Errorf("%d of three blocks, %d damaged", n, d.Stats().Damaged)
	}
}
