package layout

import (
	"fmt"
	"strings"

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
	// SnapshotPrefix starts the names of what was stored for a snapshot without an
	// epoch (SnapshotName, SnapshotPackName).
	SnapshotPrefix = "snapshot/"
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

// SnapshotName returns the name of the directory, at key k, of a snapshot that was
// made by the run nonce without an epoch.
func SnapshotName(k key.Key, nonce Nonce) string {
	return fmt.Sprintf("%s%016x-%s", SnapshotPrefix, uint64(k), nonce)
}

// ParseSnapshotName is the inverse of SnapshotName. For anything that SnapshotName
// does not return its error is ErrMagic.
func ParseSnapshotName(name string) (k key.Key, nonce Nonce, err error) {
	var digits string
	_, scanErr := fmt.Sscanf(name, SnapshotPrefix+"%016x-%32s", (*uint64)(&k), &digits)
	nonce, nonceErr := ParseNonce(digits)
	if scanErr != nil || nonceErr != nil || k > key.Max || SnapshotName(k, nonce) != name {
		return 0, Nonce{}, fmt.Errorf("name %q: %w: not the name of the directory of a snapshot", name, ErrMagic)
	}
	return k, nonce, nil
}

// SnapshotPackName returns the name of the counter-th pack of leaves of a snapshot
// that was made by the run nonce without an epoch.
func SnapshotPackName(nonce Nonce, counter uint32) string {
	return fmt.Sprintf("%s%08x", SnapshotPackPrefix(nonce), counter)
}

// SnapshotPackPrefix returns how the names of all packs start that were stored for
// that snapshot.
func SnapshotPackPrefix(nonce Nonce) string { return SnapshotPrefix + nonce.String() + "/" }

// ParseSnapshotPackName is the inverse of SnapshotPackName. For anything that
// SnapshotPackName does not return its error is ErrMagic.
func ParseSnapshotPackName(name string) (nonce Nonce, counter uint32, err error) {
	rest, ok := strings.CutPrefix(name, SnapshotPrefix)
	digits, number, cut := strings.Cut(rest, "/")
	nonce, nonceErr := ParseNonce(digits)
	_, scanErr := fmt.Sscanf(number, "%08x", &counter)
	if !ok || !cut || scanErr != nil || nonceErr != nil || SnapshotPackName(nonce, counter) != name {
		return Nonce{}, 0, fmt.Errorf("name %q: %w: not the name of a pack of a snapshot", name, ErrMagic)
	}
	return nonce, counter, nil
}

// isPackName reports whether name is PackName's or SnapshotPackName's.
func isPackName(name string) bool {
	if _, _, err := ParsePackName(name); err == nil {
		return true
	}
	_, _, err := ParseSnapshotPackName(name)
	return err == nil
}
