package bs3

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// What making or removing a snapshot may answer, with a writer or without. They come
// wrapped.
var (
	ErrSnapshotExists = checkpoint.ErrSnapshotExists
	ErrNoSnapshot     = checkpoint.ErrNoSnapshot
	ErrMostSnapshots  = checkpoint.ErrMostSnapshots
)

// SnapshotNameRule says what a snapshot may be called.
const SnapshotNameRule = layout.SnapshotNameRule

// CheckSnapshotName returns an error that says what a snapshot may be called, if it
// may not be called name.
func CheckSnapshotName(name string) error {
	if layout.CheckSnapshotName(name) != nil {
		return fmt.Errorf("%q is no name of a snapshot: %s", name, SnapshotNameRule)
	}
	return nil
}

// SnapshotOutside keeps under a name what is durable of the volume in store. It needs
// no writer, and disturbs none. Errors: volume.ErrNoVolume, volume.ErrRefused,
// volume.ErrMoving, those of Engine.Snapshot.
func SnapshotOutside(ctx context.Context, store objproxy.Store, log zerolog.Logger, name string) (volume.SnapshotInfo, error) {
	s, err := checkpoint.SnapshotOutside(ctx, store, log, name)
	if err != nil {
		return volume.SnapshotInfo{}, whereNoVolume(ctx, store, err)
	}
	return volume.InfoOf(s), nil
}

// RemoveSnapshotOutside removes a snapshot of the volume in store. It needs no writer,
// and disturbs none. Errors: volume.ErrNoVolume, those of Engine.RemoveSnapshot.
func RemoveSnapshotOutside(ctx context.Context, store objproxy.Store, log zerolog.Logger, name string) error {
	if err := checkpoint.RemoveSnapshotOutside(ctx, store, log, name); err != nil {
		return whereNoVolume(ctx, store, err)
	}
	return nil
}

// whereNoVolume returns err, with volume.ErrNoVolume if it says that something is not
// there and the volume record is not.
func whereNoVolume(ctx context.Context, store objproxy.Store, err error) error {
	if errors.Is(err, objproxy.ErrNotFound) {
		if _, missing := volume.Find(ctx, store); errors.Is(missing, volume.ErrNoVolume) {
			return fmt.Errorf("%w: %w", volume.ErrNoVolume, err)
		}
	}
	return err
}
