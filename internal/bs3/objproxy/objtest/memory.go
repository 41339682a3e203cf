package objtest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bs3/internal/bs3/objproxy"
)

// Memory is a store in memory. It answers at once and never fails; wrap it in
// Faulty or Hooks for other behaviour.
type Memory struct {
	mu      sync.Mutex
	objects map[string]object
	puts    uint64 // counts versions; never goes back, not even in a clone
}

type object struct {
	data     []byte // never changed
	version  objproxy.Version
	modified time.Time
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{objects: make(map[string]object)} }

// Clone returns a store that holds what m holds at this instant.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Memory{objects: make(map[string]object, len(m.objects)), puts: m.puts}
	for name, o := range m.objects {
		c.objects[name] = o
	}
	return c
}

// Put implements objproxy.Store.
func (m *Memory) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("put %s: %w", name, err)
	}
	r := body.Open()
	data, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		return "", fmt.Errorf("put %s: %w", name, err)
	}
	return m.store(name, data, cond)
}

func (m *Memory) store(name string, data []byte, cond objproxy.Condition) (objproxy.Version, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, there := m.objects[name]
	if cond.Absent() && there {
		return "", fmt.Errorf("put %s: %w", name, objproxy.ErrExists)
	}
	if v, ok := cond.Version(); ok && (!there || old.version != v) {
		return "", fmt.Errorf("put %s over version %s: %w", name, v, objproxy.ErrExists)
	}
	m.puts++
	v := objproxy.Version("v" + strconv.FormatUint(m.puts, 10))
	m.objects[name] = object{data: data, version: v, modified: time.Now()}
	return v, nil
}

// Get implements objproxy.Store.
func (m *Memory) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if err := ctx.Err(); err != nil {
		return 0, objproxy.Info{}, fmt.Errorf("get %s: %w", name, err)
	}
	m.mu.Lock()
	o, there := m.objects[name]
	m.mu.Unlock()
	if !there {
		return 0, objproxy.Info{}, fmt.Errorf("get %s: %w", name, objproxy.ErrNotFound)
	}
	size := int64(len(o.data))
	if off < 0 {
		off = max(0, size-int64(len(p)))
		p = p[:size-off]
	}
	if off > size || int64(len(p)) > size-off {
		return 0, objproxy.Info{}, fmt.Errorf("get %s: %w: %d bytes at %d of %d", name, objproxy.ErrRange, len(p), off, size)
	}
	return copy(p, o.data[off:]), o.info(name), nil
}

func (o object) info(name string) objproxy.Info {
	return objproxy.Info{Name: name, Size: int64(len(o.data)), Version: o.version, Modified: o.modified}
}

// List implements objproxy.Store.
func (m *Memory) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var infos []objproxy.Info
	for name, o := range m.objects {
		if strings.HasPrefix(name, prefix) && name > after {
			infos = append(infos, o.info(name))
		}
	}
	slices.SortFunc(infos, func(a, b objproxy.Info) int { return strings.Compare(a.Name, b.Name) })
	return infos[:min(limit, len(infos))], nil
}

// Delete implements objproxy.Store.
func (m *Memory) Delete(ctx context.Context, names []string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %d objects: %w", len(names), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.objects, name)
	}
	return nil
}
