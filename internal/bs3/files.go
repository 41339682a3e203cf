package bs3

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/wlog"
)

// files are what a volume has on this machine: while it is opened what an
// earlier daemon has left, and then what is in use.
type files struct {
	log zerolog.Logger

	state   *wlog.Dir    // nil without a state path
	stateID string       // by which volume records know the state directory; empty: it is new, or there is none
	newID   string       // for one that is new
	memory  *wlog.Memory // chunk memory; nil if there is none
	room    *os.File     // holds the space that new chunk memory will take; nil = none

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
		if f.stateID, err = readID(f.state.Path()); err != nil {
			return f, err
		}
		if f.stateID == "" {
			f.newID = layout.NewNonce().String()
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

// idFile is the file of the state directory that holds its id.
const idFile = "id"

// readID returns the id of a state directory; empty if it has none yet.
func readID(dir string) (string, error) {
	path := filepath.Join(dir, idFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("id of the state directory: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if digits, err := hex.DecodeString(id); err != nil || len(digits) != len(layout.Nonce{}) {
		return "", fmt.Errorf("%w: id of the state directory: %s: %w: it does not hold one; remove the file", volume.ErrRefused, path, wlog.ErrDamaged)
	}
	return id, nil
}

// claimID is the id of the state directory that a claim names; empty without one.
func (f *files) claimID() string { return cmp.Or(f.stateID, f.newID) }

// noteID makes the id of a new state directory its own, behind a claim: with an id
// that no record names it would not be taken for that of the writer before.
func (f *files) noteID() error {
	if f.newID == "" {
		return nil
	}
	path := filepath.Join(f.state.Path(), idFile)
	if err := renameio.WriteFile(path, []byte(f.newID+"\n"), 0o600, renameio.WithTempDir(f.state.Path())); err != nil {
		return fmt.Errorf("id of the state directory: %w", err)
	}
	f.stateID, f.newID = f.newID, ""
	return nil
}

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

// reserve takes the space of new chunk memory of size bytes. That of the memory
// here is given back for it, unless that is kept.
func (f *files) reserve(size int64, keep bool) error {
	if f.state == nil || f.room != nil {
		return nil
	}
	if f.memory != nil && !keep {
		size -= f.memory.Header().FileSize()
	}
	if size <= 0 {
		return nil
	}
	dir := f.state.Path()
	room, err := os.CreateTemp(dir, "room-")
	if err != nil {
		return fmt.Errorf("make room for the chunk memory: %w", err)
	}
	if err := errors.Join(os.Remove(room.Name()), unix.Fallocate(int(room.Fd()), 0, 0, size)); err != nil {
		return errors.Join(fmt.Errorf("allocate %d MiB for the chunk memory (write.memory) in %s: %w", size>>20, dir, err), room.Close())
	}
	f.room = room
	return nil
}

// giveRoom gives back what reserve took.
func (f *files) giveRoom() error {
	if f.room == nil {
		return nil
	}
	err := f.room.Close()
	f.room = nil
	return err
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

// dropIntent forgets a claim that was not made.
func (f *files) dropIntent(nonce layout.Nonce) error {
	var failed error
	for _, d := range f.dirs() {
		failed = errors.Join(failed, d.DropIntent(nonce))
	}
	return failed
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

// dropLog sets the local log that was found aside, which is not ours, unless it
// is known to hold nothing. v is the record of the volume.
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
		if err := f.giveRoom(); err != nil {
			return nil, err
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
	err := f.giveRoom()
	if f.memory != nil {
		err = errors.Join(err, f.memory.Close())
	}
	if f.local != nil {
		err = errors.Join(err, f.local.Close())
	}
	for _, d := range f.dirs() {
		err = errors.Join(err, d.Close())
	}
	return err
}
