package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
)

// Info is what the store says of a volume. Its JSON form is a contract.
type Info struct {
	UUID        layout.UUID `json:"uuid"`
	Format      int         `json:"format"`
	Size        int64       `json:"size"`       // bytes
	BlockSize   uint32      `json:"block_size"` // bytes
	ChunkSize   uint32      `json:"chunk_size"` // bytes
	Created     time.Time   `json:"created"`
	Epoch       uint64      `json:"epoch"`
	Writer      WriterInfo  `json:"writer"`
	Deleted     bool        `json:"deleted"`
	Checkpoints []string    `json:"checkpoints"` // names, oldest first

	Snapshots []SnapshotInfo `json:"snapshots"` // in the order in which they were made

	// Where flushed writes may lie that the store does not have; nil = nowhere.
	LocalLog *layout.LocalLog `json:"local_log,omitempty"`

	// As of the newest checkpoint, zero without one:
	Objects     int   `json:"objects"`      // of the log
	StoredBytes int64 `json:"stored_bytes"` // data blocks of these objects
	LiveBytes   int64 `json:"live_bytes"`   // of them, what the map still needs
	LiveObjects int   `json:"live_objects"` // that hold some of these
	FullObjects int   `json:"full_objects"` // that would do, were they full
	Pieces      int   `json:"pieces"`       // of the volume that lie in one piece of an object, about

	// What an open would read after it:
	LogObjects int   `json:"log_objects"`
	LogBytes   int64 `json:"log_bytes"` // data blocks
}

// WriterInfo is who holds, or held, the volume.
type WriterInfo struct {
	Host      string    `json:"host"`
	Machine   string    `json:"machine"`
	StatePath string    `json:"state_path"`
	PID       int       `json:"pid"`
	Since     time.Time `json:"since"`
	Released  bool      `json:"released"` // it closed cleanly; otherwise it runs, or died
}

// SnapshotInfo is what the volume record says of a snapshot. Its JSON form is a
// contract.
type SnapshotInfo struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"` // by the clock of who made it, in UTC
	Key     uint64    `json:"key"`     // of the last object of the log that it holds
}

// InfoOf returns what there is to know of s.
func InfoOf(s layout.Snapshot) SnapshotInfo {
	return SnapshotInfo{s.Name, s.Created.UTC(), uint64(s.Key())}
}

// InfoOfAll returns what there is to know of all; it is never nil.
func InfoOfAll(all []layout.Snapshot) []SnapshotInfo {
	infos := make([]SnapshotInfo, len(all))
	for i, s := range all {
		infos[i] = InfoOf(s)
	}
	return infos
}

// Find reads the volume record where there should be one. Errors: ErrNoVolume, those
// of ReadRecord.
func Find(ctx context.Context, store objproxy.Store) (*layout.Volume, error) {
	v, _, err := ReadRecord(ctx, store)
	if errors.Is(err, objproxy.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrNoVolume, err)
	}
	return v, err
}

// ReadInfo reads what the store says of a volume. It changes nothing and may be
// used beside a writer; the figures are then of about the same time. Errors:
// ErrNoVolume, ErrRefused (not readable), ErrMoving, those of the store.
func ReadInfo(ctx context.Context, store objproxy.Store) (*Info, error) {
	for range MostRestarts {
		info, err := tryInfo(ctx, store)
		if !errors.Is(err, ErrMoved) {
			return info, err
		}
	}
	return nil, ErrMoving
}

// tryInfo is ReadInfo; ErrMoved if the writer has replaced what was being read.
func tryInfo(ctx context.Context, store objproxy.Store) (*Info, error) {
	v, err := Find(ctx, store)
	if err != nil {
		return nil, err
	}
	w := v.Writer
	info := &Info{
		UUID: v.UUID, Format: v.Format, Size: v.Size, BlockSize: v.BlockSize, ChunkSize: v.ChunkSize,
		Created: v.Created, Epoch: v.Epoch, Deleted: v.Deleted, Checkpoints: v.Checkpoints, LocalLog: v.LocalLog,
		Snapshots: InfoOfAll(v.Snapshots),
		Writer:    WriterInfo{w.Hostname, w.Host, w.StatePath, w.PID, w.Since, w.Released},
	}
	p := Position{}
	if n := len(v.Checkpoints); n > 0 {
		c, err := ReadCheckpoint(ctx, store, v.UUID, v.Checkpoints[n-1])
		if errors.Is(err, objproxy.ErrNotFound) {
			if err := unlessPassed(ctx, store, v, 0); err != nil {
				return nil, err
			}
		}
		if err != nil {
			return nil, fmt.Errorf("checkpoint %s: %w", v.Checkpoints[n-1], err)
		}
		for _, o := range c.Objects {
			info.Objects++
			info.StoredBytes += int64(o.Total) * int64(v.BlockSize)
			info.LiveBytes += int64(o.Live) * int64(v.BlockSize)
			if o.Live > 0 {
				info.LiveObjects++
			}
		}
		info.FullObjects = int((info.LiveBytes + int64(v.ChunkSize) - 1) / int64(v.ChunkSize))
		for _, l := range c.Leaves {
			info.Pieces += l.Runs()
		}
		p = After(c.Checkpoint)
	}
	end := p.Next
	err = TailsOf(v, store).Walk(ctx, p, func(k key.Key, o *layout.Object) error {
		end = k + 1
		info.LogObjects++
		info.LogBytes += int64(o.Blocks) * int64(o.BlockSize)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return info, unlessPassed(ctx, store, v, end)
}

// unlessPassed reads the record of v again, where something was not there.
// ErrMoved: it names a checkpoint at or above key k that v does not, so what
// was looked for may have been given back.
func unlessPassed(ctx context.Context, store objproxy.Store, v *layout.Volume, k key.Key) error {
	now, _, err := ReadRecord(ctx, store)
	if err != nil {
		return err
	}
	if Passed(now, v, k) {
		return ErrMoved
	}
	return nil
}
