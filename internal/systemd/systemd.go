// Package systemd tells the service manager how the daemon is doing, by the
// protocol of sd_notify(3). Started by something else than a service manager,
// it says nothing to nobody.
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
	// lookEvery is how often a service is asked how it is doing.
	lookEvery = 2 * time.Second
	// extendBy is how much longer a start or a stop may take than until the next
	// message. It only matters where the unit sets a time-out, as ours does for
	// the stop. A machine that is short of everything must not miss it.
	extendBy = 2 * time.Minute
)

// Service is what is asked, from one goroutine, every now and then.
type Service interface {
	// Status is the line that `systemctl status` shows.
	Status() string
	// Probe returns nil once the service has shown that it moves. It may block for
	// as long as it does not. What only waits for others, moves.
	Probe(ctx context.Context) error
}

// Notifier speaks to the service manager. Its methods may be called from any
// goroutine, Run once.
type Notifier struct {
	log      zerolog.Logger
	send     func(state string) error // nil: there is no manager
	watchdog time.Duration            // longest time between two signs of life; 0 = none are expected

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

// New finds out by the environment whether there is a service manager, and
// what it wants to hear. One that can not be spoken to is logged; no device
// should be missing because of that.
func New(log zerolog.Logger) *Notifier {
	// Whoever does not listen is told again and again; the log is not.
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
		n.log.Warn().Err(err).Msg("the service manager's watchdog is not understood")
	}
	return n
}

// Ready says that the service is there.
func (n *Notifier) Ready() { n.enter(serving, daemon.SdNotifyReady) }

// Stopping says that the service is about to end.
func (n *Notifier) Stopping() { n.enter(stopping, daemon.SdNotifyStopping) }

func (n *Notifier) enter(p phase, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p <= n.phase { // it stops before it was ready, and then is
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

// Run keeps the manager informed until ctx ends: of the status, whenever that
// changes, and at the end; that starting and stopping take their time; and that
// the service moves, as long as it does.
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
				n.log.Error().Err(err).Msg("the service does not move; the watchdog is not told otherwise")
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
