package writer

import (
	"context"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/wlog"
)

// localLog is the local log of a volume that is being served. The chunk lock
// covers it.
type localLog struct {
	log    *wlog.Log     // nil: there is none, and flushes wait for the store
	failed error         // why not
	synced uint64        // every record before it is on the disk of the log, or in the store
	ended  chan struct{} // closed when the sync under way ends; nil if none is
	full   uint64        // flushes for which the log had no room
}

// UseLocalLog makes flushes wait for log, which is empty; if it is nil, failed
// says why there is none, and flushes wait for the store.
func (l *Log) UseLocalLog(log *wlog.Log, failed error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.local = localLog{log: log, failed: failed, synced: l.mu.seq}
}

// flushToLog returns when everything that was acknowledged before the call is
// in the local log, synced, or in the store. One of those who wait syncs for
// all; nothing is sealed. Where the log cannot take it, the store must.
func (l *Log) flushToLog(ctx context.Context) error {
	all, _ := l.Activity()
	for {
		s := l.nextSync(all)
		switch {
		case s.done:
			return nil
		case s.err != nil:
			return s.err
		case s.wait != nil:
			// That sync may have begun before our records were written: look again.
			if err := l.syncEnds(ctx, s.wait); err != nil {
				return err
			}
		case s.log == nil:
			return l.flushDurably(ctx)
		default:
			l.runSync(s)
		}
	}
}

// logSync is what a flush has to do next: nothing, to wait for a sync under
// way, to run one, or (none of these) to wait for the store.
type logSync struct {
	done bool
	err  error
	wait chan struct{}

	log    *wlog.Log
	batch  []wlog.Addition
	chunks []*chunk // whose slots batch refers to
	end    uint64   // every record before it is in batch, in the log, or in the store
}

// nextSync returns what a flush has to do that waits for all records below all.
// If that is a sync, it is under way from here on.
func (l *Log) nextSync(all uint64) logSync {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &l.mu.local
	switch {
	case g.synced >= all:
		return logSync{done: true}
	case l.c.Life.Err() != nil:
		return logSync{err: l.c.Life.Err()}
	case g.log == nil:
		return logSync{}
	case g.ended != nil:
		return logSync{wait: g.ended}
	}
	s := logSync{log: g.log, end: l.mu.seq}
	s.batch, s.chunks = l.unlogged()
	if !g.log.Reserve(s.batch) {
		g.full++
		return logSync{}
	}
	if len(s.batch) == 0 {
		g.synced = s.end
		return logSync{done: true}
	}
	for i, c := range s.chunks {
		c.loggedRecords += len(s.batch[i].Records)
		c.loggedBlocks += s.batch[i].Blocks
		c.refs.Add(1) // runSync reads its slot
	}
	g.ended = make(chan struct{})
	l.wg.Add(1)
	return s
}

// syncEnds waits for a sync.
func (l *Log) syncEnds(ctx context.Context, ended chan struct{}) error {
	select {
	case <-ended:
		return nil
	case <-l.c.Life.Done():
		return l.c.Life.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// runSync writes what neither log nor store has, and syncs it.
func (l *Log) runSync(s logSync) {
	defer l.wg.Done()
	err := s.log.Write(s.batch)
	if err == nil {
		err = s.log.Sync()
	}
	for _, c := range s.chunks {
		l.unref(c)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &l.mu.local
	close(g.ended)
	g.ended = nil
	if err != nil {
		l.logFails(err)
		return
	}
	g.synced = s.end
}

// unlogged returns the records of the chunks above the durable key that are not
// in the local log, in order. Under the chunk lock.
func (l *Log) unlogged() (batch []wlog.Addition, chunks []*chunk) {
	for k := l.mu.durable + 1; k < l.mu.keys.Next(); k++ {
		c := l.ring.get(k)
		records, blocks := c.obj.Records[c.loggedRecords:], uint32(c.slot.Blocks())-c.loggedBlocks
		if len(records) == 0 || records[0].Kind == layout.KindMove {
			continue // moves are not replayed
		}
		chunks = append(chunks, c)
		batch = append(batch, wlog.Addition{
			Frame: layout.Frame{
				FrameHeader: layout.FrameHeader{
					UUID: l.c.Owner.UUID, Nonce: l.c.Owner.Nonce, Key: k, FirstSeq: records[0].Seq, Synced: l.mu.local.synced,
					BlockSize: uint32(l.c.BlockSize), Blocks: blocks, Records: uint32(len(records)),
				},
				Records: records,
			},
			Data: c.slot.Stored(c.loggedBlocks, blocks),
		})
	}
	return batch, chunks
}

// logFails ends the local log for as long as the volume is open: what a failed
// sync should have written the kernel may call clean, so no later one proves
// anything about it. Under the chunk lock.
func (l *Log) logFails(err error) {
	l.mu.local.failed, l.mu.local.log = err, nil
	l.c.Log.Error().Err(err).Msg("the local log has failed: from now on every flush waits for the store")
}

// LogStatus is the state of the local log. Its JSON form is a contract.
type LogStatus struct {
	Path        string `json:"path"`             // its directory
	Size        int64  `json:"size"`             // bytes
	Used        int64  `json:"used"`             // bytes that the store does not have yet
	Failed      string `json:"failed,omitempty"` // why flushes wait for the store
	FullFlushes uint64 `json:"full_flushes"`     // that waited for the store because the log was full
}

// logStatus returns nil in a mode without a local log. Under the chunk lock.
func (l *Log) logStatus() *LogStatus {
	if l.c.Durable || l.c.LocalLog == "" {
		return nil
	}
	g := &l.mu.local
	s := &LogStatus{Path: l.c.LocalLog, FullFlushes: g.full}
	if g.log != nil {
		s.Size, s.Used = g.log.Header().Size, g.log.Used()
	}
	if g.failed != nil {
		s.Failed = g.failed.Error()
	}
	return s
}
