// Package devtest has what tests of volumes and of transports share: a contract
// suite for device.Volume, to be run on a volume directly or through a transport,
// and Memory, a correct volume that can be told to block or to fail.
package devtest

import (
	"context"
	"fmt"
	"sync"

	"bs3/internal/device"
)

// Op names an operation of a Volume.
type Op int

// The operations that Memory can block, fail and count.
const (
	Read Op = iota
	Write
	Flush
	Discard
	WriteZeroes
	ops // how many there are
)

// Memory is a sparse volume in memory. It refuses, with an error, requests that
// break the contract of device.Volume (unaligned, out of range, above
// MaxDiscard), which exposes a transport that sends one. It is safe for
// concurrent use.
type Memory struct {
	geometry device.Geometry

	mu      sync.Mutex
	blocks  map[int64][]byte // by block number; absent reads as zeros
	blocked [ops]chan struct{}
	failure [ops]error
	calls   [ops]int
	waiting int
	changed chan struct{} // closed and replaced when waiting or calls change
}

var (
	_ device.Volume    = (*Memory)(nil)
	_ device.Fast      = (*Memory)(nil)
	_ device.Allocator = (*Memory)(nil)
)

// NewMemory returns an empty volume of geometry g.
func NewMemory(g device.Geometry) *Memory {
	return &Memory{geometry: g, blocks: make(map[int64][]byte), changed: make(chan struct{})}
}

// Block makes the given operations wait until release is called or their context
// is cancelled; their Try* return false. Blocking an operation that is already
// blocked is a mistake of the test.
func (m *Memory) Block(list ...Op) (release func()) {
	gate := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, op := range list {
		if m.blocked[op] != nil {
			panic("devtest: operation is already blocked")
		}
		m.blocked[op] = gate
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, op := range list {
			m.blocked[op] = nil
		}
		close(gate)
	})
}

// Fail makes the given operations return err, and their Try* return false, until
// it is called with nil.
func (m *Memory) Fail(err error, list ...Op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, op := range list {
		m.failure[op] = err
	}
}

// Calls counts the calls of op so far, successful Try* among them.
func (m *Memory) Calls(op Op) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[op]
}

// AwaitBlocked returns when exactly n calls wait in Block, or fails with ctx.
func (m *Memory) AwaitBlocked(ctx context.Context, n int) error {
	return m.await(ctx, func() bool { return m.waiting == n })
}

// AwaitCalls returns when op was called at least n times, or fails with ctx.
func (m *Memory) AwaitCalls(ctx context.Context, op Op, n int) error {
	return m.await(ctx, func() bool { return m.calls[op] >= n })
}

func (m *Memory) await(ctx context.Context, done func() bool) error {
	for {
		m.mu.Lock()
		ok, changed, waiting := done(), m.changed, m.waiting
		m.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d calls are blocked: %w", waiting, ctx.Err())
		}
	}
}

// notify wakes await. The caller holds mu.
func (m *Memory) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Geometry implements device.Volume.
func (m *Memory) Geometry() device.Geometry { return m.geometry }

// ReadAt implements device.Volume.
func (m *Memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	return m.do(ctx, Read, off, int64(len(p)), func() { m.read(p, off) })
}

// WriteAt implements device.Volume.
func (m *Memory) WriteAt(ctx context.Context, p []byte, off int64) error {
	return m.do(ctx, Write, off, int64(len(p)), func() { m.write(p, off) })
}

// Flush implements device.Volume; memory has nothing to flush to.
func (m *Memory) Flush(ctx context.Context) error {
	return m.do(ctx, Flush, 0, int64(m.geometry.BlockSize), func() {})
}

// Discard implements device.Volume.
func (m *Memory) Discard(ctx context.Context, off, n int64) error {
	return m.do(ctx, Discard, off, n, func() { m.drop(off, n) })
}

// WriteZeroes implements device.Volume.
func (m *Memory) WriteZeroes(ctx context.Context, off, n int64) error {
	return m.do(ctx, WriteZeroes, off, n, func() { m.drop(off, n) })
}

