package daemon

import (
	"context"
	"errors"
	"strconv"

	"bs3/internal/config"
	"bs3/internal/device/buse"
)

// buseTransport has nothing to remove: what a dead daemon has left can only be
// removed by hand.
func buseTransport() *transport {
	return &transport{
		name: config.TransportBUSE,
		why:  "the module BUSE is loaded",
		rare: true,
		available: func(_ context.Context, c config.Config) error {
			return refuseBUSE(c, buse.Check(buseOptions(c), memoryBeside(c)))
		},
		own: func(c config.Config, device string) (bool, error) {
			used := c.Transport == config.TransportBUSE || c.Transport == config.TransportAuto
			return used && device == "buse"+strconv.Itoa(c.Major), nil
		},
		serve: func(ctx context.Context, s service) error {
			o := buseOptions(s.config)
			o.Log, o.Ready = s.log, func(path string) { s.ready(Transport{Device: path}) }
			o.Unused = s.unused
			return refuseBUSE(s.config, buse.New(s.volume.Volume, o).Run(ctx))
		},
	}
}

// memoryBeside returns the bytes of memory that a daemon takes when it opens the
// volume of c.
func memoryBeside(c config.Config) int64 {
	if c.Null {
		return 0
	}
	return int64(c.Write.Memory) * config.MB
}

// refuseBUSE returns err, of package buse, as a refusal of c if that is what it is.
func refuseBUSE(c config.Config, err error) error {
	switch {
	case errors.Is(err, buse.ErrExists):
		return c.Refuse("major", "must be the number of no existing device: %v", err)
	case errors.Is(err, buse.ErrMemory):
		return c.Refuse("write.shared_buffer_size",
			"must be smaller, or read.shared_buffer_size (%d), threads (%d; 0 = one for each CPU) or write.memory (%d): %v",
			c.Read.BufSize, c.Threads, c.Write.Memory, err)
	}
	return err
}

func buseOptions(c config.Config) buse.Options {
	return buse.Options{
		Major: c.Major, Threads: c.Threads, CPUsPerNode: c.CPUsPerNode, QueueDepth: c.QueueDepth, Scheduler: c.Scheduler,
		WriteBuffer: int64(c.Write.BufSize) * config.MB, ReadBuffer: int64(c.Read.BufSize) * config.MB,
		ChunkSize: int64(c.Write.ChunkSize) * config.MB, CollisionArea: int64(c.Write.CollisionSize) * config.MB,
	}
}
