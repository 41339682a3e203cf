// Package blockdev has what transports do with their block devices, whichever
// driver of the kernel shows them.
package blockdev

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// sysfs is where the kernel describes its block devices.
const sysfs = "/sys/block"

// WriteBack has the kernel write all that file systems and the page cache hold
// for the device at path, and waits for that, however long it takes. Unlike fsync
// it reaches the file system that is mounted on the device.
//
// It waits in another process if it can: only the device ends this wait, SIGKILL
// does not. A killed daemon with a thread in it stays, and keeps its device and
// its state open, so that the next daemon, which the wait is for, gets neither.
func WriteBack(path string) error {
	if err := writeBackElsewhere(path); err == nil {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("write back %s: %w", path, os.NewSyscallError("ioctl BLKFLSBUF", err))
	}
	return nil
}

// writeBackElsewhere has blockdev(8) of util-linux do it.
func writeBackElsewhere(path string) error {
	tool, err := exec.LookPath("blockdev")
	if err != nil {
		// PATH often has no sbin for users other than root.
		if tool, err = exec.LookPath("/usr/sbin/blockdev"); err != nil {
			return err
		}
	}
	cmd := &exec.Cmd{
		Path: tool, Args: []string{"blockdev", "--flushbufs", path}, Dir: "/",
		// Ctrl-C on a terminal is for the daemon only.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	return cmd.Run()
}

// Attribute returns the file in sysfs of an attribute of the device at path.
func Attribute(path, name string) string {
	return filepath.Join(sysfs, filepath.Base(path), name)
}

// SetScheduler turns the kernel's I/O scheduler for the device at path on or off.
// Of several schedulers it takes the one in use, else mq-deadline, else the first.
func SetScheduler(path string, on bool) error {
	file := Attribute(path, "queue/scheduler")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	name := scheduler(strings.Fields(string(text)), on)
	if name == "" { // a change would wait for the requests in flight
		return nil
	}
	if err := os.WriteFile(file, []byte(name), 0); err != nil {
		return fmt.Errorf("I/O scheduler %s of %s: %w", name, path, err)
	}
	return nil
}

const none = "none"

// scheduler chooses from a list in which the one in use is in brackets. It returns
// "" if that one is right or there is nothing to choose from.
func scheduler(list []string, on bool) string {
	used := ""
	for i, name := range list {
		if strings.HasPrefix(name, "[") {
			list[i] = strings.Trim(name, "[]")
			used = list[i]
		}
	}
	if on == (used != none) {
		return ""
	}
	if !on {
		return none
	}
	others := slices.DeleteFunc(list, func(name string) bool { return name == none })
	switch {
	case slices.Contains(others, "mq-deadline"):
		return "mq-deadline"
	case len(others) > 0:
		return others[0]
	default:
		return ""
	}
}
