package bs3

import (
	"context"
	"fmt"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/wlog"
)

// localLog is the local log of a volume that is being served. The chunk lock
// covers it.
type localLog struct {
	log    *wlog.Log // nil: there is none, and flushes wait for the store
	failed error     // why not
	synced uint64    // every record before it is on the disk of the log, or in the store
	ended  chan struct{}
	// ended is closed when the sync under way ends; nil if none is.
	full uint64 // flushes for which the log had no room
}

// flushToLog returns when everything that was acknowledged before the call is
// in the local log, synced, or in the store. One of those who wait syncs for
// all; nothing is sealed. Where the log can not take it, the store must.
func (e *Engine) flushToLog(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := &e.logging
	for all := e.seq; l.synced < all; {
		switch {
		case e.closed != nil:
			return e.closed
		case l.log == nil:
			return e.flushInstead(ctx)
		case l.ended != nil:
			// That sync may have begun before our records were written: look again.
			if err := e.syncEnds(ctx, l.ended); err != nil {
				return err
			}
		case !e.syncLog():
			return e.flushInstead(ctx)
		}
	}
	return nil
}

// flushInstead waits for the store, without the chunk lock.
func (e *Engine) flushInstead(ctx context.Context) error {
	e.mu.Unlock()
	defer e.mu.Lock()
	return e.flushDurably(ctx)
}

// syncEnds waits for a sync, without the chunk lock.
func (e *Engine) syncEnds(ctx context.Context, ended chan struct{}) error {
	e.mu.Unlock()
	defer e.mu.Lock()
	select {
	case <-ended:
		return nil
	case <-e.failed:
		return e.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// syncLog writes what neither log nor store has, and syncs it, giving the chunk
// lock back meanwhile. It says no if the store has to take it.
func (e *Engine) syncLog() bool {
	l := &e.logging
	batch, chunks := e.unlogged()
	end := e.seq
	if !l.log.Reserve(batch) {
		l.full++
		return false
	}
	for i, c := range chunks {
		c.loggedRecords += len(batch[i].Records)
		c.loggedBlocks += len(batch[i].CRCs)
		c.refs.Add(1) // its slot is read below
	}
	if len(batch) > 0 {
		ended := make(chan struct{})
		l.ended = ended
		e.wg.Add(1)
		e.mu.Unlock()
		err := l.log.Write(batch)
		if err == nil {
			err = l.log.Sync()
		}
		for _, c := range chunks {
			e.unref(c)
		}
		e.wg.Done()
		e.mu.Lock()
		l.ended = nil
		close(ended)
		if err != nil {
			e.logFails(err)
			return false
		}
	}
	l.synced = end
	return true
}

// unlogged gives the records of the chunks above the durable key that are not
// in the local log, in order.
func (e *Engine) unlogged() (batch []wlog.Addition, chunks []*chunk) {
	for k := e.durable + 1; k < e.keys.Next(); k++ {
		c := e.ring.get(k)
		records, crcs := c.obj.Records[c.loggedRecords:], c.obj.CRCs[c.loggedBlocks:]
		if len(records) == 0 || records[0].Kind == layout.KindMove {
			continue // moves are not replayed
		}
		chunks = append(chunks, c)
		batch = append(batch, wlog.Addition{
			Frame: layout.Frame{
				FrameHeader: layout.FrameHeader{
					UUID: e.uuid, Nonce: e.nonce, Key: k, FirstSeq: records[0].Seq, Synced: e.logging.synced,
					BlockSize: uint32(e.blockSize), Blocks: uint32(len(crcs)), Records: uint32(len(records)),
				},
				CRCs: crcs, Records: records,
			},
			Data: c.slot.Data(uint32(c.loggedBlocks), uint32(len(crcs))),
		})
	}
	return batch, chunks
}

// logFails ends the local log for as long as the volume is open: what a failed
// sync should have written the kernel may call clean, so no later one says
// anything about it. Under the chunk lock.
func (e *Engine) logFails(err error) {
	e.logging.failed, e.logging.log = err, nil
	e.log.Error().Err(err).Msg("the local log has failed: from now on every flush waits for the store")
}

// LogStatus is the state of the local log. Its JSON form is a contract.
type LogStatus struct {
	Path        string `json:"path"`             // its directory
	Size        int64  `json:"size"`             // bytes
	Used        int64  `json:"used"`             // bytes that the store does not have yet
	Failed      string `json:"failed,omitempty"` // why flushes wait for the store
	FullFlushes uint64 `json:"full_flushes"`     // that waited for the store because the log was full
}

// logStatus is nil in a mode without a local log. Under the chunk lock.
func (e *Engine) logStatus() *LogStatus {
	if e.opts.Durable || e.opts.CachePath == "" {
		return nil
	}
	s := &LogStatus{Path: e.opts.CachePath, FullFlushes: e.logging.full}
	if l := e.logging.log; l != nil {
		s.Size, s.Used = l.Header().Size, l.Used()
	}
	if e.logging.failed != nil {
		s.Failed = e.logging.failed.Error()
	}
	return s
}

// localLogHere is the place of our local log for the volume record; nil if
// nothing needs it.
func (e *Engine) localLogHere() *layout.LocalLog {
	if e.logging.log == nil {
		return nil
	}
	return &layout.LocalLog{Host: e.opts.Host.ID, Hostname: e.opts.Host.Name, Path: e.opts.CachePath}
}

// shareLog says in the volume record where a local log may hold what the store
// does not have, if it does not say so already.
func (e *Engine) shareLog(ctx context.Context, recorded, here *layout.LocalLog) error {
	if recorded == here || recorded != nil && here != nil && *recorded == *here {
		return nil
	}
	if _, err := e.changeVolume(ctx, func(v *layout.Volume) { v.LocalLog = here }); err != nil {
		return fmt.Errorf("record where the local log is: %w", err)
	}
	return nil
}
