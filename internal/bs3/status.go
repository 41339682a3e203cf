package bs3

import (
	"time"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/reader"
	"bs3/internal/bs3/writer"
)

// Status is the state of an open volume. Its JSON form is a contract.
type Status struct {
	UUID      string `json:"uuid"`
	Epoch     uint64 `json:"epoch"`
	Mode      string `json:"mode"`       // what a flush means: durable, local log or barrier
	Size      int64  `json:"size"`       // bytes
	BlockSize int    `json:"block_size"` // bytes
	Failed    string `json:"failed,omitempty"`

	NextKey    uint64 `json:"next_key"`
	DurableKey uint64 `json:"durable_key"` // it and all below are in the store

	ChunksInMemory int   `json:"chunks_in_memory"` // above the durable key
	FreeSlots      int   `json:"free_slots"`       // of the pool
	Slots          int   `json:"slots"`
	WritersWaiting int   `json:"writers_waiting"` // for chunk memory
	MapBytes       int64 `json:"map_bytes"`       // memory that the map takes

	LocalLog  *writer.LogStatus  `json:"local_log,omitempty"`  // nil in a mode without one
	DiskCache *reader.DiskStatus `json:"disk_cache,omitempty"` // nil without one

	Objects     int   `json:"objects"`      // of the log
	StoredBytes int64 `json:"stored_bytes"` // their data blocks
	LiveBytes   int64 `json:"live_bytes"`   // of them, what the map needs
	FullObjects int   `json:"full_objects"` // that would hold these, were they full
	LogObjects  int   `json:"log_objects"`  // since the last checkpoint
	LogBytes    int64 `json:"log_bytes"`

	// Snapshots are the names of the snapshots that the daemon knows of, in the order in
	// which they were made. Others make and delete some too: it learns of that when it
	// next reads the volume record.
	Snapshots []string `json:"snapshots"`

	// Spread is how the live blocks were spread over objects when a collection, or the
	// plan of one, looked last; nil if none has.
	Spread *gc.Spread `json:"spread,omitempty"`

	Collection *gc.Progress `json:"collection,omitempty"` // that is under way; nil if none is

	// Undeleted is what the store did not delete although nothing needs it; nil =
	// nothing. It is asked again with the next collection.
	Undeleted *Undeleted `json:"undeleted,omitempty"`

	// Since the volume was opened:
	WrittenBytes int64     `json:"written_bytes"` // data that was written, also by the replay of chunk memory
	WrongAnswers uint64    `json:"wrong_answers"` // of the store to reads: other bytes than were written
	Collected    gc.Report `json:"collected"`     // by all garbage collections
	TidiedBytes  int64     `json:"tidied_bytes"`  // of those moved, to merge and sort objects by time
}

// Undeleted is what the store was asked to delete, and did not.
type Undeleted struct {
	Objects     int       `json:"objects"`     // of the log
	Checkpoints int       `json:"checkpoints"` // and packs of leaves
	Since       time.Time `json:"since"`
	Error       string    `json:"error"` // the store's last answer
}

// undeleted sums up what of the log, and of checkpoints, the store did not delete;
// nil if that is nothing.
func undeleted(objects, checkpoints checkpoint.Undeleted) *Undeleted {
	u := &Undeleted{Objects: objects.Names, Checkpoints: checkpoints.Names}
	for _, some := range []checkpoint.Undeleted{checkpoints, objects} {
		if some.Names == 0 {
			continue
		}
		if u.Since.IsZero() || some.Since.Before(u.Since) {
			u.Since = some.Since
		}
		u.Error = some.Err.Error()
	}
	if u.Error == "" {
		return nil
	}
	return u
}

// Mode returns what a flush of the volume means: durable, local log or barrier.
// A local log that has failed leaves durable.
func (e *Engine) Mode() string { return e.log.Now().Mode }

// Status returns how the volume is doing. It sends no request.
func (e *Engine) Status() Status {
	now, bs := e.log.Now(), int64(e.opts.BlockSize)
	s := Status{
		UUID: e.UUID().String(), Epoch: e.Epoch(), Mode: now.Mode, Size: e.opts.Size, BlockSize: e.opts.BlockSize,
		NextKey: uint64(now.Next), DurableKey: uint64(now.Durable),
		ChunksInMemory: int(now.Next - now.Durable - 1), FreeSlots: now.Free, Slots: e.opts.slots(), WritersWaiting: now.Waiting,
		MapBytes: e.log.View().Bytes(),
		LocalLog: now.LocalLog, DiskCache: e.reader.DiskStatus(),
		Objects: now.Objects, StoredBytes: int64(now.Total) * bs, LiveBytes: int64(now.Growth.Live) * bs,
		LogObjects: now.Growth.Objects, LogBytes: now.Growth.Bytes,
		WrittenBytes: now.Written, WrongAnswers: e.reader.WrongAnswers(), Collected: e.collector.Collected(), TidiedBytes: e.collector.Tidied(),
		Undeleted:  undeleted(e.collector.Undeleted(), e.keeper.Undeleted()),
		Collection: e.collector.Progress(),
	}
	chunk := e.opts.chunkBlocks()
	s.FullObjects = (int(now.Growth.Live) + chunk - 1) / chunk
	snapshots := e.Snapshots()
	s.Snapshots = make([]string, len(snapshots))
	for i, snapshot := range snapshots {
		s.Snapshots[i] = snapshot.Name
	}
	if spread := e.collector.Spread(); !spread.At.IsZero() {
		s.Spread = &spread
	}
	if err := e.life.Err(); err != nil {
		s.Failed = err.Error()
	}
	return s
}