// TryReadAt implements device.Fast.
func (m *Memory) TryReadAt(p []byte, off int64) bool {
	return m.try(Read, off, int64(len(p)), func() { m.read(p, off) })
}

// TryWriteAt implements device.Fast.
func (m *Memory) TryWriteAt(p []byte, off int64) bool {
	return m.try(Write, off, int64(len(p)), func() { m.write(p, off) })
}

// Allocation implements device.Allocator: blocks that were written are data.
func (m *Memory) Allocation(ctx context.Context, off, n int64) ([]device.Extent, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := m.check(Read, off, n); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var extents []device.Extent
	bs := int64(m.geometry.BlockSize)
	for b := off / bs; b < (off+n)/bs; b++ {
		hole := m.blocks[b] == nil
		if last := len(extents) - 1; last >= 0 && extents[last].Hole == hole {
			extents[last].Length += bs
		} else {
			extents = append(extents, device.Extent{Length: bs, Hole: hole})
		}
	}
	return extents, nil
}

// do runs one operation: it waits while op is blocked, then calls effect under
// the lock unless ctx was cancelled before.
func (m *Memory) do(ctx context.Context, op Op, off, n int64, effect func()) error {
	if err := m.check(op, off, n); err != nil {
		return err
	}
	m.mu.Lock()
	m.calls[op]++
	m.notify()
	for m.blocked[op] != nil {
		gate := m.blocked[op]
		m.waiting++
		m.notify()
		m.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		m.mu.Lock()
		m.waiting--
		m.notify()
		if ctx.Err() != nil {
			break
		}
	}
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.failure[op] != nil {
		return m.failure[op]
	}
	effect()
	return nil
}

// try runs one operation without waiting.
func (m *Memory) try(op Op, off, n int64, effect func()) bool {
	if m.check(op, off, n) != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blocked[op] != nil || m.failure[op] != nil {
		return false
	}
	m.calls[op]++
	m.notify()
	effect()
	return true
}

func (m *Memory) check(op Op, off, n int64) error {
	g := m.geometry
	bs := int64(g.BlockSize)
	switch {
	case off%bs != 0 || n%bs != 0 || n <= 0:
		return fmt.Errorf("devtest: request at %d of %d bytes is not in blocks of %d", off, n, bs)
	case off < 0 || off > g.Size || n > g.Size-off:
		return fmt.Errorf("devtest: request at %d of %d bytes is beyond %d", off, n, g.Size)
	case g.ReadOnly && op != Read && op != Flush:
		return fmt.Errorf("devtest: change of a read-only volume at %d of %d bytes", off, n)
	case (op == Discard || op == WriteZeroes) && g.MaxDiscard > 0 && n > g.MaxDiscard:
		return fmt.Errorf("devtest: %d bytes in one request are more than %d", n, g.MaxDiscard)
	}
	return nil
}

func (m *Memory) read(p []byte, off int64) {
	bs := int64(m.geometry.BlockSize)
	for b := off / bs; len(p) > 0; b++ {
		if data := m.blocks[b]; data != nil {
			copy(p[:bs], data)
		} else {
			clear(p[:bs])
		}
		p = p[bs:]
	}
}

func (m *Memory) write(p []byte, off int64) {
	bs := int64(m.geometry.BlockSize)
	for b := off / bs; len(p) > 0; b++ {
		m.blocks[b] = append([]byte(nil), p[:bs]...)
		p = p[bs:]
	}
}

func (m *Memory) drop(off, n int64) {
	bs := int64(m.geometry.BlockSize)
	if n/bs > int64(len(m.blocks)) {
		for b := range m.blocks {
			if b >= off/bs && b < (off+n)/bs {
				delete(m.blocks, b)
			}
		}
		return
	}
	for b := off / bs; b < (off+n)/bs; b++ {
		delete(m.blocks, b)
	}
}
