package objtest

import (
	"sync"
	"testing"
	"time"

	"bs3/internal/bs3/objproxy"
)

// BodyWatch counts the readers of the bodies that it makes. The zero value is
// ready to use.
type BodyWatch struct {
	mu           sync.Mutex
	opened, open int
	changed      chan struct{} // closed and replaced whenever a reader is closed
}

// Body returns a body whose readers are counted.
func (w *BodyWatch) Body(data, tail []byte) objproxy.Body {
	return objproxy.Body{Data: data, Tail: tail, Opened: func() { w.add(1) }, Closed: func() { w.add(-1) }}
}

func (w *BodyWatch) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
	if n > 0 {
		w.opened += n
	}
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// Readers returns how many readers were ever opened.
func (w *BodyWatch) Readers() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opened
}

// Open returns how many readers are open.
func (w *BodyWatch) Open() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open
}

// WaitClosed fails the test unless every reader is closed within ten seconds.
func (w *BodyWatch) WaitClosed(t testing.TB) {
	t.Helper()
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	for {
		w.mu.Lock()
		open := w.open
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-changed:
		case <-late.C:
			t.Fatalf("%d readers of a body were never closed", open)
		}
	}
}
