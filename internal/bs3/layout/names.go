package layout

import (
	"fmt"

	"bs3/internal/bs3/key"
)

// The names below a volume's prefix, besides those of the objects of its log
// (package key) and of probes of the store (objproxy.ProbePrefix).
const (
	// VolumeName is the volume record.
	VolumeName = "volume"
	// CheckpointPrefix starts the names of checkpoints (CheckpointName).
	CheckpointPrefix = "checkpoint/"
	// MapPrefix starts the names of packs of leaves (PackName).
	MapPrefix = "map/"
)

// CheckpointName names the checkpoint at key k written by the writer of epoch
// as its counter-th. Writers never use a counter twice. Names sort as
// (key, epoch, counter) do.
func CheckpointName(k key.Key, epoch uint64, counter uint32) string {
	return fmt.Sprintf("%s%016x-%016x-%08x", CheckpointPrefix, uint64(k), epoch, counter)
}

// ParseCheckpointName is the inverse of CheckpointName. It accepts exactly what
// that gives; anything else is ErrMagic.
func ParseCheckpointName(name string) (k key.Key, epoch uint64, counter uint32, err error) {
	_, scanErr := fmt.Sscanf(name, CheckpointPrefix+"%016x-%016x-%08x", (*uint64)(&k), &epoch, &counter)
	if scanErr != nil || k > key.Max || CheckpointName(k, epoch, counter) != name {
		return 0, 0, 0, fmt.Errorf("name %q: %w: no name of a checkpoint", name, ErrMagic)
	}
	return k, epoch, counter, nil
}

// PackName names the counter-th pack of leaves of the writer of epoch.
func PackName(epoch uint64, counter uint32) string {
	return fmt.Sprintf("%s%016x-%08x", MapPrefix, epoch, counter)
}

// ParsePackName is the inverse of PackName. It accepts exactly what that
// gives; anything else is ErrMagic.
func ParsePackName(name string) (epoch uint64, counter uint32, err error) {
	_, scanErr := fmt.Sscanf(name, MapPrefix+"%016x-%08x", &epoch, &counter)
	if scanErr != nil || PackName(epoch, counter) != name {
		return 0, 0, fmt.Errorf("name %q: %w: no name of a pack", name, ErrMagic)
	}
	return epoch, counter, nil
}
