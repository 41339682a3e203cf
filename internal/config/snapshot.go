package config

import (
	"errors"
	"strconv"
)

// ForSnapshot returns c for a daemon that serves a snapshot of the volume beside the
// one that serves the volume itself with c. So it has nothing that the other one has:
// the NBD server alone shows it, at listen, or, if that is empty, at the volume's
// socket with a dot and the name behind its path. Errors: *Error.
func (c Config) ForSnapshot(name, listen string) (Config, error) {
	switch {
	case c.Null:
		return c, errors.New("null = true: there is no volume that could have snapshots")
	case name == "":
		return c, refuseFlag("--snapshot", name, "must be the name of a snapshot")
	}
	network, address, err := c.NBD.Address()
	if err != nil {
		return c, c.Refuse("nbd.listen", "%v", err) // Validate does so
	}
	own := c.NBD.Listen
	switch {
	case listen != "":
		c.NBD.Listen = listen
	case network != "unix":
		return c, refuseFlag("--listen", "", "must be set for --snapshot, because nbd.listen is the TCP address of the volume itself")
	default:
		c.NBD.Listen = "unix:" + address + "." + name
	}
	if _, _, err := c.NBD.Address(); err != nil {
		return c, refuseFlag("--listen", c.NBD.Listen, err.Error())
	}
	if c.NBD.Listen == own {
		return c, refuseFlag("--listen", listen, "must not be nbd.listen, the address of the volume itself")
	}
	c.Snapshot, c.Transport, c.NBD.Device, c.Profiler = name, TransportNBD, "", false
	c.Name += "@" + name
	return c, nil
}

// refuseFlag returns the *Error of a rule for a flag of the command line.
func refuseFlag(flag, value, rule string) error {
	return &Error{Problems: []Problem{{Key: flag, Value: strconv.Quote(value), Rule: rule}}}
}
