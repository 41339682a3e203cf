package bs3

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/life"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/rcache"
	"bs3/internal/bs3/reader"
	"bs3/internal/bs3/volume"
	"bs3/internal/device"
)

// SnapshotVolume is a snapshot that is open for reading. It implements
// device.Volume, device.Fast and device.Allocator, and is safe for concurrent use.
//
// It has no epoch, puts and deletes nothing, and uses no file of this machine, so it
// may be used beside a writer of the volume. What it needs stays in the store for as
// long as the volume record names the snapshot.
type SnapshotVolume struct {
	volume   layout.UUID
	snapshot layout.Snapshot
	geometry device.Geometry
	store    objproxy.Store
	log      zerolog.Logger

	life       *life.Life
	reader     *reader.Reader
	background sync.WaitGroup
	told       sync.Map // reasons for missing data that the log has heard of

	closing  sync.Once
	closeErr error
}

// OpenSnapshot opens the snapshot of that name of the volume in the store. Of opts it
// uses Store, Log, the preferred sizes of requests, what is about reading from the
// store and the cache in memory, Progress, and OpenFor, which always applies: nothing
// is lost by giving up.
//
// Errors: volume.ErrNoVolume; volume.ErrRefused, with checkpoint.ErrNoSnapshot if
// there is no such snapshot; volume.ErrStore.
func OpenSnapshot(ctx context.Context, opts Options, name string) (*SnapshotVolume, error) {
	limit := opts.OpenFor
	if limit <= 0 {
		limit = defaultOpenFor
	}
	limited, store, release := objproxy.Patience(ctx, opts.Store, limit, fmt.Errorf("%w: no proper answer for %v", volume.ErrStore, limit))
	defer release()
	o := &snapshotOpening{opts: opts, store: store}
	if err := o.read(limited, name); err != nil {
		if cause := context.Cause(limited); errors.Is(cause, volume.ErrStore) && !errors.Is(err, volume.ErrStore) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return nil, err
	}
	return o.serve(ctx)
}

// snapshotOpening is what exists only while a snapshot is opened.
type snapshotOpening struct {
	opts     Options
	store    objproxy.Store
	v        *layout.Volume
	snapshot layout.Snapshot
	maps     *mapproxy.Proxy
}

// read finds the snapshot of that name, and loads its map.
func (o *snapshotOpening) read(ctx context.Context, name string) (err error) {
	o.v, _, err = volume.ReadRecord(ctx, o.store)
	if errors.Is(err, objproxy.ErrNotFound) {
		return fmt.Errorf("%w: %w", volume.ErrNoVolume, err)
	}
	if err != nil {
		return err
	}
	if o.v.Deleted {
		return fmt.Errorf("%w: volume %s was deleted", volume.ErrRefused, o.v.UUID)
	}
	i := slices.IndexFunc(o.v.Snapshots, func(s layout.Snapshot) bool { return s.Name == name })
	if i < 0 {
		return fmt.Errorf("%w: %w: %q; %s", volume.ErrRefused, checkpoint.ErrNoSnapshot, name, someSnapshots(o.v))
	}
	o.snapshot = o.v.Snapshots[i]
	if o.opts.Progress != nil {
		o.opts.Progress(OpenProgress{Stage: "reading the snapshot"})
	}
	o.maps = mapproxy.New(uint64(o.v.Size) / uint64(o.v.BlockSize))
	c, err := volume.LoadMap(ctx, o.store, o.v.UUID, o.snapshot.Directory, o.maps)
	if err == nil && c.BlockSize != o.v.BlockSize {
		err = fmt.Errorf("%w: it has blocks of %d bytes, the volume of %d", layout.ErrDamaged, c.BlockSize, o.v.BlockSize)
	}
	switch {
	case err == nil:
		return nil
	case !volume.IsDamage(err):
		return fmt.Errorf("read snapshot %s: %w", name, err)
	}
	if there, readErr := named(ctx, o.store, o.v.UUID, o.snapshot); readErr == nil && !there {
		return fmt.Errorf("%w: %w: %s was removed while it was opened: %w", volume.ErrRefused, checkpoint.ErrNoSnapshot, name, err)
	}
	return fmt.Errorf("%w: snapshot %s does not verify: %w", volume.ErrRefused, name, err)
}

