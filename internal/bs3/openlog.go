package bs3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/wlog"
)

// openCache locks the directory of the local log and opens the log that an
// earlier daemon left there. A disk that fails is no reason not to open, unless
// the volume turns out to need what is on it.
func (e *Engine) openCache() (err error) {
	if e.opts.CachePath == "" {
		return nil
	}
	if e.opts.openLog == nil {
		e.opts.openLog = wlog.OpenFile
	}
	e.cacheDir, err = wlog.LockDir(e.opts.CachePath)
	if errors.Is(err, wlog.ErrLocked) {
		return err
	}
	if err == nil {
		e.leftLog, err = e.cacheDir.OpenLog(e.opts.openLog)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.logging.failed = err
		e.log.Error().Err(err).Str("directory", e.opts.CachePath).Msg("the local log of an earlier daemon can not be read")
	}
	return nil
}

func (e *Engine) logHolds() bool { return e.leftLog != nil && e.leftLog.Frames() > 0 }

// goWithoutCache gives up the directory of the local log, on a disk that fails
// or is full, and on which there is nothing that the volume needs.
func (e *Engine) goWithoutCache(why error) {
	e.logging.failed = why
	e.log.Error().Err(why).Str("directory", e.opts.CachePath).Msg("there will be no local log: its disk can not be written to")
	if e.leftLog != nil {
		_ = e.leftLog.Close() // nothing was written to it
		e.leftLog = nil
	}
	_ = e.cacheDir.Close()
	e.cacheDir = nil
}

