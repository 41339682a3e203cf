package bs3

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// tails reads what follows the data of the objects of one log.
type tails struct {
	store       objproxy.Store
	uuid        layout.UUID
	chunkBlocks int
}

// tail is the decoded end of a stored object, and the version it came with.
type tail struct {
	obj     *layout.Object
	version objproxy.Version
}

func (e *Engine) tails() tails { return tails{e.store, e.uuid, e.chunkBlocks} }

// read reads and decodes the tail of the object of key k. Errors:
// objproxy.ErrNotFound, those of layout (what is there is not to be replaced).
func (r tails) read(ctx context.Context, k key.Key) (tail, error) {
	var t tail
	err := untorn(ctx, func() (err error) {
		t, err = r.readOnce(ctx, k)
		return err
	})
	return t, err
}

func (r tails) readOnce(ctx context.Context, k key.Key) (tail, error) {
	b := make([]byte, layout.MaxTailSize(r.chunkBlocks))
	for {
		n, info, err := r.store.Get(ctx, k.Name(), b, -1)
		if err != nil {
			return tail{}, fmt.Errorf("read the tail of object %d (%s): %w", k, k.Name(), err)
		}
		obj, err := layout.DecodeTail(b[:n], info.Size)
		var short *layout.ShortTailError
		if errors.As(err, &short) && short.Need > len(b) { // of a volume with larger chunks
			b = make([]byte, short.Need)
			continue
		}
		if err == nil && obj.Key != k && obj.UUID == r.uuid {
			err = fmt.Errorf("%w: it says that it is object %d", layout.ErrDamaged, obj.Key)
		}
		if err != nil {
			return tail{}, fmt.Errorf("object %d (%s): %w", k, k.Name(), err)
		}
		return tail{obj, info.Version}, nil
	}
}

// lookAhead reads the tails of a log from some key on, several at a time, and
// gives them in order.
type lookAhead struct {
	tails   tails
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	from    key.Key
	pending []chan inspected
	window  int
}

type inspected struct {
	tail tail
	err  error
}

// mostAhead bounds the tail reads under way. Past the end of the log they are
// in vain, so the window grows from two with what is found.
const mostAhead = 128

// ahead reads from k on until close.
func (r tails) ahead(ctx context.Context, k key.Key) *lookAhead {
	a := &lookAhead{tails: r, from: k, window: 2}
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a
}

func (a *lookAhead) next() (tail, error) {
	for len(a.pending) < a.window {
		k, answer := a.from, make(chan inspected, 1)
		a.from++
		a.pending = append(a.pending, answer)
		a.wg.Go(func() {
			t, err := a.tails.read(a.ctx, k)
			answer <- inspected{t, err}
		})
	}
	a.window = min(2*a.window, mostAhead)
	first := <-a.pending[0]
	a.pending = a.pending[1:]
	return first.tail, first.err
}

func (a *lookAhead) close() {
	a.cancel()
	a.wg.Wait()
}
