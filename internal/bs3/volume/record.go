package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
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
//
// Nobody else changes the record, except to fence this writer, or to add or remove
// snapshots. So an Owner knows what belongs there, and puts back a record that is
// gone or old; a snapshot that somebody else has added since is not in it.
type Owner struct {
	UUID  layout.UUID
	Epoch uint64
	Nonce layout.Nonce

	store    objproxy.Store
	log      zerolog.Logger
	changing chan struct{}  // holds one token while the record is changed
	next     func() key.Key // see LogFrom; nil = nobody has said it

	mu struct {
		sync.Mutex
		known *layout.Volume // the record as it was read or stored last; never changed
	}
}

// NewOwner returns the writer that v, which is stored, names.
func NewOwner(v *layout.Volume, store objproxy.Store, log zerolog.Logger) *Owner {
	o := &Owner{UUID: v.UUID, Epoch: v.Epoch, Nonce: v.Writer.Nonce, store: store, log: log, changing: make(chan struct{}, 1)}
	o.note(v)
	return o
}

// On returns the same writer on another way to its store. o must not be used
// after that.
func (o *Owner) On(store objproxy.Store) *Owner { return NewOwner(o.known(), store, o.log) }

// LogFrom says how to ask for the first key that this writer may not have
// stored: a successor's fence lies there, or above. It must be called before o
// is used by several goroutines.
func (o *Owner) LogFrom(next func() key.Key) { o.next = next }

// note keeps v as what is known of the record, unless something newer is. It
// returns the generation of what is known then.
func (o *Owner) note(v *layout.Volume) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := o.mu.known; k == nil || k.Generation < v.Generation {
		o.mu.known = clone(v)
	}
	return o.mu.known.Generation
}

// known returns a copy of the record as it was read or stored last.
func (o *Owner) known() *layout.Volume {
	o.mu.Lock()
	defer o.mu.Unlock()
	return clone(o.mu.known)
}

func clone(v *layout.Volume) *layout.Volume {
	c := *v
	c.Checkpoints, c.Snapshots = slices.Clone(v.Checkpoints), slices.Clone(v.Snapshots)
	if v.LocalLog != nil {
		here := *v.LocalLog
		c.LocalLog = &here
	}
	return &c
}

// Read reads the record and makes sure that it is still this writer's:
// ErrFenced (wrapped) if not. Read puts back a record that is gone or old.
func (o *Owner) Read(ctx context.Context) (*layout.Volume, objproxy.Version, error) {
	v, version, err := o.look(ctx)
	if !errors.Is(err, errLost) {
		return v, version, err
	}
	// Not beside a change: what that has stored would be undone.
	if err := o.take(ctx); err != nil {
		return nil, "", err
	}
	defer o.give()
	return o.readOrRestore(ctx)
}

// errLost: there is no record, or an old one.
var errLost = errors.New("the volume record is lost")

// look reads the record. Errors: errLost, which comes with the old record
// that is there, if any; ErrFenced; those of ReadRecord.
func (o *Owner) look(ctx context.Context) (*layout.Volume, objproxy.Version, error) {
	v, version, err := ReadRecord(ctx, o.store)
	if err == nil && (v.UUID != o.UUID || v.Epoch != o.Epoch || v.Writer.Nonce != o.Nonce) {
		v, version, err = ReadRecord(ctx, o.store) // one answer may be another volume's
	}
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		return nil, "", fmt.Errorf("%w: %w", errLost, err)
	case err != nil:
		return nil, "", err
	case v.UUID == o.UUID && v.Epoch < o.Epoch && !v.Deleted:
		// An older writer, which does not know us, has put its own back.
		return v, version, fmt.Errorf("%w: it is of epoch %d, ours is %d", errLost, v.Epoch, o.Epoch)
	case v.UUID != o.UUID || v.Epoch != o.Epoch || v.Writer.Nonce != o.Nonce:
		return nil, "", fmt.Errorf("%w: epoch %d of host %s (%s, pid %d) has taken over from our epoch %d",
			ErrFenced, v.Epoch, v.Writer.Hostname, v.Writer.Host, v.Writer.PID, o.Epoch)
	}
	if known := o.note(v); v.Generation < known {
		// Somebody has put an old copy there, or it was changed while it was read.
		return v, version, fmt.Errorf("%w: what is there is generation %d, the last was %d", errLost, v.Generation, known)
	}
	return v, version, nil
}