// dirs are the directories that keep intents. That of the local log comes
// through a crash of the machine, which state.path need not do.
func (e *Engine) dirs() []*wlog.Dir {
	var dirs []*wlog.Dir
	for _, d := range []*wlog.Dir{e.dir, e.cacheDir} {
		if d != nil {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// judge decides whose chunk memory and local log are: that of the writer that
// v names, or of one whose place only our own failed opens have taken since.
// What is anyone else's is set aside: it must never be replayed.
func (e *Engine) judge(v *layout.Volume) (err error) {
	e.writersHere, err = wlog.Writers(v.Writer.Nonce, e.dirs()...)
	if err != nil {
		return fmt.Errorf("%w: %w; move the file away to go on without what lies beside it", ErrRefused, err)
	}
	if err := e.judgeMemory(v); err != nil {
		return err
	}
	return e.judgeLog(v)
}

// judgeLog sets a local log aside that is not ours, and refuses to go on
// without the one that the volume may need, unless that is to be forgotten:
// then v, which is about to be claimed, does so.
func (e *Engine) judgeLog(v *layout.Volume) error {
	if l := e.leftLog; e.logHolds() && l.Header().UUID != v.UUID {
		return fmt.Errorf("%w: local log %s holds writes of volume %s that may not be stored, but the store has volume %s: use the right store, or move the file away",
			ErrRefused, l.Path(), l.Header().UUID, v.UUID)
	}
	ours := e.leftLog != nil && e.leftLog.Header().UUID == v.UUID && e.writersHere[e.leftLog.Header().Nonce]
	if here := v.LocalLog; here != nil && !ours {
		if !e.opts.ForgetLocalLog {
			return fmt.Errorf("%w: volume %s has writes, flushed and perhaps not stored, in the local log in %s of host %s (machine %s), and %s: open it there, or give them up (--forget-local-log)",
				ErrRefused, v.UUID, here.Path, here.Hostname, here.Host, e.whyNoLog())
		}
		e.log.Error().Str("host", here.Hostname).Str("directory", here.Path).
			Msg("opening without the local log of the last writer: what it flushed and did not store is lost to the volume")
		v.LocalLog = nil
	}
	if ours {
		return nil
	}
	return e.dropLog(v)
}

// whyNoLog says why the local log of the last writer is not at hand.
func (e *Engine) whyNoLog() string {
	switch {
	case e.opts.CachePath == "":
		return "there is no cache.path here"
	case e.logging.failed != nil:
		return e.logging.failed.Error()
	case e.leftLog == nil:
		return "there is none in " + e.opts.CachePath
	}
	return "that in " + e.opts.CachePath + " is not of its last writer"
}

// dropLog sets the local log that was found aside, unless it is known to hold
// nothing.
func (e *Engine) dropLog(v *layout.Volume) error {
	why := "the local log is of a writer that another one has replaced since: its writes that were not stored are lost to the volume; the file is set aside"
	switch {
	case e.leftLog != nil && e.leftLog.Frames() == 0:
		return nil // its file can be used again
	case e.leftLog != nil:
		_ = e.leftLog.Close() // nothing was written to it
		e.leftLog = nil
	case e.cacheDir == nil || e.logging.failed == nil:
		return nil // there is none, or no disk that it could be on
	default:
		why = "the local log that can not be read, whosever it is, is set aside"
	}
	aside, err := e.cacheDir.SetAside(wlog.LogFileName)
	if err != nil && e.logging.failed != nil {
		e.goWithoutCache(err)
		return nil //nolint:nilerr // it can neither be read nor renamed, and nothing on it is needed
	}
	if err != nil {
		return err
	}
	e.logging.failed = nil // it is out of the way, also when the claim is tried again
	e.log.Error().Str("file", aside).Uint64("epoch", v.Epoch).Str("writer", v.Writer.Hostname).Msg(why)
	return nil
}

// readyLog makes the local log empty and ours, in the mode that has one, when
// nothing of what it held is needed any more, and sees to it that the volume
// record says so. Without a log that works flushes wait for the store.
func (e *Engine) readyLog(ctx context.Context, recorded *layout.LocalLog) error {
	if e.cacheDir == nil {
		return e.shareLog(ctx, recorded, nil)
	}
	if e.opts.Durable {
		if err := e.shareLog(ctx, recorded, nil); err != nil {
			return err
		}
		if e.leftLog != nil {
			_ = e.leftLog.Close() // nothing was written to it
			e.leftLog = nil
		}
		return e.cacheDir.RemoveLog()
	}
	if l := e.leftLog; recorded != nil && (l == nil || l.Header().Size != e.opts.LogSize) {
		// It is made anew, which takes a while. Who dies meanwhile leaves none, and
		// nothing is missing: the store has what the old one held.
		if err := e.shareLog(ctx, recorded, nil); err != nil {
			return err
		}
		recorded = nil
	}
	log, err := e.ownLog(ctx)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		e.mu.Lock()
		e.logFails(err)
		e.mu.Unlock()
	default:
		if e.cacheDir.InMemory() {
			e.log.Warn().Str("directory", e.opts.CachePath).
				Msg("cache.path is in memory: what is flushed survives the daemon, but not the machine; after a crash of that the volume opens only with --forget-local-log")
		}
		e.mu.Lock()
		e.logging.log, e.logging.failed, e.logging.synced = log, nil, e.seq
		e.mu.Unlock()
	}
	return e.shareLog(ctx, recorded, e.localLogHere())
}

// ownLog gives a local log of the configured size that is empty and ours.
func (e *Engine) ownLog(ctx context.Context) (log *wlog.Log, err error) {
	if log = e.leftLog; log != nil && log.Header().Size != e.opts.LogSize {
		_ = log.Close() // nothing was written to it
		log, e.leftLog = nil, nil
	}
	if log == nil {
		e.log.Info().Int64("mib", e.opts.LogSize>>20).Str("directory", e.opts.CachePath).Msg("making the local log")
		if log, err = e.cacheDir.CreateLog(ctx, e.opts.LogSize, e.opts.openLog); err != nil {
			return nil, err
		}
		e.leftLog = log
	}
	return log, log.Own(e.uuid, e.nonce, e.blockSize)
}

// leftover is what chunk memory and the local log hold, merged by sequence
// number.
type leftover struct {
	memory []wlog.Entry // by sequence number
	log    *wlog.Log    // nil = none
	logged []wlog.Entry // of its current frame

	fromLog int // entries that only the log had
}

// upTo is how many entries there may be from sequence number first on.
func (l *leftover) upTo(first uint64) int {
	next := first
	if n := len(l.memory); n > 0 {
		next = l.memory[n-1].Seq + 1
	}
	if l.log != nil {
		next = max(next, l.log.Last())
	}
	return int(next - first)
}

// at gives the entry with sequence number seq; ok is false if neither has it. It
// is called with ascending numbers.
func (l *leftover) at(seq uint64) (entry wlog.Entry, ok bool, err error) {
	for len(l.memory) > 0 && l.memory[0].Seq < seq { // the store has it
		l.memory = l.memory[1:]
	}
	if len(l.memory) > 0 && l.memory[0].Seq == seq {
		return l.memory[0], true, nil
	}
	for len(l.logged) > 0 && l.logged[0].Seq < seq {
		l.logged = l.logged[1:]
	}
	if len(l.logged) == 0 && l.log != nil {
		if l.logged, err = l.log.Entries(seq); err != nil {
			return entry, false, err
		}
	}
	if len(l.logged) == 0 || l.logged[0].Seq != seq {
		return entry, false, nil
	}
	l.fromLog++
	return l.logged[0], true, nil
}
