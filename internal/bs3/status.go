package bs3

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

	ChunksInMemory int `json:"chunks_in_memory"` // above the durable key
	FreeSlots      int `json:"free_slots"`       // of the pool
	Slots          int `json:"slots"`
	WritersWaiting int `json:"writers_waiting"` // for chunk memory

	LocalLog  *LogStatus       `json:"local_log,omitempty"`  // nil in a mode without one
	DiskCache *DiskCacheStatus `json:"disk_cache,omitempty"` // nil without one

	Objects     int   `json:"objects"`      // of the log
	StoredBytes int64 `json:"stored_bytes"` // their data blocks
	LiveBytes   int64 `json:"live_bytes"`   // of them, what the map needs
	LogObjects  int   `json:"log_objects"`  // since the last checkpoint
	LogBytes    int64 `json:"log_bytes"`

	// Since the volume was opened:
	WrittenBytes int64    `json:"written_bytes"` // data that was written, also by the replay of chunk memory
	Collected    GCReport `json:"collected"`     // by all garbage collections
}

// Mode is what a flush of the volume means: durable, local log or barrier. A
// local log that has failed leaves durable.
func (e *Engine) Mode() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mode()
}

func (e *Engine) mode() string {
	switch {
	case e.opts.Durable:
		return "durable"
	case e.opts.CachePath == "":
		return "barrier"
	case e.logging.log == nil:
		return "durable"
	}
	return "local log"
}

// Status tells how the volume is doing. It sends no request.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	objects, live, total := e.maps.Totals()
	s := Status{
		UUID: e.uuid.String(), Epoch: e.epoch, Mode: e.mode(), Size: e.opts.Size, BlockSize: e.blockSize,
		NextKey: uint64(e.keys.Next()), DurableKey: uint64(e.durable),
		ChunksInMemory: int(e.keys.Next() - e.durable - 1), FreeSlots: len(e.free), Slots: e.slots(), WritersWaiting: len(e.writers.line),
		Objects: objects, StoredBytes: int64(total) * int64(e.blockSize), LiveBytes: int64(live) * int64(e.blockSize),
		LogObjects: e.sinceCheckpoint.objects, LogBytes: e.sinceCheckpoint.bytes,
		LocalLog:     e.logStatus(),
		DiskCache:    e.diskCacheStatus(),
		WrittenBytes: e.written, Collected: e.collected,
	}
	if e.closed != nil {
		s.Failed = e.closed.Error()
	}
	return s
}