// someSnapshots says which snapshots v has, or some of them.
func someSnapshots(v *layout.Volume) string {
	const most = 10
	if len(v.Snapshots) == 0 {
		return "the volume has no snapshots"
	}
	var names []string
	for _, s := range v.Snapshots[:min(most, len(v.Snapshots))] {
		names = append(names, s.Name)
	}
	text := "the volume has " + strings.Join(names, ", ")
	if more := len(v.Snapshots) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// named reports whether the record of that volume still names the very snapshot s.
func named(ctx context.Context, store objproxy.Store, uuid layout.UUID, s layout.Snapshot) (bool, error) {
	v, _, err := volume.ReadRecord(ctx, store)
	if err != nil {
		return false, err
	}
	return v.UUID == uuid && !v.Deleted && slices.ContainsFunc(v.Snapshots, func(o layout.Snapshot) bool {
		return o.Name == s.Name && o.Directory == s.Directory
	}), nil
}

// serve puts the parts together.
func (o *snapshotOpening) serve(ctx context.Context) (*SnapshotVolume, error) {
	opts, v := o.opts, o.v
	s := &SnapshotVolume{
		volume: v.UUID, snapshot: o.snapshot, store: opts.Store, log: opts.Log,
		geometry: device.Geometry{Size: v.Size, BlockSize: int(v.BlockSize), IOMin: opts.IOMin, IOOpt: opts.IOOpt, ReadOnly: true},
		life:     life.New(ctx, opts.Log),
	}
	if s.geometry.IOMin%s.geometry.BlockSize != 0 || s.geometry.IOOpt%s.geometry.BlockSize != 0 {
		s.geometry.IOMin, s.geometry.IOOpt = 0, 0 // they were meant for other blocks
	}
	where := &places{o.maps.View()}
	var cache *rcache.Cache
	if opts.ReadCache > 0 {
		var err error
		if cache, err = rcache.New(opts.ReadCache, s.geometry.BlockSize, where.where); err != nil {
			return nil, err
		}
	}
	s.reader = reader.New(reader.Config{
		Store: opts.Store, UUID: v.UUID, Map: where.View, Memory: reader.Stored(o.maps), Life: s.life, Log: opts.Log,
		BlockSize: s.geometry.BlockSize, Size: v.Size, ChunkSize: int(v.ChunkSize),
		Cache: cache, Readahead: opts.Readahead, CacheSize: opts.ReadCache, Downloaders: opts.Downloaders,
		WholeObjects: opts.WholeObjects,
		Missing:      s.missing,
	})
	s.background.Go(func() { s.reader.Run(s.life.Context()) })
	return s, nil
}

// Geometry implements device.Volume.
func (s *SnapshotVolume) Geometry() device.Geometry { return s.geometry }

// UUID names the volume.
func (s *SnapshotVolume) UUID() layout.UUID { return s.volume }

// Snapshot returns what the volume record says of the snapshot.
func (s *SnapshotVolume) Snapshot() layout.Snapshot { return s.snapshot }

func (s *SnapshotVolume) check(off, n int64) error {
	return check(off, n, s.geometry.Size, s.geometry.BlockSize)
}

// ReadAt implements device.Volume. It waits for the store for as long as ctx allows.
// Errors: those of reader.Reader.Read, and checkpoint.ErrNoSnapshot if something is
// missing because the snapshot was removed.
func (s *SnapshotVolume) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p))); err != nil {
		return err
	}
	return s.reader.Read(ctx, p, off)
}

// TryReadAt implements device.Fast.
func (s *SnapshotVolume) TryReadAt(p []byte, off int64) bool {
	return s.check(off, int64(len(p))) == nil && s.reader.TryRead(p, off)
}

// Allocation implements device.Allocator.
func (s *SnapshotVolume) Allocation(_ context.Context, off, n int64) ([]device.Extent, error) {
	if err := s.check(off, n); err != nil {
		return nil, err
	}
	return s.reader.Allocation(off, n), nil
}

// errReadOnly is the answer to all that would change a snapshot.
var errReadOnly = errors.New("a snapshot cannot be written")

// WriteAt implements device.Volume. It fails.
func (s *SnapshotVolume) WriteAt(context.Context, []byte, int64) error { return errReadOnly }

// TryWriteAt implements device.Fast. It does nothing.
func (s *SnapshotVolume) TryWriteAt([]byte, int64) bool { return false }

// Discard implements device.Volume. It fails.
func (s *SnapshotVolume) Discard(context.Context, int64, int64) error { return errReadOnly }

// WriteZeroes implements device.Volume. It fails.
func (s *SnapshotVolume) WriteZeroes(context.Context, int64, int64) error { return errReadOnly }

// Flush implements device.Volume. There is never anything to flush.
func (s *SnapshotVolume) Flush(context.Context) error { return nil }

// missing says why an object of the snapshot is not in the store, as err says, as far
// as the volume record tells. The log hears of each reason once.
func (s *SnapshotVolume) missing(ctx context.Context, err error) error {
	ctx, release := s.life.Limit(ctx)
	defer release()
	there, readErr := named(ctx, s.store, s.volume, s.snapshot)
	var why string
	switch {
	case readErr != nil:
		why = fmt.Sprintf("snapshot %s was removed, or its data is gone", s.snapshot.Name)
		err = fmt.Errorf("%s: %w; the volume record does not tell: %w", why, err, readErr)
	case there:
		why = fmt.Sprintf("snapshot %s was not removed, but its data is gone", s.snapshot.Name)
		err = fmt.Errorf("%s: %w", why, err)
	default:
		why = fmt.Sprintf("snapshot %s was removed", s.snapshot.Name)
		err = fmt.Errorf("%s: %w: %w", why, checkpoint.ErrNoSnapshot, err)
	}
	if _, told := s.told.LoadOrStore(why, true); !told {
		s.log.Error().Err(err).Msg(why + ": reads fail of what is not in memory")
	}
	return err
}

// Close ends the reading. The transport must have stopped. Closing again changes
// nothing.
func (s *SnapshotVolume) Close() error {
	s.closing.Do(func() {
		s.life.End()
		s.background.Wait()
		s.closeErr = s.reader.Close()
	})
	return s.closeErr
}
