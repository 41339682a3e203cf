package cli

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/systemd"
)

// health is how the daemon is doing, as the service manager is told. It
// implements systemd.Service.
type health struct {
	notifier *systemd.Notifier

	mu     sync.Mutex
	doing  string      // for people
	store  *store      // nil: there is none, or not yet
	engine *bs3.Engine // nil: there is none, or not yet
}

// newHealth tells the service manager, if there is one, how the daemon is
// doing, until end is called, with how it has ended; and that it stops, when
// ctx ends.
func newHealth(ctx context.Context, log zerolog.Logger) (h *health, end func(error)) {
	h = &health{notifier: systemd.New(log), doing: "starting"}
	always := context.WithoutCancel(ctx)
	watching, unwatch := context.WithCancel(always)
	telling, silence := context.WithCancel(always)
	var watcher, teller sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-ctx.Done():
			h.stopping()
		case <-watching.Done():
		}
	})
	teller.Go(func() { h.notifier.Run(telling, h) })
	return h, func(err error) {
		unwatch()
		watcher.Wait()
		h.set(func() {
			h.store, h.engine, h.doing = nil, nil, "stopped"
			if err != nil {
				h.doing = "failed: " + err.Error()
			}
		})
		silence() // when that is said
		teller.Wait()
	}
}

// set changes what is known.
func (h *health) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// opening says that a volume is about to be opened in s.
func (h *health) opening(s *store) {
	h.set(func() { h.store, h.doing = s, "opening the volume in "+s.where })
}

// progress says how far that is.
func (h *health) progress(p bs3.OpenProgress) {
	text := p.Stage
	switch {
	case p.Total > 0:
		text += fmt.Sprintf(", %d of %d", p.Done, p.Total)
	case p.Done > 0:
		text += fmt.Sprintf(", %d objects", p.Done)
	}
	h.set(func() { h.doing = "opening the volume in " + h.store.where + ": " + text })
}

// opened says that it is open.
func (h *health) opened(e *bs3.Engine) { h.set(func() { h.engine = e }) }

// serving says that users find the volume at s.
func (h *health) serving(v *volume, s shown) {
	where := s.device
	if where == "" && s.nbd != nil {
		where = uri(s.nbd)
	}
	g := v.Geometry()
	h.set(func() {
		h.doing = fmt.Sprintf("serving %s, %s", where, size(g.Size))
		if h.engine != nil {
			h.doing += ", " + h.engine.Mode()
		}
	})
	h.notifier.Ready()
}

// stopping says that no more is served, and what is left goes to the store.
func (h *health) stopping() {
	h.set(func() { h.doing = "stopping" })
	h.notifier.Stopping()
}

// Status implements systemd.Service.
func (h *health) Status() string {
	h.mu.Lock()
	text, store, engine := h.doing, h.store, h.engine
	h.mu.Unlock()
	if engine != nil {
		switch s := engine.Status(); {
		case s.Failed != "":
			text += "; " + s.Failed
		case s.ChunksInMemory > 0:
			text += fmt.Sprintf("; %d objects are not in the store yet", s.ChunksInMemory)
		}
	}
	if store == nil {
		return text
	}
	if since, err, waiting := store.waiting(); waiting {
		text += fmt.Sprintf("; the store does not answer as it should since %s: %v", since.Format(time.DateTime), err)
	}
	return text
}

// Probe implements systemd.Service. It fails, or does not return, if the
// volume does not move; what waits for the store, moves.
func (h *health) Probe(ctx context.Context) error {
	h.mu.Lock()
	engine := h.engine
	h.mu.Unlock()
	if engine == nil {
		return nil
	}
	return engine.Probe(ctx)
}
