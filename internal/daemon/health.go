package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/stores"
	"bs3/internal/systemd"
)

// health is how the daemon is doing, as the service manager is told. It
// implements systemd.Service and is safe for concurrent use.
type health struct {
	notifier *systemd.Notifier

	mu     sync.Mutex
	doing  string        // for people
	store  *stores.Store // nil: there is none, or not yet
	engine *bs3.Engine   // nil: there is none, or not yet
}

// newHealth keeps the service manager, if there is one, informed of how the
// daemon is doing and, when ctx ends, that it is stopping. end must be called
// with the error that the daemon ended with; nothing is said after that.
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
		silence() // once that is said
		teller.Wait()
	}
}

// set changes what is known.
func (h *health) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// opening notes that a volume is about to be opened in s.
func (h *health) opening(s *stores.Store) {
	h.set(func() { h.store, h.doing = s, "opening the volume in "+s.Where })
}

// progress notes how far the opening is.
func (h *health) progress(p bs3.OpenProgress) {
	text := p.Stage
	switch {
	case p.Total > 0:
		text += fmt.Sprintf(", %d of %d", p.Done, p.Total)
	case p.Done > 0:
		text += fmt.Sprintf(", %d objects", p.Done)
	}
	h.set(func() { h.doing = "opening the volume in " + h.store.Where + ": " + text })
}

// opened notes that the volume is open.
func (h *health) opened(e *bs3.Engine) { h.set(func() { h.engine = e }) }

// serving notes that users reach the volume, of gb GB, by t.
func (h *health) serving(t Transport, gb int64) {
	where := t.Device
	if where == "" {
		where = t.NBD
	}
	h.set(func() {
		h.doing = fmt.Sprintf("serving %s, %d GB", where, gb)
		if h.engine != nil {
			h.doing += ", " + h.engine.Mode()
		}
	})
	h.notifier.Ready()
}

// stopping notes that nothing is served any more, and what is left goes to the
// store.
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
	if since, err, waiting := store.Waiting(); waiting {
		text += fmt.Sprintf("; the store does not answer as it should since %s: %v", since.Format(time.DateTime), err)
	} else if since, underWay := store.Oldest(); underWay && time.Since(since) >= longWait {
		text += fmt.Sprintf("; the store has not answered a request for %v", time.Since(since).Round(time.Second))
	}
	return text
}

// longWait is how long a request may take before the status says so.
const longWait = 5 * time.Second

// Probe implements systemd.Service. It fails, or does not return, if the
// volume is stuck. Waiting for the store is not being stuck.
func (h *health) Probe(ctx context.Context) error {
	h.mu.Lock()
	engine := h.engine
	h.mu.Unlock()
	if engine == nil {
		return nil
	}
	return engine.Probe(ctx)
}
