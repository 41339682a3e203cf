package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	"bs3/internal/config"
	"bs3/internal/device/blockdev"
)

// Transport describes how users reach a volume. All fields are empty until the
// volume can be reached. Its JSON form is a contract.
type Transport struct {
	Name   string `json:"name"`   // as in the configuration, but never auto
	Device string `json:"device"` // path of the block device, if there is one
	NBD    string `json:"nbd"`    // URI of the NBD server, if there is one
}

// transport is one way to show a volume to Linux.
type transport struct {
	name string // as in the configuration; of those that share one, fits takes one
	why  string // it is taken for TransportAuto
	rare bool   // most kernels lack it, so the log does not say why it is missing

	// fits reports whether c asks for it, if it asks for name; nil = always.
	fits func(c config.Config) bool
	// available returns nil if this machine can serve c in this way; a
	// *config.Error if it can, but not as c wants it; or why it cannot. It touches
	// nothing.
	available func(ctx context.Context, c config.Config) error
	// vacant returns nil if the device that c asks for does not exist, or is one of
	// v that serve takes over or removes. Otherwise it returns why serve would fail:
	// a *config.Error unless that passes. It is asked when v is known and not yet
	// open, because every open leaves a fence in the store for ever, and a service
	// manager tries again every second. nil = there is nothing to ask.
	vacant func(ctx context.Context, c config.Config, v *served, log zerolog.Logger) error
	// own reports whether device, as sysfs calls it, may be one by which an
	// earlier daemon showed the volume of c; nil = it has none.
	own func(c config.Config, device string) (bool, error)
	// removeLeft removes the devices of v that outlived the daemons which showed
	// them; nil = none do.
	removeLeft func(ctx context.Context, v *served, log zerolog.Logger) error
	// serve shows the volume of s until ctx ends, and takes it away then. What
	// clients have sent is finished when it returns, or when it calls s.unused.
	serve func(ctx context.Context, s service) error
}

// service is what a transport is given to serve.
type service struct {
	volume *served
	config config.Config
	log    zerolog.Logger
	ready  func(Transport) // must be called when users can reach the volume; fills in Name
	// unused may be called once, when nothing uses the volume any more and nothing
	// will. Then the volume is closed while serve goes on, perhaps for good.
	unused func()
}

// table is a list of transports, those that TransportAuto prefers first.
type table []*transport

// transports is the table of all transports. A new one is an entry here, beside
// its own package and its keys in the configuration.
func transports() table {
	return table{buseTransport(), ublkTransport(), kernelNBDTransport(), nbdTransport()}
}

// choose returns the transport that c asks for and logs why; of several, the
// first that is available. Nothing was touched if it fails: because the machine
// lacks what is asked for, or with a *config.Error.
func (ts table) choose(ctx context.Context, c config.Config, log zerolog.Logger) (*transport, error) {
	auto := c.Transport == config.TransportAuto
	var chosen *transport
	var lacks error
	var why []string
	for _, t := range ts {
		if !auto && t.name != c.Transport || t.fits != nil && !t.fits(c) {
			continue
		}
		switch {
		case chosen == nil:
		case chosen.rare:
			why = append(why, "no "+chosen.name)
		default:
			why = append(why, fmt.Sprintf("no %s: %v", chosen.name, lacks))
		}
		chosen, lacks = t, t.available(ctx, c)
		if refused := (*config.Error)(nil); lacks == nil || errors.As(lacks, &refused) {
			break
		}
	}
	if chosen == nil {
		return nil, fmt.Errorf("transport = %q: there is no such transport", c.Transport) // config.Validate refuses it
	}
	reason := fmt.Sprintf("transport = %q", c.Transport)
	if auto {
		reason = "auto: " + strings.Join(append(why, chosen.why), "; ")
	}
	if c.Snapshot != "" {
		reason = "a snapshot is served by NBD alone"
	}
	if lacks != nil {
		return nil, fmt.Errorf("transport %s (%s): %w", chosen.name, reason, lacks)
	}
	if err := c.CheckTransport(chosen.name); err != nil {
		return nil, err
	}
	event := log.Info().Str("transport", chosen.name).Str("why", reason)
	if c.NBD.Device != "" && chosen.name != config.TransportNBD {
		event = event.Str("unused", "nbd.device")
	}
	event.Msg("transport chosen")
	return chosen, nil
}

// own reports whether device, as sysfs calls it, may be the one of the volume
// that c describes.
func (ts table) own(c config.Config, device string) (bool, error) {
	for _, t := range ts {
		if t.own == nil {
			continue
		}
		if own, err := t.own(c, device); own || err != nil {
			return own, err
		}
	}
	return false, nil
}

// removeLeft removes the block devices that killed daemons have left of v, but
// for those of the transport keep, which looks after its own. They must not go
// on after anything else has served the volume, nor if the volume is not whole:
// then all are removed while it is opened, and keep is nil.
func (ts table) removeLeft(ctx context.Context, v *served, keep *transport, log zerolog.Logger) error {
	var errs []error
	for _, t := range ts {
		if t != keep && t.removeLeft != nil {
			errs = append(errs, t.removeLeft(ctx, v, log))
		}
	}
	return errors.Join(errs...)
}

// setScheduler does what the key scheduler says, for devices whose driver does
// not ask for it.
func setScheduler(path string, on bool, log zerolog.Logger) {
	if err := blockdev.SetScheduler(path, on); err != nil {
		log.Warn().Err(err).Str("device", path).Msg("the I/O scheduler stays as it is")
	}
}
