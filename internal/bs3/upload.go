package bs3

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// uploads are the sealed chunks that no upload worker has taken yet, lowest
// key first.
type uploads struct {
	mu     sync.Mutex
	change *sync.Cond
	heap   chunkHeap
	done   bool
}

func newUploads() *uploads {
	u := &uploads{}
	u.change = sync.NewCond(&u.mu)
	return u
}

func (u *uploads) add(c *chunk) {
	u.mu.Lock()
	defer u.mu.Unlock()
	heap.Push(&u.heap, c)
	u.change.Signal()
}

// next waits for the lowest chunk; nil when there will be no more.
func (u *uploads) next() *chunk {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.heap) == 0 && !u.done {
		u.change.Wait()
	}
	if u.done {
		return nil
	}
	return heap.Pop(&u.heap).(*chunk)
}

// close ends the workers; what is queued stays where it is.
func (u *uploads) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done = true
	u.change.Broadcast()
}

type chunkHeap []*chunk

func (h chunkHeap) Len() int           { return len(h) }
func (h chunkHeap) Less(i, j int) bool { return h[i].obj.Key < h[j].obj.Key }
func (h chunkHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *chunkHeap) Push(x any)        { *h = append(*h, x.(*chunk)) }
func (h *chunkHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}

// uploader is one worker: it stores chunk after chunk until the engine stops
// or fails.
func (e *Engine) uploader() {
	for c := e.uploads.next(); c != nil; c = e.uploads.next() {
		start := time.Now()
		if err := e.upload(c); err != nil {
			if err = e.nameSuccessor(err); e.ctx.Err() == nil {
				e.fail(err)
			}
			return
		}
		e.stored(c, time.Since(start))
	}
}

// ownWait is how long we wait before another try where Retry does not.
const ownWait = 10 * time.Second

// upload stores a sealed chunk under its key. It gives up only when another
// writer has the volume (ErrFenced) or the engine stops.
func (e *Engine) upload(c *chunk) error {
	blocks := uint32(len(c.obj.CRCs))
	body := objproxy.Body{
		Data:   c.slot.Data(0, blocks),
		Tail:   layout.AppendTail(make([]byte, 0, layout.TailSize(int(blocks), len(c.obj.Records))), &c.obj),
		Opened: func() { e.bodies.Add(1); c.refs.Add(1) },
		Closed: func() { e.unref(c); e.bodies.Add(-1) },
	}
	cond := objproxy.IfAbsent()
	var denied denials
	for {
		_, err := e.store.Put(e.ctx, c.obj.Key.Name(), body, cond)
		if err == nil {
			return nil
		}
		if errors.Is(err, errors.ErrUnsupported) {
			// The store took conditions when the volume was opened: something between
			// us and it does not now.
			e.log.Error().Err(err).Uint64("key", uint64(c.obj.Key)).Msg("can not store an object; trying again")
			if err := sleep(e.ctx, ownWait); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return fmt.Errorf("upload object %d: %w", c.obj.Key, err)
		}
		if err := e.again(e.ctx, &denied, c.obj.Key.Name()); err != nil {
			return err
		}
		var done bool
		if done, cond, err = e.contest(&c.obj); err != nil || done {
			return err
		}
	}
}

// contest judges what lies where our object should be: done if it is ours (the
// answer of an earlier try was lost), else the condition for the next try. It
// waits for as long as the object can not be judged.
func (e *Engine) contest(ours *layout.Object) (done bool, next objproxy.Condition, err error) {
	k := ours.Key
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		found, err := e.tails().read(e.ctx, k)
		switch {
		case errors.Is(err, objproxy.ErrNotFound):
			return false, objproxy.IfAbsent(), nil
		case e.ctx.Err() != nil:
			return false, next, context.Cause(e.ctx)
		case err != nil:
			// Not decodable: neither stale nor ours, never to be replaced. It may be
			// mended by hand; until then nothing above it counts as stored.
		case found.obj.UUID != e.uuid || found.obj.Epoch < e.epoch:
			return false, objproxy.IfVersion(found.version), nil
		case found.obj.Epoch > e.epoch:
			return false, next, fmt.Errorf("%w: object %d has epoch %d, ours is %d", ErrFenced, k, found.obj.Epoch, e.epoch)
		case found.obj.Nonce == e.nonce && slices.Equal(found.obj.CRCs, ours.CRCs) && slices.Equal(found.obj.Records, ours.Records):
			return true, next, nil
		case found.obj.Nonce == e.nonce:
			err = fmt.Errorf("object %d is by us, but has other content than we have for it", k)
		default:
			err = fmt.Errorf("object %d has our epoch %d, but writer %s, not us (%s)", k, e.epoch, found.obj.Nonce, e.nonce)
		}
		e.log.Error().Err(err).Uint64("key", uint64(k)).Msg("can not store an object: what lies in its place is not to be replaced; writes wait")
		if err := sleep(e.ctx, wait); err != nil {
			return false, next, err
		}
	}
}

// denials counts how often in a row the condition of a put did not hold.
type denials int

// mostDenials is how many of them other writers and lost answers explain.
const mostDenials = 3

// again is called when the condition of a put does not hold, although it came
// from what was there a moment ago. A store that goes on to say so contradicts
// itself: then it waits, and tells, before what is there is read once more.
func (e *Engine) again(ctx context.Context, n *denials, name string) error {
	if *n++; *n <= mostDenials {
		return nil
	}
	e.log.Error().Str("name", name).Int("times", int(*n)).Msg("the store denies a condition that holds by what it shows; trying again")
	return sleep(ctx, ownWait)
}

// sleep waits for d or until ctx ends, and says why it ended.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
