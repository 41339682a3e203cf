package bs3

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// simHost is a machine with one state directory; a host without one keeps
// chunk memory on the heap, and any number of daemons may run there.
type simHost struct {
	id     int
	path   string     // state directory; empty = none
	cache  string     // directory of local log and disk cache; empty = none
	disk   *simDisk   // that it is on
	disks  int        // that were lost so far
	rotten bool       // its local log was damaged, and promises nothing; under the world's mutex
	boots  int        // the machine went down so often
	holder *simDaemon // that has the lock, if it lives; under the world's mutex
	stale  []byte     // what a disk below the state directory has written back of the chunk memory
	inode  uint64     // of the file that stale is of
	dead   int        // state directories that dead processes may still have open

	chunkBlocks int // of the volume
}

const simPage = 4096

func (w *simWorld) newHost(id, chunkBlocks int, withState bool) *simHost {
	h := &simHost{id: id, chunkBlocks: chunkBlocks}
	if withState {
		h.path = filepath.Join(w.root, fmt.Sprintf("h%d", id))
		if w.caches {
			h.cache = h.path + "-cache"
			h.disk = &simDisk{sync: func() error { return w.syncs(h) }}
		}
	}
	w.hosts = append(w.hosts, h)
	return h
}

func (h *simHost) String() string { return fmt.Sprintf("h%d", h.id) }

func (h *simHost) host() Host {
	return Host{ID: fmt.Sprintf("machine-%d", h.id), Name: h.String(), Boot: [16]byte{byte(h.id + 1), byte(h.boots), byte(h.boots >> 8)}}
}

func (h *simHost) memory() string { return filepath.Join(h.path, "memory") }

func (h *simHost) log() string { return filepath.Join(h.cache, "log") }

// syncs is a sync of the local log of h: it takes a while, and may fail.
func (w *simWorld) syncs(h *simHost) error {
	w.mu.Lock()
	r := w.random(fmt.Sprintf("sync %v", h), uint64(w.count["log syncs"]))
	w.count["log syncs"]++
	calm := w.calm
	w.mu.Unlock()
	w.pass(time.Duration(1 + r.Int64N(int64(3*time.Millisecond))))
	if !calm && r.IntN(20) == 0 {
		w.add("log syncs failed", 1)
		w.log("a sync on %v fails", h)
		return errSimDisk
	}
	return nil
}

// processDied leaves the directories as they are at this instant, out of the
// reach of the dead process, whose engine has yet to end.
func (h *simHost) processDied() error {
	if h.path == "" {
		return nil
	}
	if h.disk != nil {
		h.disk.processesDied()
	}
	err := h.leave(h.path, func(old, now string) {
		if h.stale != nil && h.inode == simInode(filepath.Join(old, "memory")) {
			h.inode = simInode(filepath.Join(now, "memory"))
		}
	})
	if h.cache == "" || err != nil {
		return err
	}
	return h.leave(h.cache, func(old, now string) { h.disk.moved(filepath.Join(old, "log"), filepath.Join(now, "log")) })
}

// leave puts a copy of a directory in its place, and then calls copied.
func (h *simHost) leave(dir string, copied func(old, now string)) error {
	old, err := h.bury(dir)
	if err != nil || old == "" {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(old)
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(old, f.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name()), b, 0o600); err != nil {
			return err
		}
	}
	copied(old, dir)
	return nil
}

// bury renames a directory; "" if there is none.
func (h *simHost) bury(dir string) (string, error) {
	h.dead++
	old := fmt.Sprintf("%s.dead%d", dir, h.dead)
	err := os.Rename(dir, old)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return old, err
}

// wiped is a reboot with the state directory on a tmpfs.
func (h *simHost) wiped() error {
	h.boots++
	h.stale = nil
	if h.path == "" {
		return nil
	}
	_, err := h.bury(h.path)
	return err
}

