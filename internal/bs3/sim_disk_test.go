package bs3

import (
	"errors"
	"os"
	"sync"

	"bs3/internal/bs3/wlog"
)

// simDisk is the disk of a local log. What was written is in the file at once,
// as it is in the kernel's page cache; when the machine goes down, what was not
// synced may be as it was before.
type simDisk struct {
	// sync, if set, is called at each sync: it may take a while, and fail.
	sync func() error
	// fault, if set, is asked before each call; a write that fails writes a part.
	fault func() error

	mu    sync.Mutex
	inode uint64           // of the file that the pages are of
	dirty map[int64][]byte // pages not synced yet: what the disk has there
	lost  map[int64][]byte // pages that the kernel calls clean since a sync failed: what the disk has there
	files []*simDiskFile   // of living processes
}

// simDiskFile is a log's file, as one process has it open.
type simDiskFile struct {
	wlog.LogFile
	disk *simDisk
	dead bool // under the disk's mutex: its process is gone
}

var errSimDisk = errors.New("sim: input/output error")

// open implements wlog.OpenLogFile.
func (d *simDisk) open(path string) (wlog.LogFile, error) {
	f, err := wlog.OpenFile(path)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if inode := simInode(path); d.inode != inode {
		d.inode, d.dirty, d.lost = inode, make(map[int64][]byte), make(map[int64][]byte)
	}
	x := &simDiskFile{LogFile: f, disk: d}
	d.files = append(d.files, x)
	return x, nil
}

// Writev implements wlog.LogFile.
func (f *simDiskFile) Writev(bufs [][]byte, off int64) error {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.dead {
		return errSimDisk
	}
	fault := d.fails()
	if fault != nil {
		bufs = bufs[:len(bufs)/2]
	}
	end := off
	for _, b := range bufs {
		end += int64(len(b))
	}
	for page := off / simPage; page*simPage < end; page++ {
		if old, ok := d.lost[page]; ok {
			d.dirty[page] = old
			delete(d.lost, page)
		}
		if _, ok := d.dirty[page]; !ok {
			old := make([]byte, simPage)
			if _, err := f.LogFile.ReadAt(old, page*simPage); err != nil {
				return err
			}
			d.dirty[page] = old
		}
	}
	return errors.Join(fault, f.LogFile.Writev(bufs, off))
}

// ReadAt implements wlog.LogFile.
func (f *simDiskFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.disk.fails(); err != nil {
		return 0, err
	}
	return f.LogFile.ReadAt(p, off)
}

func (d *simDisk) fails() error {
	if d.fault == nil {
		return nil
	}
	return d.fault()
}

// Datasync implements wlog.LogFile.
func (f *simDiskFile) Datasync() error {
	d := f.disk
	err := d.fails()
	if err == nil && d.sync != nil {
		err = d.sync()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case f.dead:
		return errSimDisk
	case err != nil:
		for page, old := range d.dirty {
			d.lost[page] = old
		}
	}
	clear(d.dirty)
	return err
}

// processesDied cuts off those who have the file open.
func (d *simDisk) processesDied() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		f.dead = true
	}
	d.files = nil
}

// moved says where the file of the disk is now.
func (d *simDisk) moved(from, to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inode == simInode(from) {
		d.inode = simInode(to)
	}
}

// crash is the end of the machine: of what was not synced, those sectors of the
// file at path are as they were before for which keeps says no.
func (d *simDisk) crash(path string, keeps func() bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inode == 0 || d.inode != simInode(path) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const sector = 512
	for _, pages := range []map[int64][]byte{d.dirty, d.lost} {
		for page := int64(0); len(pages) > 0; page++ { // in the same order each time
			old, ok := pages[page]
			delete(pages, page)
			for at := 0; ok && at < simPage; at += sector {
				if keeps() {
					continue
				}
				if _, err := f.WriteAt(old[at:at+sector], page*simPage+int64(at)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
