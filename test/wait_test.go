package test

import (
	"context"
	"flag"
	"time"
)

// No wait in these tests has a time limit of its own, for nobody knows how slow
// a loaded machine is. A wait ends when what it waits for has happened, when
// the process that should bring it about has died, or with patience.

// patience is done when nearly all of the time that go test -timeout allows has
// passed: what hangs then is named, and its mounts and devices are removed.
var patience = context.Background()

// cleanUpTime is how much of -timeout is left at that moment.
const cleanUpTime = time.Minute

// setPatience derives patience from -timeout, whose clock starts when the tests do.
func setPatience() context.CancelFunc {
	timeout := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration)
	if timeout == 0 { // none
		return func() {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(timeout-cleanUpTime, timeout/2))
	patience = ctx //nolint:fatcontext // set once, before the tests
	return cancel
}

// happens waits until c is closed. It reports whether that was before the end
// of patience.
func happens(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-patience.Done():
		return false
	}
}

// waitFor asks until cond holds, which p must bring about.
func (p *process) waitFor(what string, cond func() bool) {
	p.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-p.ended:
			if !cond() {
				p.t.Fatalf("waited for %s, but %s has ended (%v)", what, p.name, p.cmd.ProcessState)
			}
			return
		case <-patience.Done():
			p.t.Fatalf("waited until the end of -timeout for %s", what)
		}
	}
}