func (o *Owner) take(ctx context.Context) error {
	select {
	case o.changing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (o *Owner) give() { <-o.changing }

// readOrRestore is Read for who may change the record.
func (o *Owner) readOrRestore(ctx context.Context) (*layout.Volume, objproxy.Version, error) {
	id := layout.NewNonce().String()
	var lost error
	var denied Denials
	for {
		v, version, err := o.look(ctx)
		if !errors.Is(err, errLost) {
			if err == nil && v.ChangeID == id {
				o.log.Warn().Err(lost).Uint64("epoch", o.Epoch).Msg("the volume record was lost, and was put back as it was: something removes objects of the volume (a lifecycle rule of the bucket, another program, a person); run bs3 fsck to see what else is missing")
			}
			return v, version, err
		}
		lost = err
		cond := objproxy.IfAbsent()
		if v != nil {
			cond = objproxy.IfVersion(version)
		}
		if err := o.restore(ctx, id, cond); err != nil && !errors.Is(err, objproxy.ErrExists) {
			return nil, "", fmt.Errorf("%w; put it back: %w", lost, err)
		}
		if err := denied.Again(ctx, layout.VolumeName, o.log); err != nil {
			return nil, "", err
		}
	}
}

// restore stores the record as it was known last, if cond holds and nobody has
// taken over since: a successor may have deleted what the checkpoints that it
// names need.
func (o *Owner) restore(ctx context.Context, id string, cond objproxy.Condition) error {
	v := o.known()
	if err := o.alone(ctx, v); err != nil {
		return err
	}
	v.Generation++
	v.ChangeID = id
	return o.put(ctx, v, cond)
}

// alone returns ErrFenced (wrapped) if anything in the store is of a writer that
// came after this one.
func (o *Owner) alone(ctx context.Context, v *layout.Volume) error {
	for _, prefix := range []string{layout.CheckpointPrefix, layout.MapPrefix} {
		err := List(ctx, o.store, prefix, func(page []objproxy.Info) error {
			for _, i := range page {
				if epoch, _ := EpochOf(i.Name); epoch > o.Epoch {
					return fmt.Errorf("%w: %s is of epoch %d, ours is %d", ErrFenced, i.Name, epoch, o.Epoch)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if o.next == nil {
		return nil // our fence is not stored yet
	}
	return TailsOf(v, o.store).Walk(ctx, Position{o.next(), o.Epoch}, func(k key.Key, found *layout.Object) error {
		if found.Epoch > o.Epoch {
			return fmt.Errorf("%w: object %d has epoch %d, ours is %d", ErrFenced, k, found.Epoch, o.Epoch)
		}
		return nil
	})
}

// put stores v, which then is what is known of the record.
func (o *Owner) put(ctx context.Context, v *layout.Volume, cond objproxy.Condition) error {
	if err := PutRecord(ctx, o.store, v, cond); err != nil {
		return err
	}
	o.note(v)
	return nil
}

// Snapshots returns the snapshots that the record named when it was read or
// stored last.
func (o *Owner) Snapshots() []layout.Snapshot { return o.known().Snapshots }

// Change applies f to the record and stores it, unless f returns an error. f may be
// called several times, on a fresh record each time, which may be one that f has
// changed before. Concurrent changes by one Owner wait for each other. Errors: that
// of f, as it is; ErrFenced (another writer holds the volume), ErrRefused, that of
// ctx, those of the store; all wrapped.
func (o *Owner) Change(ctx context.Context, f func(*layout.Volume) error) error {
	if err := o.take(ctx); err != nil {
		return err
	}
	defer o.give()
	return change(ctx, o.log, o.readOrRestore, o.put, f)
}

// change reads the record, applies f, and puts it, until that is done.
func change(ctx context.Context, log zerolog.Logger, read func(context.Context) (*layout.Volume, objproxy.Version, error),
	put func(context.Context, *layout.Volume, objproxy.Condition) error, f func(*layout.Volume) error) error {
	id := layout.NewNonce().String()
	var denied Denials
	for {
		v, version, err := read(ctx)
		if err != nil {
			return err
		}
		if v.ChangeID == id {
			return nil // stored by a try whose answer was lost
		}
		if err := f(v); err != nil {
			return err
		}
		v.Generation++
		v.ChangeID = id
		err = put(ctx, v, objproxy.IfVersion(version))
		if err == nil {
			return nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return fmt.Errorf("change the volume record: %w", err)
		}
		if err := denied.Again(ctx, layout.VolumeName, log); err != nil {
			return err
		}
	}
}

// ChangeRecord is Owner.Change for who has no epoch: all that f may do is to add and
// remove snapshots. Errors: objproxy.ErrNotFound, that of f, ErrRefused, that of ctx,
// those of the store.
func ChangeRecord(ctx context.Context, store objproxy.Store, log zerolog.Logger, f func(*layout.Volume) error) error {
	read := func(ctx context.Context) (*layout.Volume, objproxy.Version, error) { return ReadRecord(ctx, store) }
	put := func(ctx context.Context, v *layout.Volume, cond objproxy.Condition) error {
		return PutRecord(ctx, store, v, cond)
	}
	return change(ctx, log, read, put, f)
}

// PutRecord stores v if cond holds. Errors: layout.ErrDamaged for what is no record,
// those of the store.
func PutRecord(ctx context.Context, store objproxy.Store, v *layout.Volume, cond objproxy.Condition) error {
	b, err := layout.EncodeVolume(v)
	if err != nil {
		return err
	}
	_, err = store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, cond)
	return err
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
