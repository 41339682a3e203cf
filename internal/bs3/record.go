package bs3

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// readVolume reads the volume record and the version of the very bytes it was
// decoded from. objproxy.ErrNotFound (wrapped) if there is none.
func readVolume(ctx context.Context, store objproxy.Store) (*layout.Volume, objproxy.Version, error) {
	var v *layout.Volume
	var version objproxy.Version
	err := untorn(ctx, func() error {
		b, read, err := readAll(ctx, store, layout.VolumeName)
		if err != nil {
			return fmt.Errorf("volume record: %w", err)
		}
		version = read
		v, err = layout.DecodeVolume(b)
		return err
	})
	if isDamage(err) && !errors.Is(err, objproxy.ErrNotFound) {
		return nil, "", fmt.Errorf("%w: volume record: %w", ErrRefused, err)
	}
	if err != nil {
		return nil, "", err
	}
	return v, version, nil
}

// untorn calls read again, twice at most, when what it read does not decode:
// some stores (versitygw) may answer with parts of two versions while an
// object is being replaced.
func untorn(ctx context.Context, read func() error) error {
	err := read()
	for range 2 {
		if !isDamage(err) || errors.Is(err, objproxy.ErrNotFound) || sleep(ctx, 20*time.Millisecond) != nil {
			break
		}
		err = read()
	}
	return err
}

// changeVolume changes the volume record by f, which must be idempotent, and
// returns what is stored then. One change of a process is under way at a time.
// ErrFenced (wrapped) if another writer holds the volume.
func (e *Engine) changeVolume(ctx context.Context, f func(*layout.Volume)) (*layout.Volume, error) {
	select {
	case e.changing <- struct{}{}:
		defer func() { <-e.changing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	id := layout.NewNonce().String()
	var denied denials
	for {
		v, version, err := e.ownVolume(ctx)
		if err != nil {
			return nil, err
		}
		if v.ChangeID == id {
			return v, nil // stored by a try whose answer was lost
		}
		f(v)
		v.Generation++
		v.ChangeID = id
		b, err := layout.EncodeVolume(v)
		if err != nil {
			return nil, fmt.Errorf("change the volume record: %w", err)
		}
		_, err = e.store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfVersion(version))
		if err == nil {
			return v, nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return nil, fmt.Errorf("change the volume record: %w", err)
		}
		if err := e.again(ctx, &denied, layout.VolumeName); err != nil {
			return nil, err
		}
	}
}

// ownVolume reads the record and makes sure that it is still this writer's:
// ErrFenced (wrapped) if not.
func (e *Engine) ownVolume(ctx context.Context) (*layout.Volume, objproxy.Version, error) {
	v, version, err := readVolume(ctx, e.store)
	if err != nil {
		return nil, "", err
	}
	if v.Epoch != e.epoch || v.Writer.Nonce != e.nonce {
		return nil, "", fmt.Errorf("%w: epoch %d of host %s (%s, pid %d) has taken over from our epoch %d",
			ErrFenced, v.Epoch, v.Writer.Hostname, v.Writer.Host, v.Writer.PID, e.epoch)
	}
	return v, version, nil
}

// nameWithin is how long a writer that is fenced asks who fenced it.
const nameWithin = 5 * time.Second

// nameSuccessor makes of err, if it is ErrFenced, one that says who has taken
// over: an object tells no more than the epoch.
func (e *Engine) nameSuccessor(err error) error {
	if !errors.Is(err, ErrFenced) {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, nameWithin)
	defer cancel()
	if _, _, own := e.ownVolume(ctx); errors.Is(own, ErrFenced) {
		return own
	}
	return err
}

// maxRead bounds what readAll takes, and so a checkpoint: S3 takes no more in
// one put.
const maxRead = 5 << 30

// readAll reads a whole object whose size is not known, and its version.
func readAll(ctx context.Context, store objproxy.Store, name string) ([]byte, objproxy.Version, error) {
	b := make([]byte, 64<<10)
	for {
		n, info, err := store.Get(ctx, name, b, -1)
		if err != nil {
			return nil, "", fmt.Errorf("read %s: %w", name, err)
		}
		if info.Size == int64(n) {
			return b[:n], info.Version, nil
		}
		if info.Size > maxRead {
			return nil, "", fmt.Errorf("read %s: %w: it has %d bytes", name, layout.ErrDamaged, info.Size)
		}
		b = make([]byte, info.Size) // all of it next time, unless it is replaced by a larger one
	}
}

// listAll calls f with all objects whose names begin with prefix, a page at a
// time.
func listAll(ctx context.Context, store objproxy.Store, prefix string, f func(page []objproxy.Info) error) error {
	const most = 1000
	for after := ""; ; {
		page, err := store.List(ctx, prefix, after, most)
		if err != nil {
			return fmt.Errorf("list %q: %w", prefix, err)
		}
		if err := f(page); err != nil {
			return err
		}
		if len(page) < most {
			return nil
		}
		after = page[len(page)-1].Name
	}
}
