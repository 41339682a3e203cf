// Package blockdev is what transports do to the block devices that the kernel
// shows for them, whichever driver it is that shows them.
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

// WriteBack has all that file systems and the page cache hold for the device
// at path written to it, and waits for that, however long it takes. Unlike
// fsync it reaches the file system that is mounted on the device.
//
// It waits in another process, if it can: nothing ends this wait but the device,
// not even SIGKILL. With a thread in it a daemon that is killed stays, and keeps
// its device and its state open; so the next one gets neither, and the wait is
// for that one.
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
		// Who is not root has often no sbin in PATH.
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

// Attribute is the file in sysfs of an attribute of the device at path.
func Attribute(path, name string) string {
	return filepath.Join(sysfs, filepath.Base(path), name)
}

// SetScheduler has the kernel's I/O scheduler order the requests to the device
// at path, or not. Of several schedulers it takes the one in use, else
// mq-deadline, else the first.
func SetScheduler(path string, on bool) error {
	file := Attribute(path, "queue/scheduler")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	name := scheduler(strings.Fields(string(text)), on)
	if name == "" { // a change would wait for the requests under way
		return nil
	}
	if err := os.WriteFile(file, []byte(name), 0); err != nil {
		return fmt.Errorf("I/O scheduler %s of %s: %w", name, path, err)
	}
	return nil
}

const none = "none"

// scheduler chooses from a list in which the one in use stands in brackets.
// Empty: it is as it should be, or there is nothing to choose from.
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
