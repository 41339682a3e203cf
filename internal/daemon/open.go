package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/gc"
	"bs3/internal/config"
	"bs3/internal/control"
	"bs3/internal/device"
	"bs3/internal/null"
	"bs3/internal/stores"
)

// served is an open volume of either kind.
type served struct {
	device.Volume
	id       string                                    // which volume it is
	whole    bool                                      // it has all that its last daemon acknowledged
	state    string                                    // directory that outlives the daemon; empty = none
	failed   <-chan struct{}                           // closed when it no longer serves; nil if it always does
	calls    control.Calls                             // what it answers on the control socket; nil = it has none
	collect  func(context.Context)                     // collects garbage, and logs how it went
	close    func(context.Context) error               // also returns why the volume failed
	shown    func(Transport)                           // is told when users can reach it; nil = nobody asks
	announce func(event *zerolog.Event) *zerolog.Event // adds what is served to the line of the log that says so
}

// openVolume opens what c describes, to be shown by t.
func openVolume(ctx context.Context, c config.Config, h *health, known table, t *transport, log zerolog.Logger) (*served, error) {
	if c.Null {
		return openNull(c, log), nil
	}
	if c.Snapshot != "" {
		return openSnapshot(ctx, c, h, log)
	}
	// The volume record names the state directory, in full.
	state, err := filepath.Abs(c.State.Path)
	if err != nil {
		return nil, fmt.Errorf("state.path %s: %w", c.State.Path, err)
	}
	cache := c.Cache.Path
	if cache != "" {
		if cache, err = filepath.Abs(cache); err != nil {
			return nil, fmt.Errorf("cache.path %s: %w", c.Cache.Path, err)
		}
	}
	host, err := bs3.LocalHost()
	if err != nil {
		return nil, err
	}
	store, err := stores.OpenToServe(ctx, c, log)
	if err != nil {
		return nil, err
	}
	h.opening(store)
	engine, err := bs3.Open(ctx, bs3.Options{
		Store: store,
		Log:   log,
		Host:  host,

		Size:      c.Size * config.GB,
		BlockSize: c.BlockSize,
		ChunkSize: c.Write.ChunkSize * config.MB,
		IOMin:     c.IOMin,
		IOOpt:     c.IOOpt,

		Durable:   c.Write.Durable,
		Linger:    c.Write.LingerTime(),
		Memory:    int64(c.Write.Memory) * config.MB,
		Uploaders: store.Uploaders, Downloaders: store.Downloaders,
		ReadCache: int64(c.Read.CacheSize) * config.MB,
		Readahead: int64(c.Read.Readahead) * config.MB, WholeObjects: c.Read.WholeObjects == config.WholeObjectsAuto,
		StatePath: state,

		CachePath:      cache,
		LogSize:        logSize(c),
		DiskCache:      int64(c.Cache.Size)*config.GB - logSize(c),
		ForgetLocalLog: c.ForgetLocalLog,

		CheckpointInterval: c.Checkpoint.IntervalTime(),
		SkipCheckpoint:     c.SkipCheckpoint,
		GC:                 gcOptions(c),

		Takeover:        c.Takeover == config.TakeoverAuto,
		UnsafeNoFencing: store.UnsafeNoFencing,
		Progress:        h.progress,
		Identified: func(ctx context.Context, id string) error {
			if t.vacant == nil {
				return nil
			}
			return t.vacant(ctx, c, &served{id: id, state: state}, log)
		},
		NotWhole: func(ctx context.Context, id string) error {
			return known.removeLeft(ctx, &served{id: id, state: state}, nil, log)
		},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the volume in %s: %w", store.Where, err), store.Close())
	}
	h.opened(engine)
	d := &controls{engine: engine, store: store, noCheckpoints: c.SkipCheckpoint, log: log}
	return &served{
		Volume:  engine,
		id:      engine.UUID().String(),
		whole:   engine.Whole(),
		state:   state,
		failed:  engine.Done(),
		calls:   d.calls(),
		shown:   func(t Transport) { d.shown.Store(&t) },
		collect: d.collect,
		close: func(ctx context.Context) error {
			err := engine.Close(ctx)
			return errors.Join(err, store.Close())
		},
		announce: func(event *zerolog.Event) *zerolog.Event {
			return event.Str("store", store.Where).Stringer("volume", engine.UUID()).Uint64("epoch", engine.Epoch()).
				Str("mode", engine.Mode()).Int64("gb", c.Size)
		},
	}, nil
}

// logSize is the size of the local log in bytes. What chunk memory holds fits
// even if each block of 4 KiB was flushed alone; smaller blocks that are flushed
// one by one may find the log full, and wait for the store.
func logSize(c config.Config) int64 {
	if c.Write.Durable || c.Cache.Path == "" {
		return 0
	}
	return min(4*int64(c.Write.Memory)*config.MB, int64(c.Cache.Size)*config.GB/2)
}

func gcOptions(c config.Config) gc.Options {
	o := gc.Options{
		Wait: c.GC.WaitTime(), Step: c.GC.Step, IdleTimeout: c.GC.IdleTime(),
		LiveData: c.GC.LiveData, MaxGarbage: c.GC.MaxGarbage, MaxMoves: c.GC.MaxMoves,
		Reserve: config.MB,
	}
	if c.SkipCheckpoint {
		// Only checkpoints make objects deletable: moving blocks would add garbage.
		o.MaxGarbage, o.MaxMoves, o.Reserve = 0, 0, 0
	}
	return o
}

// openSnapshot opens the snapshot that c names. It uses none of the files and sockets
// by which c describes the daemon of the volume, which may run beside this one.
func openSnapshot(ctx context.Context, c config.Config, h *health, log zerolog.Logger) (*served, error) {
	store, err := stores.OpenToRead(ctx, c, log)
	if err != nil {
		return nil, err
	}
	h.opening(store)
	v, err := bs3.OpenSnapshot(ctx, bs3.Options{
		Store: store,
		Log:   log,

		IOMin: c.IOMin,
		IOOpt: c.IOOpt,

		Downloaders: store.Downloaders,
		ReadCache:   int64(c.Read.CacheSize) * config.MB,
		Readahead:   int64(c.Read.Readahead) * config.MB, WholeObjects: c.Read.WholeObjects == config.WholeObjectsAuto,

		Progress: h.progress,
	}, c.Snapshot)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a snapshot of the volume in %s: %w", store.Where, err), store.Close())
	}
	s := v.Snapshot()
	return &served{
		Volume:  v,
		id:      v.UUID().String() + "@" + s.Directory, // no device of the volume itself is this one's
		collect: func(context.Context) { log.Warn().Msg("a snapshot has no garbage to collect") },
		close:   func(context.Context) error { return errors.Join(v.Close(), store.Close()) },
		announce: func(event *zerolog.Event) *zerolog.Event {
			return event.Str("store", store.Where).Stringer("volume", v.UUID()).
				Str("snapshot", s.Name).Time("of", s.Created).Int64("gb", v.Geometry().Size/config.GB)
		},
	}, nil
}

func openNull(c config.Config, log zerolog.Logger) *served {
	return &served{
		Volume: null.New(device.Geometry{
			Size: c.Size * config.GB, BlockSize: c.BlockSize, IOMin: c.IOMin, IOOpt: c.IOOpt,
		}),
		id:      "null-" + c.Name,
		collect: func(context.Context) { log.Warn().Msg("null = true: there is no garbage to collect") },
		close:   func(context.Context) error { return nil },
		announce: func(event *zerolog.Event) *zerolog.Event {
			return event.Str("store", "none: writes are dropped").Int64("gb", c.Size)
		},
	}
}
