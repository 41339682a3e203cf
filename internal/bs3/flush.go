package bs3

import (
	"context"
	"fmt"
	"time"

	"bs3/internal/bs3/key"
)

// Flush implements device.Volume. In durable mode it returns when the durable
// key covers everything that was acknowledged before it; in the mode of the
// local log when that has it; in barrier mode at once, for the order is the
// log's anyway.
func (e *Engine) Flush(ctx context.Context) error {
	if err := e.stopped(); err != nil {
		return err
	}
	var err error
	switch {
	case e.opts.Durable:
		err = e.flushDurably(ctx)
	case e.opts.CachePath != "":
		err = e.flushToLog(ctx)
	}
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// flushDurably returns when everything that was acknowledged before the call is
// in the store. Flushes share puts.
func (e *Engine) flushDurably(ctx context.Context) error {
	e.mu.Lock()
	last := e.keys.Next() - 1 // the open chunk's, if there is one
	e.sealForFlush()
	e.mu.Unlock()
	return e.waitDurable(ctx, last)
}

// A flush that finds no other under way is sent at once. Those that come while
// one is are gathered for a moment and sent beside it, so that many jobs share
// a put and none waits for the one before: gatherMost, but no more than
// gatherShare of what a put takes, and mostFlushes at a time.
const (
	gatherMost  = time.Millisecond
	gatherShare = 0.04
	mostFlushes = 4
)

// gathering is the state of flushes under way. The chunk lock covers it.
type gathering struct {
	underWay int           // chunks sealed by a flush that are not stored yet
	put      time.Duration // what a put takes, on average
}

// observe notes how long a put took.
func (g *gathering) observe(d time.Duration) {
	if g.put == 0 {
		g.put = d
	}
	g.put += (d - g.put) / 8
}

// sealForFlush sees to it that the open chunk, if there is one, is sealed soon.
// Under the chunk lock.
func (e *Engine) sealForFlush() {
	c := e.cur
	switch {
	case c == nil || c.gather != nil:
	case e.flushes.underWay == 0:
		e.sealFlushed()
	default:
		c.gather = time.AfterFunc(min(gatherMost, time.Duration(gatherShare*float64(e.flushes.put))), func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			c.ripe = true
			e.sealRipe()
		})
	}
}

// sealRipe seals an open chunk that has gathered flushes for long enough, if
// not too many are under way. Under the chunk lock.
func (e *Engine) sealRipe() {
	if e.cur != nil && e.cur.ripe && e.flushes.underWay < mostFlushes {
		e.sealFlushed()
	}
}

func (e *Engine) sealFlushed() {
	e.cur.flushed = true
	e.flushes.underWay++
	e.seal()
}

// flushToStore seals the open chunk and waits until all that was written
// before the call is in the store.
func (e *Engine) flushToStore(ctx context.Context) error {
	e.mu.Lock()
	last := e.sealThrough()
	e.mu.Unlock()
	return e.waitDurable(ctx, last)
}

// sealThrough seals the open chunk and gives the last key of the log. Under
// the chunk lock.
func (e *Engine) sealThrough() key.Key {
	e.seal()
	return e.keys.Next() - 1
}
