package bs3

import (
	"context"
	"errors"
)

// OpenProgress says how far an open is. Stages follow each other.
type OpenProgress struct {
	Stage string // what is done now
	Done  int    // of its objects, or writes
	Total int    // of them, if it is known
}

// opening tells who waits for the open how it gets on.
func (e *Engine) opening(stage string, done, total int) {
	if e.opts.Progress != nil {
		e.opts.Progress(OpenProgress{stage, done, total})
	}
}

// errLineStuck: nobody has told the first writer of the line that it may go on.
var errLineStuck = errors.New("a writer waits for chunk memory although some is free")

// Probe returns nil when the volume has shown that it moves: that the chunk
// lock can be had, blocks can be looked up, readers of chunk memory leave, and
// writers do not wait for nothing. It does not return while the chunk lock can
// not be had. How the store is doing does not matter. One probe runs at a time.
func (e *Engine) Probe(ctx context.Context) error {
	e.mu.Lock()
	var waits chan struct{} // the first writer, if it could go on
	if len(e.free) > 0 && len(e.writers.line) > 0 {
		waits = e.writers.line[0]
	}
	stuck := waits != nil && waits == e.probed
	e.probed = waits
	e.mu.Unlock()
	if stuck {
		return errLineStuck
	}
	e.lookAtMemory()
	return e.eras.gone(ctx)
}

// lookAtMemory reads a block as a user would. Close may be under way: it waits
// for who looks, and then nothing is mapped any more.
func (e *Engine) lookAtMemory() {
	v := e.eras.enter()
	defer e.eras.leave(v)
	if e.stopped() == nil {
		e.readMemory(make([]byte, e.blockSize), 0, nil, nil)
	}
}
