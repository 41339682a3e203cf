package rcache

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// TestLoan checks who ends a loan, and that what is written of it is there.
func TestLoan(t *testing.T) {
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, _ layout.Location, _ *[]error) {
		const n = 3 * groupBlocks
		var loans [4]*Loan
		var back [4]atomic.Bool
		release := file.hang()
		for i := range loans {
			loc := layout.Loc(key.Key(20+i), 0)
			if loans[i] = d.Lend(loc, 1, numbers(n), storedOf(loc, 1, n), func() { back[i].Store(true) }); loans[i] == nil {
				t.Fatal("nothing was lent")
			}
		}
		synctest.Wait()
		if !loans[1].Revoke() || back[1].Load() {
			t.Error("a loan that the disk has not come to cannot be revoked")
		}
		for range 2 {
			if loans[0].Revoke() || back[0].Load() {
				t.Error("a loan in use was revoked, or has ended")
			}
		}
		release()
		synctest.Wait()
		for i, want := range []int{groupBlocks, 0, n, n} {
			if got := get(t, d, layout.Loc(key.Key(20+i), 0), 1, n); got != want {
				t.Errorf("loan %d: %d of %d blocks are there, not %d", i, got, n, want)
			}
			if want := i != 1; back[i].Load() != want || loans[i].Revoke() {
				t.Errorf("loan %d: given back: %v, not %v, or it can be revoked", i, back[i].Load(), want)
			}
		}
		if s := d.Stats(); s.Dropped != 2*groupBlocks+n {
			t.Errorf("%+v", s)
		}
	})
}

// TestDiskTakesABurst checks that what comes faster than the disk writes is there when it
// has caught up: more than the copies that it would keep.
func TestDiskTakesABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks, n = 60, 8 * groupBlocks
		inner := openDisk(t, t.TempDir()+"/cache", 3*chunks*n/layout.CacheSetBlocks)
		file := &hangingFile{diskFile: inner.file}
		d := newDisk(file, inner.head, nil, func(err error) { t.Error(err) })
		if chunks*n <= mostJobs*groupBlocks {
			t.Fatal("this is no burst")
		}
		release := file.hang()
		for k := range key.Key(chunks) {
			d.Lend(layout.Loc(k, 0), 1, numbers(n), storedOf(layout.Loc(k, 0), 1, n), func() {})
		}
		release()
		synctest.Wait()
		has := 0
		for k := range key.Key(chunks) {
			has += get(t, d, layout.Loc(k, 0), 1, n)
		}
		if has != chunks*n || d.Stats().Dropped > 0 {
			t.Errorf("%d of %d blocks, %+v", has, chunks*n, d.Stats())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		close(inner.stop)
	})
}

// TestCloseEndsLoans checks that memory may go after a Close on a disk that hangs.
func TestCloseEndsLoans(t *testing.T) {
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, _ layout.Location, said *[]error) {
		const n = 2 * groupBlocks
		release := file.hang()
		var memory [3][]byte
		for i := range memory {
			loc := layout.Loc(key.Key(20+i), 0)
			stored := storedOf(loc, 1, n)
			var err error
			if memory[i], err = unix.Mmap(-1, 0, len(stored), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
				t.Fatal(err)
			}
			copy(memory[i], stored)
			d.Lend(loc, 1, numbers(n), memory[i][:len(stored)], func() {})
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		for _, m := range memory {
			if err := unix.Munmap(m); err != nil {
				t.Fatal(err)
			}
		}
		*said = nil
		release() // what hung asks the kernel for memory that is gone
		synctest.Wait()
		for _, err := range *said {
			if err != nil { // it is not the disk's
				t.Error(err)
			}
		}
	})
}

// TestCloseOfSlowDisk checks that nobody waits long for what is queued for a disk that is
// slow, but does not hang.
func TestCloseOfSlowDisk(t *testing.T) {
	onHangingDisk(t, func(t *testing.T, d *Disk, file *hangingFile, _ layout.Location, said *[]error) {
		file.takes = hangTime / 4 // a group takes that, or twice
		const n = 8 * groupBlocks
		for i := range 20 {
			loc := layout.Loc(key.Key(20+i), 0)
			d.Lend(loc, 1, numbers(n), storedOf(loc, 1, n), func() {})
			d.Put(loc.Add(n), 1, numbers(n), storedOf(loc.Add(n), 1, n))
		}
		start := time.Now()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < closeTime || took > closeTime+hangTime || len(*said) > 0 {
			t.Errorf("a close took %v, said %v", took, *said)
		}
	})
}

// killedFile is a file whose process is killed when it has written so many bytes more.
type killedFile struct {
	diskFile
	left int
}

func (f *killedFile) WritePieces(pieces [][]byte, off int64) error {
	for _, p := range pieces {
		p = p[:min(len(p), f.left)]
		f.left -= len(p)
		if err := f.diskFile.WritePieces([][]byte{p}, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// TestDiskKilled checks that the next process finds nothing wrong wherever a write ended,
// and goes on with the file: in blocks that displace others, and in tables.
func TestDiskKilled(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	path := t.TempDir() + "/cache"
	found := 0
	for range 100 {
		inner := openDisk(t, path, 1)
		file := &killedFile{diskFile: inner.file, left: rnd.IntN(200 << 10)}
		d := newDisk(file, inner.head, nil, func(err error) { t.Error(err) })
		for range 4 {
			loc, n, epoch := layout.Loc(key.Key(rnd.IntN(20)), rnd.Uint32N(100)), 1+rnd.IntN(2*groupBlocks), uint64(1+rnd.IntN(2))
			ended := make(chan struct{})
			d.Lend(loc, epoch, numbers(n), storedOf(loc, epoch, n), func() { close(ended) })
			<-ended
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		close(inner.stop) // of its writer; the file is closed

		d = openDisk(t, path, 1)
		for k := range key.Key(20) {
			found += get(t, d, layout.Loc(k, 0), 1, 230) + get(t, d, layout.Loc(k, 0), 2, 230)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("nothing was ever found")
	}
}

// TestPiecesOfWrites checks what is left of pieces when a part is written.
func TestPiecesOfWrites(t *testing.T) {
	pieces := [][]byte{{1, 2}, {3, 4}, {5}}
	for n, want := range [][]byte{{1, 2, 3, 4, 5}, {2, 3, 4, 5}, {3, 4, 5}, {4, 5}, {5}} {
		var got []byte
		for _, p := range behind(pieces, n) {
			got = append(got, p...)
		}
		if string(got) != string(want) {
			t.Errorf("after %d bytes: %v, not %v", n, got, want)
		}
	}
}
