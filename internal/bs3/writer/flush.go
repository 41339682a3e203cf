package writer

import (
	"context"
	"fmt"
	"time"
)

// Flush returns, in durable mode, when the durable key covers everything that
// was acknowledged before it; in the mode of the local log when that has it; in
// barrier mode at once, for the order is the log's anyway. Errors:
// device.ErrStopped, that of ctx.
func (l *Log) Flush(ctx context.Context) error {
	err := l.c.Life.Err()
	switch {
	case err != nil:
		return err
	case l.c.Durable:
		err = l.flushDurably(ctx)
	case l.c.LocalLog != "":
		err = l.flushToLog(ctx)
	}
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// FlushToStore returns, in every mode, when all that was written before the call
// is in the store. Errors: as Flush.
func (l *Log) FlushToStore(ctx context.Context) error {
	l.mu.Lock()
	last := l.sealThrough()
	l.mu.Unlock()
	return l.WaitDurable(ctx, last)
}

// flushDurably returns when everything that was acknowledged before the call is
// in the store. Flushes share puts.
func (l *Log) flushDurably(ctx context.Context) error {
	l.mu.Lock()
	last := l.mu.keys.Next() - 1 // the open chunk's, if there is one
	l.sealForFlush()
	l.mu.Unlock()
	return l.WaitDurable(ctx, last)
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
func (l *Log) sealForFlush() {
	c, g := l.mu.cur, &l.mu.flushes
	switch {
	case c == nil || c.gather != nil:
	case g.underWay == 0:
		l.sealFlushed()
	default:
		c.gather = time.AfterFunc(min(gatherMost, time.Duration(gatherShare*float64(g.put))), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			c.ripe = true
			l.sealRipe()
		})
	}
}

// sealRipe seals an open chunk that has gathered flushes for long enough, if
// not too many are under way. Under the chunk lock.
func (l *Log) sealRipe() {
	if l.mu.cur != nil && l.mu.cur.ripe && l.mu.flushes.underWay < mostFlushes {
		l.sealFlushed()
	}
}

func (l *Log) sealFlushed() {
	l.mu.cur.flushed = true
	l.mu.flushes.underWay++
	l.seal()
}
