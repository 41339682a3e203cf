package wlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"bs3/internal/bs3/layout"
)

// Memory is the chunk memory: a header page and a pool of slots in a file
// that is mapped shared. Its bytes survive the process, not the machine.
type Memory struct {
	head  *layout.MemoryHeader
	slots []*Slot
	buf   []byte
	path  string // empty: on the heap
}

// NewHeapMemory returns a Memory that does not outlive the process, for tests
// under the race detector, which does not see accesses to a mapping.
func NewHeapMemory(h *layout.MemoryHeader) *Memory {
	m := &Memory{head: h, buf: make([]byte, h.FileSize())}
	m.cut()
	return m
}

// OpenMemory maps the chunk memory that an earlier daemon left. The error wraps
// fs.ErrNotExist if there is none and ErrDamaged if the file is not one.
func (d *Dir) OpenMemory() (*Memory, error) {
	path := d.file(MemoryFileName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the chunk memory: %w", err)
	}
	defer func() { _ = f.Close() }() // the mapping stays
	page := make([]byte, layout.MemoryHeaderSize)
	if _, err := io.ReadFull(f, page); err != nil {
		return nil, fmt.Errorf("chunk memory %s: %w: %w", path, ErrDamaged, err)
	}
	h, err := layout.DecodeMemoryHeader(page)
	if err != nil {
		return nil, fmt.Errorf("chunk memory %s: %w: %w", path, ErrDamaged, err)
	}
	if st, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("chunk memory: %w", err)
	} else if st.Size() != h.FileSize() {
		return nil, fmt.Errorf("chunk memory %s: %w: it has %d bytes, its header says %d", path, ErrDamaged, st.Size(), h.FileSize())
	}
	return mapMemory(f, h)
}

// CreateMemory creates an empty chunk memory in place of an existing one. It
// allocates all of the space now: a hole in a full tmpfs would kill the process
// on the first access.
func (d *Dir) CreateMemory(h *layout.MemoryHeader) (m *Memory, err error) {
	path := d.file(MemoryFileName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace the chunk memory: %w", err)
	}
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the chunk memory: %w", err)
	}
	defer func() {
		_ = f.Close() // the mapping stays
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, h.FileSize()); err != nil {
		return nil, fmt.Errorf("allocate %d MiB for the chunk memory (write.memory) in %s: %w", h.FileSize()>>20, d.path, err)
	}
	if _, err := f.WriteAt(layout.AppendMemoryHeader(nil, h), 0); err != nil {
		return nil, fmt.Errorf("create the chunk memory: %w", err)
	}
	if err := f.Sync(); err != nil { // so a header that does not verify is damage, never an unfinished file
		return nil, fmt.Errorf("create the chunk memory: %w", err)
	}
	if m, err = mapMemory(f, h); err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return nil, errors.Join(fmt.Errorf("create the chunk memory: %w", err), m.Close())
	}
	m.path = path
	return m, d.sync()
}

func mapMemory(f *os.File, h *layout.MemoryHeader) (*Memory, error) {
	buf, err := unix.Mmap(int(f.Fd()), 0, int(h.FileSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the chunk memory %s: %w", f.Name(), err)
	}
	m := &Memory{head: h, buf: buf, path: f.Name()}
	m.cut()
	return m, nil
}

func (m *Memory) cut() {
	off := layout.SlotOffsets(int(m.head.ChunkBlocks), int(m.head.BlockSize))
	for i := range int64(m.head.Slots) {
		from := layout.MemoryHeaderSize + i*off.Size
		mem := m.buf[from : from+off.Size : from+off.Size]
		m.slots = append(m.slots, &Slot{mem: mem, off: off, uuid: m.head.UUID, blockSize: int(m.head.BlockSize), pooled: true})
	}
}

// Header returns the header of the file.
func (m *Memory) Header() *layout.MemoryHeader { return m.head }

// Slots returns all slots of the pool.
func (m *Memory) Slots() []*Slot { return m.slots }

// Path returns the path of the file, for messages; empty on the heap.
func (m *Memory) Path() string { return m.path }

// Lock keeps the memory from being swapped out until Close. To free memory the
// kernel writes to the device, and those writes need the chunk memory first.
// Lock needs CAP_IPC_LOCK or enough RLIMIT_MEMLOCK; without, it locks nothing.
func (m *Memory) Lock() error {
	if m.path == "" {
		return nil
	}
	if err := unix.Mlock(m.buf); err != nil {
		return fmt.Errorf("lock %d MiB of chunk memory (RLIMIT_MEMLOCK, see ulimit -l): %w", len(m.buf)>>20, err)
	}
	return nil
}

// Close unmaps the memory; the file stays for the next open. No slot may be
// used afterwards. Closing again has no effect.
func (m *Memory) Close() error {
	buf := m.buf
	m.buf, m.slots = nil, nil
	if m.path == "" || buf == nil {
		return nil
	}
	if err := unix.Munmap(buf); err != nil {
		return fmt.Errorf("unmap the chunk memory: %w", err)
	}
	return nil
}
