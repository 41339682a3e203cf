package objproxy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

func TestBody(t *testing.T) {
	for _, c := range []struct{ data, tail string }{{"", ""}, {"data", ""}, {"", "tail"}, {"some data", "and a tail"}} {
		b := objproxy.Body{Data: []byte(c.data), Tail: []byte(c.tail)}
		if b.Size() != int64(len(c.data+c.tail)) {
			t.Errorf("size is %d", b.Size())
		}
		r := b.Open()
		if err := iotest.TestReader(r, []byte(c.data+c.tail)); err != nil {
			t.Errorf("%q %q: %v", c.data, c.tail, err)
		}
		if _, err := r.Seek(0, 7); err == nil {
			t.Error("seek with a bad whence")
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestBodyReaders checks that readers are independent, and that each is counted
// once.
func TestBodyReaders(t *testing.T) {
	var w objtest.BodyWatch
	b := w.Body([]byte("data"), []byte("tail"))
	one, two := b.Open(), b.Open()
	if _, err := io.ReadFull(one, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(two); err != nil || string(got) != "datatail" {
		t.Errorf("second reader: %q, %v", got, err)
	}
	for i, r := range []io.Closer{one, one, two} {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if got := w.Open(); got != []int{1, 1, 0}[i] {
			t.Errorf("%d open after %d closes", got, i+1)
		}
	}
	if _, err := one.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// TestBodyClosedMeansUnused checks that the memory may be written to once Closed
// was called, even though a reader is active. The race detector judges.
func TestBodyClosedMeansUnused(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 1<<16)
	for range 100 {
		closed := make(chan struct{})
		r := objproxy.Body{Data: data, Closed: func() { close(closed) }}.Open()
		var wg sync.WaitGroup
		wg.Go(func() {
			p := make([]byte, 512)
			for {
				if _, err := r.Read(p); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			<-closed
			clear(data)
		})
		r.Close()
		wg.Wait()
	}
}

func TestDeleteErrors(t *testing.T) {
	if objproxy.JoinDelete(nil) != nil || objproxy.FailedDeletes(nil) != nil || objproxy.FailedDeletes(errFlaky) != nil {
		t.Error("failures out of nothing")
	}
	var many []*objproxy.DeleteError
	for i := range 1000 {
		many = append(many, &objproxy.DeleteError{Name: fmt.Sprint("object", i), Err: errFlaky})
	}
	err := fmt.Errorf("wrapped: %w", objproxy.JoinDelete(many))
	if !errors.Is(err, objproxy.ErrTransient) {
		t.Error("the reason is lost")
	}
	if got := objproxy.FailedDeletes(err); len(got) != 1000 || got[999].Name != "object999" {
		t.Errorf("%d failures", len(got))
	}
	if msg := err.Error(); len(msg) > 200 || !strings.Contains(msg, "1000") || !strings.Contains(msg, "object0") {
		t.Errorf("the message is %q", msg)
	}
	if got := objproxy.FailedDeletes(fmt.Errorf("w: %w", many[7])); len(got) != 1 || got[0].Name != "object7" {
		t.Errorf("of one: %v", got)
	}
}

func TestConditions(t *testing.T) {
	var none objproxy.Condition
	if _, is := none.Version(); is || none.Absent() {
		t.Error("the zero value is a condition")
	}
	if v, is := objproxy.IfVersion("").Version(); !is || v != "" {
		t.Error("IfVersion of an empty version is no condition")
	}
	if !objproxy.IfAbsent().Absent() {
		t.Error("IfAbsent")
	}
}
