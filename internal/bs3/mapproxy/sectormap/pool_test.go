package sectormap

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
)

// resident returns how many bytes of the pool are in memory.
func (p *pool) resident(t *testing.T) (bytes int) {
	t.Helper()
	for _, slab := range p.slabs {
		pages := make([]byte, len(slab)/unix.Getpagesize())
		if _, _, err := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&slab[0])), uintptr(len(slab)),
			uintptr(unsafe.Pointer(&pages[0]))); err != 0 {
			t.Fatal(err)
		}
		for _, in := range pages {
			bytes += int(in&1) * unix.Getpagesize()
		}
	}
	return bytes
}

// A Frozen costs a copy of each leaf that changes, which goes back to the kernel when
// it is released, or is used again. So do leaves that are discarded, when nobody
// needs them any more.
func TestMemoryGoesBack(t *testing.T) {
	const leaves = 1000
	m := New(leaves * LeafBlocks)
	for b := uint64(0); b < m.Blocks(); b += LeafBlocks {
		scatter(m, b)
	}
	within := func(when string, leaves int) {
		t.Helper()
		most := (leaves + idleArrays + leaves/idleShare) * leafBytes
		if got := m.pool.resident(t); got > most || got < leaves*leafBytes {
			t.Errorf("%s: %d KiB in memory for %d KiB of leaves", when, got>>10, leaves*leafBytes>>10)
		}
	}
	within("filled", leaves)
	for range 3 {
		f := m.Freeze()
		for b := uint64(0); b < m.Blocks(); b += LeafBlocks {
			m.Set(b, 1, layout.Loc(1, 0), nil)
		}
		within("copied", 2*leaves)
		g := m.Freeze()
		f.Release()
		within("the first freeze is released", leaves)
		m.Set(0, 1, layout.Loc(2, 0), nil)
		g.Release()
	}
	if n := len(m.pool.slabs) * slabArrays; n > 2*leaves+slabArrays {
		t.Errorf("%d arrays are mapped for %d leaves", n, leaves)
	}
	var gone []*Leaf
	m.Unmap(0, leaves/2*LeafBlocks, nil, func(l *Leaf) { gone = append(gone, l) })
	within("half of it is unmapped, and being looked through", leaves)
	f := m.Freeze()
	for _, l := range gone {
		m.Free(l)
	}
	within("looked through, and frozen before", leaves)
	f.Release()
	within("half of it is unmapped", leaves/2)
	last := m.Blocks() - LeafBlocks + maxSpans // the middle of what is mapped of the last leaf
	m.Unmap(0, last, nil, nil)
	m.Unmap(last, m.Blocks()-last, nil, nil)
	within("all of it is unmapped", 0)
	if len(m.replaced) > 0 || m.pool.used != 0 {
		t.Errorf("%d arrays wait for a freeze, %d are in use", len(m.replaced), m.pool.used)
	}
}

// A map that nobody has any more gives its arrays back.
func TestArraysGoWithTheirMap(t *testing.T) {
	m := New(LeafBlocks)
	scatter(m, 0)
	at := uintptr(unsafe.Pointer(m.dir[0].Load().entries))
	var in byte
	mapped := func() bool {
		_, _, err := unix.Syscall(unix.SYS_MINCORE, at, 1, uintptr(unsafe.Pointer(&in)))
		return err == 0
	}
	if runtime.GC(); !mapped() {
		t.Fatal("the map has lost its arrays")
	}
	runtime.KeepAlive(m)
	for mapped() {
		runtime.GC()
	}
}

// No memory comes to unused arrays because the kernel makes huge pages of what lies
// among them.
func TestNoHugePages(t *testing.T) {
	p := new(pool)
	defer p.free()
	for range slabArrays {
		p.get()[0] = 1
	}
	_ = unix.Madvise(p.slabs[0], unix.MADV_COLLAPSE) // as the kernel may do any time
	if got := p.resident(t); got > slabArrays*unix.Getpagesize() {
		t.Errorf("%d KiB are in memory for a page of each of %d arrays", got>>10, slabArrays)
	}
}

// The end of a checkpoint does not hold writers up, which would wait a millisecond
// for each array if they had to queue behind one that takes the mutex all the time.
func TestWritersBesideRelease(t *testing.T) {
	const leaves = 4000
	m := New(leaves * LeafBlocks)
	for b := uint64(0); b < m.Blocks(); b += LeafBlocks {
		scatter(m, b)
	}
	f := m.Freeze()
	for b := uint64(0); b < m.Blocks(); b += LeafBlocks {
		m.Set(b, 1, layout.Loc(1, 0), nil)
	}
	var released atomic.Bool
	var checkpoint sync.WaitGroup
	checkpoint.Go(func() {
		f.Release()
		released.Store(true)
	})
	var took []time.Duration
	for len(took) == 0 || !released.Load() {
		began := time.Now()
		m.pool.get()
		took = append(took, time.Since(began))
		time.Sleep(50 * time.Microsecond)
	}
	checkpoint.Wait()
	slices.Sort(took)
	if median := took[len(took)/2]; median > time.Millisecond/2 {
		t.Errorf("an array takes %v, the median of %d", median, len(took))
	}
}

// An array may serve another leaf while somebody reads what it was. Entries of
// each leaf tell which one they are of.
func TestReadersOfReusedArrays(t *testing.T) {
	const leaves, rounds = 4, 1000
	m := New(leaves * LeafBlocks)
	write := func(leaf, round uint64) {
		for i := range uint64(maxSpans + 1) {
			m.Set(leaf*LeafBlocks+2*i+1, 1, layout.Loc(key.Key(leaf), uint32(round)), nil)
		}
	}
	for leaf := range uint64(leaves) {
		write(leaf, 0)
	}
	// The kernel interrupts those that get one block at a time, at any place, and
	// goes on with them much later.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4 * runtime.NumCPU()))
	var over atomic.Bool
	var readers sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		readers.Go(func() {
			for !over.Load() {
				for leaf := range uint64(leaves) {
					if loc := m.Get(leaf*LeafBlocks + 1); loc.Mapped() && uint64(loc.Key()) != leaf {
						t.Errorf("block %d lies at %v", leaf*LeafBlocks+1, loc)
						return
					}
				}
			}
		})
	}
	for seed := range uint64(2) {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(seed, 0))
			var runs []Run
			for !over.Load() {
				block := r.Uint64N(m.Blocks() - LeafBlocks)
				runs = m.Lookup(block, LeafBlocks, runs[:0])
				next := block
				for _, run := range runs {
					if run.Block != next || run.Loc.Mapped() && uint64(run.Loc.Key()) != run.Block/LeafBlocks {
						t.Errorf("lookup of %d blocks at %d: %+v", LeafBlocks, block, run)
						return
					}
					next += uint64(run.N)
				}
				if next != block+LeafBlocks {
					t.Errorf("lookup of %d blocks at %d ends at %d", LeafBlocks, block, next)
					return
				}
			}
		})
	}
	for round := range uint64(rounds) {
		f := m.Freeze()
		for leaf := range uint64(leaves) {
			if (round+leaf)%leaves == 0 {
				m.Unmap(leaf*LeafBlocks, LeafBlocks, nil, nil)
			}
			write(leaf, round)
		}
		f.Release()
	}
	over.Store(true)
	readers.Wait()
}
