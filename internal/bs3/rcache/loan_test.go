package rcache

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

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
			if err != nil && !errors.Is(err, unix.EFAULT) {
				t.Error(err)
			}
		}
	})
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
