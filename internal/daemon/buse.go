package daemon

import (
	"context"
	"strconv"

	"bs3/internal/config"
	"bs3/internal/device/buse"
)

// buseTransport has nothing to remove: the module takes a device away when its
// daemon dies.
func buseTransport() *transport {
	return &transport{
		name:      config.TransportBUSE,
		why:       "the module BUSE is loaded",
		rare:      true,
		available: func(context.Context, config.Config) error { return buse.Available() },
		own: func(c config.Config, device string) (bool, error) {
			used := c.Transport == config.TransportBUSE || c.Transport == config.TransportAuto
			return used && device == "buse"+strconv.Itoa(c.Major), nil
		},
		serve: func(ctx context.Context, s service) error {
			o := buseOptions(s.config)
			o.Log, o.Ready = s.log, func(path string) { s.ready(Transport{Device: path}) }
			return buse.New(s.volume.Volume, o).Run(ctx)
		},
	}
}

func buseOptions(c config.Config) buse.Options {
	return buse.Options{
		Major: c.Major, Threads: c.Threads, CPUsPerNode: c.CPUsPerNode, QueueDepth: c.QueueDepth, Scheduler: c.Scheduler,
		WriteBuffer: int64(c.Write.BufSize) * config.MB, ReadBuffer: int64(c.Read.BufSize) * config.MB,
		ChunkSize: int64(c.Write.ChunkSize) * config.MB, CollisionArea: int64(c.Write.CollisionSize) * config.MB,
	}
}
