package bs3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// files are what a volume has on this machine: while it is opened what an
// earlier daemon has left, and then what is in use.
type files struct {
	log zerolog.Logger

	state  *wlog.Dir    // nil without a state path
	memory *wlog.Memory // chunk memory; nil if there is none

	cachePath string
	cache     *wlog.Dir // nil without a cache path, or with one that cannot be used
	local     *wlog.Log // the local log; nil if there is none
	failed    error     // why there is no local log that works
}

// openFiles locks the directories, and opens what an earlier daemon left there.
// A cache disk that fails is no reason not to open, unless the volume turns out
// to need what is on it. On an error the files are to be closed, too.
func openFiles(opts *Options) (f *files, err error) {
	f = &files{log: opts.Log, cachePath: opts.CachePath}
	if opts.StatePath != "" {
		if f.state, err = wlog.LockDir(opts.StatePath); err != nil {
			return f, err
		}
		if f.memory, err = f.state.OpenMemory(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return f, fmt.Errorf("%w: %w; move the file away to go on without what it may hold", volume.ErrRefused, err)
		}
	}
	if opts.CachePath == "" {
		return f, nil
	}
	f.cache, err = wlog.LockDir(opts.CachePath)
	if errors.Is(err, wlog.ErrLocked) {
		return f, err
	}
	if err == nil {
		f.local, err = f.cache.OpenLog(opts.openLog)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.failed = err
		f.log.Error().Err(err).Str("directory", f.cachePath).Msg("the local log of an earlier daemon cannot be read")
	}
	return f, nil
}

// holdRecords reports whether chunk memory or the local log may hold what the
// store does not have.
func (f *files) holdRecords() bool { return f.memoryHolds() || f.logHolds() }

func (f *files) memoryHolds() bool {
	if f.memory == nil {
		return false
	}
	for _, s := range f.memory.Slots() {
		if s.Count() > 0 {
			return true
		}
	}
	return false
}

func (f *files) logHolds() bool { return f.local != nil && f.local.Frames() > 0 }

// sameBoot reports whether the chunk memory was written under the kernel that
// runs now: then every byte of it is as it was stored.
func (f *files) sameBoot(h Host) bool { return f.memory != nil && f.memory.Header().BootID == h.Boot }

