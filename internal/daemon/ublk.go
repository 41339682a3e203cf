package daemon

import (
	"context"
	"errors"
	"hash/fnv"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/rs/zerolog"

	"bs3/internal/config"
	"bs3/internal/device/ublk"
)

func ublkTransport() *transport {
	return &transport{
		name:      config.TransportUblk,
		why:       "the ublk driver can be used",
		available: func(context.Context, config.Config) error { return ublk.Available() },
		own:       ublkOwn(ublk.Waits),
		removeLeft: func(ctx context.Context, v *served, log zerolog.Logger) error {
			return ublk.RemoveLeft(ctx, ublkIdentity(v), log)
		},
		vacant: func(ctx context.Context, c config.Config, v *served, _ zerolog.Logger) error {
			err := ublk.Vacant(ctx, c.Ublk.ID, ublkIdentity(v))
			if errors.Is(err, ublk.ErrInUse) {
				return c.Refuse("ublk.id", "must be a free number, or that of the volume's own device: %v", err)
			}
			return err
		},
		serve: func(ctx context.Context, s service) error {
			v, c := s.volume, s.config
			o := ublk.Options{
				ID: c.Ublk.ID, Identity: ublkIdentity(v), Recover: v.whole,
				Queues: c.Threads, QueueDepth: c.QueueDepth, Log: s.log,
				Attached: func(path string) {
					setScheduler(path, c.Scheduler, s.log)
					s.ready(Transport{Device: path})
				},
			}
			if v.state != "" {
				o.Marker = filepath.Join(v.state, "ublk-takeover")
			}
			return ublk.New(v.Volume, o).Run(ctx)
		},
	}
}

// ublkOwn is own of the transport. The device of a dead daemon may be any that
// waits for a server (as ublk.Waits reports); whatever it is, it must not be
// waited for.
func ublkOwn(waits func(device string) (bool, error)) func(config.Config, string) (bool, error) {
	return func(c config.Config, device string) (bool, error) {
		if device == "ublkb"+strconv.Itoa(c.Ublk.ID) {
			return true, nil
		}
		waiting, err := waits(device)
		if errors.Is(err, ublk.ErrNoDriver) || errors.Is(err, fs.ErrPermission) {
			return false, nil // it cannot have had a server of ours
		}
		return waiting, err
	}
}

// ublkIdentity is the volume's id as a number that is not 0.
func ublkIdentity(v *served) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(v.id)) // never fails (hash.Hash)
	return h.Sum64() | 1
}
