package s3server

import (
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// object is immutable.
type object struct {
	pages    [][]byte // all but the last are pageSize long
	size     int64    // bytes
	etag     string
	modified time.Time
	users    atomic.Int32 // the bucket, while it has the object, and readers
}

// send writes bytes [from, to) of the object.
func (o *object) send(w io.Writer, from, to int64) error {
	for from < to {
		page := o.pages[from/pageSize][from%pageSize:]
		n, err := w.Write(page[:min(int64(len(page)), to-from)])
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// Counts are the requests to a bucket, and the bytes of objects that went in and
// out.
type Counts struct {
	Put, Get, List, Delete, Head int64
	In, Out                      int64
}

// Requests returns their sum.
func (c Counts) Requests() int64 { return c.Put + c.Get + c.List + c.Delete + c.Head }

// Sub returns what was counted since before.
func (c Counts) Sub(before Counts) Counts {
	return Counts{
		Put: c.Put - before.Put, Get: c.Get - before.Get, List: c.List - before.List,
		Delete: c.Delete - before.Delete, Head: c.Head - before.Head,
		In: c.In - before.In, Out: c.Out - before.Out,
	}
}

type bucket struct {
	pages                        *pages
	puts, gets, lists            atomic.Int64
	deletes, heads, bytesIn, out atomic.Int64

	mu      sync.RWMutex
	dropped bool
	objects map[string]*object
}

func (b *bucket) counts() Counts {
	return Counts{
		Put: b.puts.Load(), Get: b.gets.Load(), List: b.lists.Load(), Delete: b.deletes.Load(), Head: b.heads.Load(),
		In: b.bytesIn.Load(), Out: b.out.Load(),
	}
}

// get returns an object, which must be released, or nil.
func (b *bucket) get(name string) *object {
	b.mu.RLock()
	defer b.mu.RUnlock()
	o := b.objects[name]
	if o != nil {
		o.users.Add(1)
	}
	return o
}

// release ends a use of an object and frees its memory after the last.
func (b *bucket) release(o *object) {
	if o.users.Add(-1) == 0 {
		b.pages.put(o)
	}
}

// put stores o and reports whether it did: not if the name exists and must be
// absent, or has another version than match, or the bucket was dropped.
func (b *bucket) put(name string, o *object, absent bool, match string) (ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	there := b.objects[name]
	if b.dropped {
		return false // a late put of a killed daemon, whose memory would be lost
	}
	if absent && there != nil || match != "" && (there == nil || there.etag != match) {
		return false
	}
	o.users.Add(1)
	b.objects[name] = o
	if there != nil {
		b.release(there)
	}
	return true
}

func (b *bucket) remove(names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		if o := b.objects[name]; o != nil {
			delete(b.objects, name)
			b.release(o)
		}
	}
}

// copyTo puts all objects into another bucket too.
func (b *bucket) copyTo(to *bucket) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	for name, o := range b.objects {
		o.users.Add(1)
		if there := to.objects[name]; there != nil {
			to.release(there)
		}
		to.objects[name] = o
	}
}

// Kept is what a bucket has.
type Kept struct{ Objects, Bytes int64 }

func (b *bucket) kept() (k Kept) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, o := range b.objects {
		k.Objects++
		k.Bytes += o.size
	}
	return k
}

// empty removes everything, for good.
func (b *bucket) empty() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropped = true
	for _, o := range b.objects {
		b.release(o)
	}
	clear(b.objects)
}

// entry is an object in a list.
type entry struct {
	name string
	*object
}

// list returns up to limit objects in order.
func (b *bucket) list(prefix, after string, limit int) (found []entry, more bool) {
	b.mu.RLock()
	for name, o := range b.objects {
		if strings.HasPrefix(name, prefix) && name > after {
			found = append(found, entry{name, o})
		}
	}
	b.mu.RUnlock()
	slices.SortFunc(found, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	if len(found) > limit {
		return found[:limit], true
	}
	return found, false
}