// dirs are the directories that keep intents. That of the local log comes
// through a crash of the machine, which the state directory need not do.
func (f *files) dirs() []*wlog.Dir {
	var dirs []*wlog.Dir
	for _, d := range []*wlog.Dir{f.state, f.cache} {
		if d != nil {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// addIntent notes that a claim is about to be made. The cache disk may fail at
// it, if nothing on it is needed.
func (f *files) addIntent(i wlog.Intent) error {
	for _, d := range f.dirs() {
		if err := d.AddIntent(i); err != nil {
			if d != f.cache || f.logHolds() {
				return err
			}
			f.goWithoutCache(err)
		}
	}
	return nil
}

// dropIntents forgets the claims: from here on the device may be shown.
func (f *files) dropIntents() error {
	for _, d := range f.dirs() {
		if err := d.DropIntents(); err != nil {
			return err
		}
	}
	return nil
}

// goWithoutCache gives up the directory of the local log, on a disk that fails
// or is full, and on which there is nothing that the volume needs.
func (f *files) goWithoutCache(why error) {
	f.failed = why
	f.log.Error().Err(why).Str("directory", f.cachePath).Msg("there will be no local log: its disk cannot be written to")
	f.closeLog()
	_ = f.cache.Close()
	f.cache = nil
}

// closeLog closes the local log that was found, to which nothing was written.
func (f *files) closeLog() {
	if f.local != nil {
		_ = f.local.Close()
		f.local = nil
	}
}

// setMemoryAside sets chunk memory aside that is not ours, and returns its new
// name.
func (f *files) setMemoryAside() (string, error) {
	if err := f.memory.Close(); err != nil {
		return "", err
	}
	f.memory = nil
	return f.state.SetAside(wlog.MemoryFileName)
}

// dropLog sets the local log that was found aside, unless it is known to hold
// nothing. v is the record of the volume.
func (f *files) dropLog(v *layout.Volume) error {
	why := "the local log is of a writer that another one has replaced since: its writes that were not stored are lost to the volume; the file is set aside"
	switch {
	case f.local != nil && f.local.Frames() == 0:
		return nil // its file can be used again
	case f.local != nil:
		f.closeLog()
	case f.cache == nil || f.failed == nil:
		return nil // there is none, or no disk that it could be on
	default:
		why = "the local log that cannot be read, whosever it is, is set aside"
	}
	aside, err := f.cache.SetAside(wlog.LogFileName)
	if err != nil && f.failed != nil {
		f.goWithoutCache(err)
		return nil //nolint:nilerr // it can neither be read nor renamed, and nothing on it is needed
	}
	if err != nil {
		return err
	}
	f.failed = nil // it is out of the way, also when the claim is tried again
	f.log.Error().Str("file", aside).Uint64("epoch", v.Epoch).Str("writer", v.Writer.Hostname).Msg(why)
	return nil
}

// whyNoLog says why the local log of the last writer is not at hand.
func (f *files) whyNoLog() string {
	switch {
	case f.cachePath == "":
		return "there is no cache.path here"
	case f.failed != nil:
		return f.failed.Error()
	case f.local == nil:
		return "there is none in " + f.cachePath
	}
	return "that in " + f.cachePath + " is not of its last writer"
}

// ownMemory makes the chunk memory empty and ours, and returns it; on the heap
// without a state path. Nothing of what it held is needed any more.
func (f *files) ownMemory(want *layout.MemoryHeader) (*wlog.Memory, error) {
	switch {
	case f.state == nil:
		f.memory = wlog.NewHeapMemory(want)
	case f.memory == nil || *f.memory.Header() != *want:
		if f.memory != nil {
			if err := f.memory.Close(); err != nil {
				return nil, err
			}
		}
		var err error
		if f.memory, err = f.state.CreateMemory(want); err != nil {
			return nil, err
		}
	}
	if err := f.memory.Lock(); err != nil {
		f.log.Warn().Err(err).Msg("chunk memory may be swapped out; if memory runs short while somebody writes to the device, both can come to a halt")
	}
	return f.memory, nil
}

// ownLog makes the local log, of size bytes, empty and ours, and returns it.
// Nothing of what it held is needed any more.
func (f *files) ownLog(ctx context.Context, size int64, o *volume.Owner, opts *Options) (_ *wlog.Log, err error) {
	if f.local != nil && f.local.Header().Size != size {
		f.closeLog()
	}
	if f.local == nil {
		f.log.Info().Int64("mib", size>>20).Str("directory", f.cachePath).Msg("making the local log")
		if f.local, err = f.cache.CreateLog(ctx, size, opts.openLog); err != nil {
			f.local = nil
			return nil, err
		}
	}
	return f.local, f.local.Own(o.UUID, o.Nonce, opts.BlockSize)
}

// disownLog marks the local log as nobody's, so that it is not taken for
// something that was lost.
func (f *files) disownLog(uuid layout.UUID, blockSize int) {
	if f.local == nil {
		return
	}
	if err := f.local.Own(uuid, layout.Nonce{}, blockSize); err != nil {
		f.log.Warn().Err(err).Msg("the local log, of which nothing is needed, cannot be marked as such")
	}
}

// close unmaps what is mapped and unlocks the directories.
func (f *files) close() error {
	var err error
	if f.memory != nil {
		err = f.memory.Close()
	}
	if f.local != nil {
		err = errors.Join(err, f.local.Close())
	}
	for _, d := range f.dirs() {
		err = errors.Join(err, d.Close())
	}
	return err
}
