package writer

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
	"bs3/internal/bs3/volume"
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

// uploader is one worker: it stores chunk after chunk until the volume stops or
// fails.
func (l *Log) uploader() {
	for c := l.uploads.next(); c != nil; c = l.uploads.next() {
		start := time.Now()
		if err := l.upload(c); err != nil {
			ctx := l.c.Life.Context()
			if err = l.c.Owner.NameSuccessor(ctx, err); ctx.Err() == nil {
				l.c.Life.Fail(err)
			}
			return
		}
		l.stored(c, time.Since(start))
	}
}

// upload stores a sealed chunk under its key. It gives up only when another
// writer has the volume (volume.ErrFenced) or the volume stops.
func (l *Log) upload(c *chunk) error {
	ctx := l.c.Life.Context()
	body := objproxy.Body{
		Data:   c.slot.Stored(0, c.obj.Blocks),
		Tail:   layout.AppendTail(make([]byte, 0, layout.TailSize(len(c.obj.Records))), &c.obj),
		Opened: func() { l.bodies.Add(1); c.refs.Add(1) },
		Closed: func() { l.unref(c); l.bodies.Add(-1) },
	}
	cond := objproxy.IfAbsent()
	var denied volume.Denials
	for {
		_, err := l.c.Store.Put(ctx, c.obj.Key.Name(), body, cond)
		if err == nil {
			return nil
		}
		if errors.Is(err, errors.ErrUnsupported) {
			// The store took conditions when the volume was opened: something between
			// us and it does not now.
			l.c.Log.Error().Err(err).Uint64("key", uint64(c.obj.Key)).Msg("cannot store an object; trying again")
			if err := objproxy.Sleep(ctx, volume.RetryWait); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return fmt.Errorf("upload object %d: %w", c.obj.Key, err)
		}
		if err := denied.Again(ctx, c.obj.Key.Name(), l.c.Log); err != nil {
			return err
		}
		var done bool
		if done, cond, err = l.contest(ctx, &c.obj); err != nil || done {
			return err
		}
	}
}

// contest judges what lies where our object should be: done if it is ours (the
// answer of an earlier try was lost), else the condition for the next try. It
// waits for as long as the object cannot be judged.
func (l *Log) contest(ctx context.Context, ours *layout.Object) (done bool, next objproxy.Condition, err error) {
	k, o := ours.Key, l.c.Owner
	tails := volume.Tails{Store: l.c.Store, UUID: o.UUID, ChunkBlocks: l.c.ChunkBlocks}
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		found, err := tails.Read(ctx, k)
		switch theirs := found.Object; {
		case errors.Is(err, objproxy.ErrNotFound):
			return false, objproxy.IfAbsent(), nil
		case ctx.Err() != nil:
			return false, next, context.Cause(ctx)
		case err != nil:
			// Not decodable: neither stale nor ours, never to be replaced. It may be
			// mended by hand; until then nothing above it counts as stored.
		case theirs.UUID != o.UUID || theirs.Epoch < o.Epoch:
			return false, objproxy.IfVersion(found.Version), nil
		case theirs.Epoch > o.Epoch:
			return false, next, fmt.Errorf("%w: object %d has epoch %d, ours is %d", volume.ErrFenced, k, theirs.Epoch, o.Epoch)
		case theirs.Nonce == o.Nonce && theirs.Blocks == ours.Blocks && theirs.Sum == ours.Sum && slices.Equal(theirs.Records, ours.Records):
			return true, next, nil
		case theirs.Nonce == o.Nonce:
			err = fmt.Errorf("object %d is by us, but has other content than we have for it", k)
		default:
			err = fmt.Errorf("object %d has our epoch %d, but writer %s, not us (%s)", k, o.Epoch, theirs.Nonce, o.Nonce)
		}
		l.c.Log.Error().Err(err).Uint64("key", uint64(k)).Msg("cannot store an object: what lies in its place is not to be replaced; writes wait")
		if err := objproxy.Sleep(ctx, wait); err != nil {
			return false, next, err
		}
	}
}
