// Package systemd tells the service manager how the daemon is doing, by the
// protocol of sd_notify(3). In a daemon that no service manager started it does
// nothing.
package systemd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

const (
	// lookEvery is the time between two looks at the service.
	lookEvery = 2 * time.Second
	// extendBy is how much longer a start or a stop may take after the next
	// message is due. It only matters where the unit sets a time-out, as ours does
	// for the stop. It is long enough for a machine that is short of everything.
	extendBy = 2 * time.Minute
)

// Service is what a Notifier reports on. Its methods are called from one
// goroutine.
type Service interface {
	// Status returns the line that `systemctl status` shows.
	Status() string
	// Probe returns nil once the service has shown that it is alive. It may block
	// for as long as the service is stuck. Waiting for others, such as a store, is
	// not being stuck.
	Probe(ctx context.Context) error
}

// Notifier speaks to the service manager. It is safe for concurrent use; Run may
// be called once.
type Notifier struct {
	log      zerolog.Logger
	send     func(state string) error // nil = there is no manager
	watchdog time.Duration            // longest time between two signs of life; 0 = the manager expects none

	mu    sync.Mutex
	phase phase
}

// phase is where the daemon is in its life.
type phase int

const (
	starting phase = iota
	serving
	stopping
)

// New learns from the environment whether there is a service manager, and what
// it wants to hear. If the manager cannot be reached, that is only logged: it is
// no reason to go without the device.
func New(log zerolog.Logger) *Notifier {
	// A manager that does not listen is told again and again; the log is not.
	n := &Notifier{log: log.Sample(&zerolog.BurstSampler{Burst: 2, Period: time.Minute})}
	listens, err := daemon.SdNotify(false, "STATUS=starting")
	if err != nil {
		n.log.Warn().Err(err).Msg("the service manager does not listen")
	} else if !listens {
		return n
	}
	n.send = func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}
	if n.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		n.log.Warn().Err(err).Msg("cannot understand the service manager's watchdog time")
	}
	return n
}

// Ready tells the manager that the service is ready.
func (n *Notifier) Ready() { n.enter(serving, daemon.SdNotifyReady) }

// Stopping tells the manager that the service is about to end.
func (n *Notifier) Stopping() { n.enter(stopping, daemon.SdNotifyStopping) }

func (n *Notifier) enter(p phase, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p <= n.phase { // it was stopped before it became ready
		return
	}
	n.phase = p
	n.say(state)
}

func (n *Notifier) say(states ...string) {
	if n.send == nil || len(states) == 0 {
		return
	}
	if err := n.send(strings.Join(states, "\n")); err != nil {
		n.log.Warn().Err(err).Msg("the service manager does not listen")
	}
}

// Run keeps the manager informed until ctx ends: of the status, when it changes
// and at the end; that starting and stopping take time; and, by the watchdog's
// signs of life, that the service is not stuck.
func (n *Notifier) Run(ctx context.Context, s Service) {
	if n.send == nil {
		return
	}
	every := lookEvery
	if n.watchdog > 0 {
		every = min(every, n.watchdog/3)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	status := func() string { return "STATUS=" + strings.ReplaceAll(s.Status(), "\n", " ") }
	for said := ""; ; {
		var states []string
		if now := status(); now != said {
			said = now
			states = append(states, now)
		}
		n.mu.Lock()
		if n.phase != serving {
			states = append(states, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (every+extendBy).Microseconds()))
		}
		n.mu.Unlock()
		n.say(states...)
		if n.watchdog > 0 {
			if err := s.Probe(ctx); err == nil {
				n.say(daemon.SdNotifyWatchdog)
			} else if ctx.Err() == nil {
				n.log.Error().Err(err).Msg("the service is stuck; the watchdog gets no sign of life")
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.say(status())
			return
		}
	}
}
