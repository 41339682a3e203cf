package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// ReadRecord reads the volume record and the version of the very bytes it was
// decoded from. Errors: objproxy.ErrNotFound if there is none, ErrRefused if it
// does not decode, those of the store.
func ReadRecord(ctx context.Context, store objproxy.Store) (*layout.Volume, objproxy.Version, error) {
	var v *layout.Volume
	var version objproxy.Version
	err := untorn(ctx, func() error {
		b, read, err := ReadAll(ctx, store, layout.VolumeName)
		if err != nil {
			return fmt.Errorf("volume record: %w", err)
		}
		version = read
		v, err = layout.DecodeVolume(b)
		return err
	})
	if IsUnreadable(err) {
		return nil, "", fmt.Errorf("%w: volume record: %w", ErrRefused, err)
	}
	if err != nil {
		return nil, "", err
	}
	return v, version, nil
}

// Owner is the writer that holds a volume, as its record says: who it is, and
// the right to change the record.
type Owner struct {
	UUID  layout.UUID
	Epoch uint64
	Nonce layout.Nonce

	store    objproxy.Store
	log      zerolog.Logger
	changing chan struct{} // holds one token while the record is changed
}

// NewOwner returns the writer of epoch and nonce that has claimed volume uuid.
func NewOwner(uuid layout.UUID, epoch uint64, nonce layout.Nonce, store objproxy.Store, log zerolog.Logger) *Owner {
	return &Owner{UUID: uuid, Epoch: epoch, Nonce: nonce, store: store, log: log, changing: make(chan struct{}, 1)}
}

// Read reads the record and makes sure that it is still this writer's:
// ErrFenced (wrapped) if not.
func (o *Owner) Read(ctx context.Context) (*layout.Volume, objproxy.Version, error) {
	v, version, err := ReadRecord(ctx, o.store)
	if err != nil {
		return nil, "", err
	}
	if v.Epoch != o.Epoch || v.Writer.Nonce != o.Nonce {
		return nil, "", fmt.Errorf("%w: epoch %d of host %s (%s, pid %d) has taken over from our epoch %d",
			ErrFenced, v.Epoch, v.Writer.Hostname, v.Writer.Host, v.Writer.PID, o.Epoch)
	}
	return v, version, nil
}

// Change applies f to the record and stores it. f may be called several times,
// on a fresh record each time. Concurrent changes by one Owner wait for each
// other. Errors: ErrFenced (another writer holds the volume), ErrRefused, that
// of ctx, those of the store; all wrapped.
func (o *Owner) Change(ctx context.Context, f func(*layout.Volume)) error {
	select {
	case o.changing <- struct{}{}:
		defer func() { <-o.changing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	id := layout.NewNonce().String()
	var denied Denials
	for {
		v, version, err := o.Read(ctx)
		if err != nil {
			return err
		}
		if v.ChangeID == id {
			return nil // stored by a try whose answer was lost
		}
		f(v)
		v.Generation++
		v.ChangeID = id
		b, err := layout.EncodeVolume(v)
		if err != nil {
			return fmt.Errorf("change the volume record: %w", err)
		}
		_, err = o.store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfVersion(version))
		if err == nil {
			return nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return fmt.Errorf("change the volume record: %w", err)
		}
		if err := denied.Again(ctx, layout.VolumeName, o.log); err != nil {
			return err
		}
	}
}

// nameWithin is how long a writer that is fenced asks who fenced it.
const nameWithin = 5 * time.Second

// NameSuccessor returns, if err is ErrFenced, an error that says who has taken
// over: an object tells no more than the epoch. Otherwise it returns err.
func (o *Owner) NameSuccessor(ctx context.Context, err error) error {
	if !errors.Is(err, ErrFenced) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nameWithin)
	defer cancel()
	if _, _, own := o.Read(ctx); errors.Is(own, ErrFenced) {
		return own
	}
	return err
}
