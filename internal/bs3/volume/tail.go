package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// Position is a place in the log: the next key to read, and the epoch of the
// object before it.
type Position struct {
	Next  key.Key
	Epoch uint64
}

// After returns the position behind what checkpoint c holds.
func After(c *layout.Checkpoint) Position { return Position{c.Key + 1, c.KeyEpoch} }

// Tails reads what follows the data of the objects of one log.
type Tails struct {
	Store       objproxy.Store
	UUID        layout.UUID
	ChunkBlocks int // most data blocks of an object
}

// TailsOf returns the tails of the log of v.
func TailsOf(v *layout.Volume, store objproxy.Store) Tails {
	return Tails{store, v.UUID, int(v.ChunkSize / v.BlockSize)}
}

// Tail is the decoded end of a stored object, and the version it came with.
type Tail struct {
	Object  *layout.Object
	Version objproxy.Version
}

// Read reads and decodes the tail of the object of key k. An answer that does
// not verify, or that is of another volume, counts if it is given again. Errors:
// objproxy.ErrNotFound, those of layout (what is there is not to be replaced),
// those of the store.
func (r Tails) Read(ctx context.Context, k key.Key) (Tail, error) {
	t, err := r.readUntorn(ctx, k)
	if err == nil && t.Object.UUID != r.UUID {
		return r.readUntorn(ctx, k)
	}
	return t, err
}

func (r Tails) readUntorn(ctx context.Context, k key.Key) (t Tail, err error) {
	err = untorn(ctx, func() (err error) {
		t, err = r.readOnce(ctx, k)
		return err
	})
	return t, err
}

// Continues reports whether o can be what lies at p of the log: it is of the
// volume, and of no writer that was fenced before p.
func (r Tails) Continues(p Position, o *layout.Object) bool {
	return o.UUID == r.UUID && o.Epoch >= p.Epoch
}

func (r Tails) readOnce(ctx context.Context, k key.Key) (Tail, error) {
	b := make([]byte, layout.MaxTailSize(r.ChunkBlocks))
	for {
		n, info, err := r.Store.Get(ctx, k.Name(), b, -1)
		if err != nil {
			return Tail{}, fmt.Errorf("read the tail of object %d (%s): %w", k, k.Name(), err)
		}
		obj, err := layout.DecodeTail(b[:n], info.Size)
		var short *layout.ShortTailError
		if errors.As(err, &short) && short.Need > len(b) { // of a volume with larger chunks
			b = make([]byte, short.Need)
			continue
		}
		if err == nil && obj.Key != k && obj.UUID == r.UUID {
			err = fmt.Errorf("%w: it says that it is object %d", layout.ErrDamaged, obj.Key)
		}
		if err != nil {
			return Tail{}, fmt.Errorf("object %d (%s): %w", k, k.Name(), err)
		}
		return Tail{obj, info.Version}, nil
	}
}

// Walk calls f for the objects of the log from p on, in order, up to its end:
// a key that is not there, or where a leftover of another volume or of a writer
// that was fenced before lies. Errors: that of f, as it is; those of layout for
// an object that does not verify; those of the store.
func (r Tails) Walk(ctx context.Context, p Position, f func(key.Key, *layout.Object) error) error {
	ahead := r.Ahead(ctx, p.Next)
	defer ahead.Close()
	for {
		t, err := ahead.Next()
		if err == nil && !r.Continues(p, t.Object) { // one wrong answer is no end
			t, err = r.Read(ctx, p.Next)
		}
		switch {
		case errors.Is(err, objproxy.ErrNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("read the log: %w", err)
		case !r.Continues(p, t.Object):
			return nil
		}
		if err := f(p.Next, t.Object); err != nil {
			return err
		}
		p = Position{p.Next + 1, t.Object.Epoch}
	}
}

// LookAhead reads the tails of a log from some key on, several at a time, and
// returns them in order. One goroutine may use it.
type LookAhead struct {
	tails   Tails
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	from    key.Key
	pending []chan tailRead
	window  int
}

type tailRead struct {
	tail Tail
	err  error
}

// mostAhead bounds the tail reads under way. Past the end of the log they are
// in vain, so the window grows from two with what is found.
const mostAhead = 128

// Ahead returns a LookAhead that reads from k on, until ctx ends or Close,
// which must be called.
func (r Tails) Ahead(ctx context.Context, k key.Key) *LookAhead {
	a := &LookAhead{tails: r, from: k, window: 2}
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a
}

// Next returns what Tails.Read returns for the next key.
func (a *LookAhead) Next() (Tail, error) {
	for len(a.pending) < a.window {
		k, answer := a.from, make(chan tailRead, 1)
		a.from++
		a.pending = append(a.pending, answer)
		a.wg.Go(func() {
			t, err := a.tails.Read(a.ctx, k)
			answer <- tailRead{t, err}
		})
	}
	a.window = min(2*a.window, mostAhead)
	first := <-a.pending[0]
	a.pending = a.pending[1:]
	return first.tail, first.err
}

// Close ends the reads under way and waits for them.
func (a *LookAhead) Close() {
	a.cancel()
	a.wg.Wait()
}

// Objects reads whole objects of the log below the durable key.
type Objects struct {
	Store     objproxy.Store
	UUID      layout.UUID // of the volume
	BlockSize int         // bytes
	Blocks    uint64      // of the volume
}

// Read reads the object of key k into buf, which must have room for its stored blocks
// and its tail, and returns what its tail says, and the stored blocks, in buf. It does
// not verify these. After an error of the store a request may go on to write to buf.
// Errors: objproxy.ErrNotFound, those of layout, those of the store.
func (r Objects) Read(ctx context.Context, k key.Key, buf []byte) (*layout.Object, []byte, error) {
	n, info, err := r.Store.Get(ctx, k.Name(), buf, -1)
	if err != nil {
		return nil, nil, fmt.Errorf("read object %d (%s): %w", k, k.Name(), err)
	}
	o, err := layout.DecodeTail(buf[:n], info.Size)
	if err != nil {
		return nil, nil, fmt.Errorf("object %d (%s): %w", k, k.Name(), err)
	}
	if o.UUID != r.UUID || o.Key != k || int64(n) != info.Size {
		return nil, nil, fmt.Errorf("object %d (%s): %w: it is object %d of volume %s, of %d bytes", k, k.Name(), layout.ErrDamaged, o.Key, o.UUID, info.Size)
	}
	if err := Fits(o, r.BlockSize, r.Blocks); err != nil {
		return nil, nil, err
	}
	return o, buf[:o.DataSize()], nil
}
