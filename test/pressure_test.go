package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ioFlusher has the flags of a thread in /proc/PID/stat (linux/sched.h) that
// PR_SET_IO_FLUSHER sets.
const ioFlusher = 0x00080000 | 0x00100000 // PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE

// threads returns the flags of each thread of a process.
func threads(t testing.TB, pid int) []uint64 {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	var list []uint64
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := strings.Cut(string(text), ") ") // after the name
		flags, err := strconv.ParseUint(strings.Fields(rest)[6], 10, 64)
		if err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		list = append(list, flags)
	}
	return list
}

// capable reports whether this process has a capability.
func capable(t testing.TB, capability int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// memoryFlags returns the flags of the mapping of chunk memory.
func (v *volume) memoryFlags(pid int) []string {
	v.t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		v.t.Fatal(err)
	}
	_, ours, found := strings.Cut(string(maps), filepath.Join(v.dir, "state", "memory"))
	if !found {
		v.t.Fatal("chunk memory is not mapped")
	}
	_, flags, _ := strings.Cut(ours, "VmFlags:")
	flags, _, _ = strings.Cut(flags, "\n")
	return strings.Fields(flags)
}

// The kernel frees memory that runs short by writing to the device. No thread of
// the daemon waits for that, and its chunk memory is locked.
func TestMemoryPressure(t *testing.T) {
	needRoot(t)
	needTools(t, "nbdcopy", "setpriv", "prlimit")
	v := newVolume(t, onDir).with("write.memory", 32)
	d := v.start()
	before := len(threads(t, d.cmd.Process.Pid))
	image := filepath.Join(v.dir, "image")
	if err := os.WriteFile(image, bytes.Repeat([]byte("bs3"), 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "nbdcopy", image, v.uri())
	flags := threads(t, d.cmd.Process.Pid)
	t.Logf("%d threads at first, %d now", before, len(flags))
	mayFlush := capable(t, unix.CAP_SYS_RESOURCE) // not in containers
	for _, f := range flags {
		if mayFlush && f&ioFlusher != ioFlusher {
			t.Errorf("a thread with flags %x is no I/O flusher", f)
		}
	}
	if warned := len(d.logged("PR_SET_IO_FLUSHER")) > 0; warned == mayFlush {
		t.Errorf("the daemon may be an I/O flusher: %v, it warns: %v", mayFlush, warned)
	}
	if capable(t, unix.CAP_IPC_LOCK) {
		if flags := v.memoryFlags(d.cmd.Process.Pid); !slices.Contains(flags, "lo") {
			t.Errorf("chunk memory is not locked: %v", flags)
		}
		if lines := d.logged("swapped"); len(lines) > 0 {
			t.Errorf("the daemon warns: %s", lines)
		}
	}
	d.stop()

	// A daemon that may do neither says so, and serves all the same.
	cmd := v.command()
	args := []string{"--memlock=65536:65536", "setpriv", "--bounding-set=-sys_resource,-ipc_lock", cmd.Path}
	limited := exec.Command("prlimit", append(args, cmd.Args[1:]...)...)
	limited.Dir, limited.Env = cmd.Dir, cmd.Env
	d = &daemon{start(t, "bs3", limited)}
	d.expect(`"serving"`)
	d.expect("PR_SET_IO_FLUSHER")
	d.expect("may be swapped out")
	if flags := v.memoryFlags(d.cmd.Process.Pid); slices.Contains(flags, "lo") {
		t.Errorf("chunk memory is locked although it may not be: %v", flags)
	}
	d.stop()
}
