package layout

import (
	"fmt"

	"bs3/internal/bs3/key"
)

// The names below a volume's prefix, besides those of the objects of its log
// (package key) and of probes of the store (objproxy.ProbePrefix).
const (
	// VolumeName is the name of the volume record.
	VolumeName = "volume"
	// CheckpointPrefix starts the names of checkpoints (CheckpointName).
	CheckpointPrefix = "checkpoint/"
	// ReserveName is the name of an object that takes room and means nothing: in a
	// store that is full a collection gives it up.
	ReserveName = "reserve"
	// MapPrefix starts the names of packs of leaves (PackName).
	MapPrefix = "map/"
)

// CheckpointName returns the name of the counter-th checkpoint, at key k, of
// the writer of epoch. A writer never uses a counter twice. Names sort as
// (key, epoch, counter) do.
func CheckpointName(k key.Key, epoch uint64, counter uint32) string {
	return fmt.Sprintf("%s%016x-%016x-%08x", CheckpointPrefix, uint64(k), epoch, counter)
}

// ParseCheckpointName is the inverse of CheckpointName. For anything that
// CheckpointName does not return its error is ErrMagic.
func ParseCheckpointName(name string) (k key.Key, epoch uint64, counter uint32, err error) {
	_, scanErr := fmt.Sscanf(name, CheckpointPrefix+"%016x-%016x-%08x", (*uint64)(&k), &epoch, &counter)
	if scanErr != nil || k > key.Max || CheckpointName(k, epoch, counter) != name {
		return 0, 0, 0, fmt.Errorf("name %q: %w: not the name of a checkpoint", name, ErrMagic)
	}
	return k, epoch, counter, nil
}

// PackName returns the name of the counter-th pack of leaves of the writer of
// epoch.
func PackName(epoch uint64, counter uint32) string {
	return fmt.Sprintf("%s%016x-%08x", MapPrefix, epoch, counter)
}

// ParsePackName is the inverse of PackName. For anything that PackName does not
// return its error is ErrMagic.
func ParsePackName(name string) (epoch uint64, counter uint32, err error) {
	_, scanErr := fmt.Sscanf(name, MapPrefix+"%016x-%08x", &epoch, &counter)
	if scanErr != nil || PackName(epoch, counter) != name {
		return 0, 0, fmt.Errorf("name %q: %w: not the name of a pack", name, ErrMagic)
	}
	return epoch, counter, nil
}