// diskCrashes is what a reboot does to the local log and the disk cache: some
// sectors that were not synced are as they were before; of the cache nothing is
// ever synced.
func (h *simHost) diskCrashes(random func(n int) int) error {
	if h.cache == "" {
		return nil
	}
	keep := 1 + random(6)
	if err := h.disk.crash(h.log(), func() bool { return random(keep) > 0 }); err != nil {
		return err
	}
	path := filepath.Join(h.cache, diskCacheFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	const sector = 512
	for at := random(2) * simPage; at < len(b); at += sector * (1 + random(20)) {
		if from := sector * random(len(b)/sector); random(2) == 0 {
			clear(b[at : at+sector])
		} else { // what was there before may be anything
			copy(b[at:at+sector], b[from:])
		}
	}
	return os.WriteFile(path, b, 0o600)
}

// rot is a disk that returns other bytes than were written: of the disk cache,
// or, seldom, of the local log.
func (w *simWorld) rot(h *simHost, random func(n int) int) error {
	path := filepath.Join(h.cache, diskCacheFile)
	if random(4) == 0 {
		path = h.log()
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if path == h.log() {
		w.mu.Lock()
		h.rotten = true
		w.mu.Unlock()
	}
	w.log("bytes of %s rot on %v", filepath.Base(path), h)
	w.add("rotten", 1)
	const most = 600
	for range 1 + random(8) {
		to, b := int64(random(int(st.Size()))), make([]byte, 1+random(most))
		if random(2) == 0 {
			from := int64(random(int(st.Size())))
			if _, err := f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		} else {
			if _, err := f.ReadAt(b[:1], to); err != nil {
				return err
			}
			b = b[:1]
			b[0] ^= 1 << random(8)
		}
		if _, err := f.WriteAt(b[:min(int64(len(b)), st.Size()-to)], to); err != nil {
			return err
		}
	}
	return nil
}

// diskLost is the end of the disk of the local log.
func (h *simHost) diskLost() error {
	h.disks++
	_, err := h.bury(h.cache)
	return err
}

// torn is a reboot with the state directory on a disk: what was not synced is
// there, or as it was before, or zeros, page by page.
func (h *simHost) torn(random func(n int) int) error {
	h.boots++
	if h.path == "" {
		return nil
	}
	b, err := os.ReadFile(h.memory())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	keep := 2 + random(20)                                // of one in so many pages something is lost
	for page := simPage; page < len(b); page += simPage { // the first one was synced
		if random(keep) > 0 {
			continue
		}
		p := b[page : page+simPage]
		if h.stale != nil && h.inode == simInode(h.memory()) && random(2) == 0 {
			copy(p, h.stale[page:])
		} else {
			clear(p)
		}
	}
	return os.WriteFile(h.memory(), b, 0o600)
}

// writeback notes what a disk would have now.
func (h *simHost) writeback() error {
	if h.path == "" {
		return nil
	}
	b, err := os.ReadFile(h.memory())
	if errors.Is(err, fs.ErrNotExist) {
		h.stale = nil
		return nil
	}
	h.stale, h.inode = b, simInode(h.memory())
	return err
}

func simInode(path string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0
	}
	return st.Ino
}

// simRoot makes a directory for the state directories of a run, in memory
// where that can be had: the chunk memory is a real mapping of a real file.
func simRoot(tb testing.TB) string {
	tb.Helper()
	base := "/dev/shm"
	if st, err := os.Stat(base); err != nil || !st.IsDir() {
		base = tb.TempDir()
	}
	root, err := os.MkdirTemp(base, "bs3-sim-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(root) })
	return root
}

// simUnmap takes away the mappings of files below root. An engine that died
// leaves its chunk memory mapped, as its process would have ended with it.
func simUnmap(root string) error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		at := strings.Index(lines.Text(), root+"/")
		if at < 0 {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x", &from, &to); err != nil {
			return err
		}
		if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, from, to-from, 0); errno != 0 {
			return errno
		}
	}
	return lines.Err()
}
