package buse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	lib "github.com/asch/buse/lib/go/buse"
	"golang.org/x/sys/unix"

	"bs3/internal/device/blockdev"
)

// Why Run, which wraps these, cannot make a device.
var (
	// ErrNoModule: the kernel module is not loaded.
	ErrNoModule = errors.New("the kernel module buse is not loaded")
	// ErrExists: there is already a device of that number.
	ErrExists = errors.New("the BUSE device already exists")
	// ErrMemory: the machine has too little memory for the buffers.
	ErrMemory = errors.New("too little memory is available")
)

// Available returns nil if the kernel module is loaded, or why it cannot be used.
// Errors: ErrNoModule.
func Available() error { return linux().module() }

// Check returns nil if Run could make a device now, and if the caller could then
// still take the given bytes of memory, or else the error that Run would return. It
// touches nothing. Errors: ErrNoModule, ErrExists, ErrMemory.
func Check(opts Options, beside int64) error { return linux().check(opts, beside) }

// kernelDevice is a device of the library.
type kernelDevice interface {
	// Run serves the queues until the device is stopped and all its requests are
	// done.
	Run()
	// StopDevice has the module refuse further requests and end the queues when
	// it has handed over the rest.
	StopDevice() error
	// RemoveDevice removes a stopped device.
	RemoveDevice() error
	// queueCount returns the number of queues for reads, which is also that for
	// writes.
	queueCount() int
}

// system is the machine: the places where the kernel shows its devices, and the
// library. Tests use their own.
type system struct {
	configfs string // where configfs is mounted
	dev      string // where the devices are
	block    string // sysfs' block devices
	meminfo  string // /proc/meminfo
	create   func(lib.BuseReadWriter, lib.Options) (kernelDevice, error)
	hang     func() // never returns; see requests

	// What package blockdev does with a block device, by its path.
	writeBack    func(path string) error
	setScheduler func(path string, on bool) error
}

func linux() system {
	return system{
		configfs: "/sys/kernel/config", // the library knows no other
		dev:      "/dev",
		block:    "/sys/block",
		meminfo:  "/proc/meminfo",
		create: func(rw lib.BuseReadWriter, o lib.Options) (kernelDevice, error) {
			dev, err := lib.New(rw, o)
			return &libraryDevice{dev}, err
		},
		hang:         func() { select {} },
		writeBack:    blockdev.WriteBack,
		setScheduler: blockdev.SetScheduler,
	}
}

type libraryDevice struct{ lib.Buse }

func (d *libraryDevice) queueCount() int { return d.Options.Threads }

func name(major int) string { return "buse" + strconv.Itoa(major) }

// blockDevice returns the path of the block device.
func (s system) blockDevice(major int) string { return filepath.Join(s.dev, name(major)) }

// directory returns the directory with the module's settings of a device. Making it
// makes the device.
func (s system) directory(major int) string {
	return filepath.Join(s.configfs, "buse", strconv.Itoa(major))
}

// module returns nil if the module is loaded.
func (s system) module() error {
	if _, err := os.Stat(filepath.Join(s.configfs, "buse")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the kernel module buse: %w", err)
	}
	// The mount point is there whenever the kernel has configfs, but shows what
	// subsystems have registered only once configfs is mounted.
	if _, err := os.Stat(s.configfs); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w, nor is configfs: modprobe configfs; mount -t configfs none %s; modprobe buse", ErrNoModule, s.configfs)
	}
	return fmt.Errorf("%w, or configfs is not mounted on %s: mount -t configfs none %[2]s; modprobe buse "+
		"(it builds only for kernels around 5.11; newer ones have ublk and nbd)", ErrNoModule, s.configfs)
}

// check is Check.
func (s system) check(opts Options, beside int64) error {
	if err := s.vacant(opts.Major); err != nil {
		return err
	}
	return s.memory(opts.Memory(), beside)
}

// memory returns nil if the machine has the bytes that the queues need, and beside
// them the bytes that something else needs. The library would look only at how much
// memory there is in all, and the module would take it from whatever has it: the
// kernel would kill this process, among others, half-way.
func (s system) memory(queues, beside int64) error {
	available, err := s.availableMemory()
	if err != nil {
		return fmt.Errorf("find out how much memory is available for a BUSE device: %w", err)
	}
	if queues+beside > available {
		return fmt.Errorf("%w: the queues share %d MB with the kernel, %d MB are needed beside, and %d MB are available",
			ErrMemory, inMB(queues), inMB(beside), available>>20)
	}
	return nil
}

// inMB rounds bytes up to MiB.
func inMB(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }

// availableMemory returns how many bytes can be taken without harm, as the kernel
// estimates it.
func (s system) availableMemory() (int64, error) {
	text, err := os.ReadFile(s.meminfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no MemAvailable", s.meminfo)
}

// vacant returns nil if a device of this number can be made.
func (s system) vacant(major int) error {
	if err := s.module(); err != nil {
		return err
	}
	dir := s.directory(major)
	switch _, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for the BUSE device %s: %w", name(major), err)
	}
	if power, err := os.ReadFile(filepath.Join(dir, "power")); err == nil && strings.TrimSpace(string(power)) == "0" {
		return fmt.Errorf("%w: %s is switched off. If no other daemon is just making or removing it, clear it with: rmdir %s",
			ErrExists, name(major), dir)
	}
	return fmt.Errorf("%w: another daemon serves %s, or one that was killed has left it behind. %s", ErrExists, name(major), s.remedy(major))
}

// remedy returns how to get rid of a device that nobody serves.
func (s system) remedy(major int) string {
	return fmt.Sprintf("If no daemon serves it, nothing takes what is written to it, although it acknowledges writes. "+
		"Unmount what is on %s, then: echo 0 > %[2]s/power && rmdir %[2]s. "+
		"(Not rmdir first. If requests are left in the device, the echo hangs for good, and only a reboot clears the device. "+
		"Do not interrupt the echo: it would spin in the kernel instead.) "+
		"Another number (major) can be used at once", s.blockDevice(major), s.directory(major))
}

// left returns the error of a device that cannot be removed, for the given reason.
func (s system) left(major int, reason error) error {
	return fmt.Errorf("BUSE device %s is left behind with requests that cannot be done: %w. When this process has ended: %s",
		s.blockDevice(major), reason, s.remedy(major))
}

// explain removes what create has left, and returns its error with an explanation.
func (s system) explain(major int, err error) error {
	dir := s.directory(major)
	var path *fs.PathError
	if errors.As(err, &path) && filepath.Dir(path.Path) == dir {
		// The directory was made, so it is ours.
		if removed := unix.Rmdir(dir); removed != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", dir, removed))
		}
		setting := filepath.Base(path.Path)
		switch {
		case setting == "power" && errors.Is(err, unix.ENOMEM):
			err = fmt.Errorf("%w (the module needs the write and read buffers for each thread, and in one piece 4 bytes for each "+
				"collision area, and 8 for each block of a read buffer: use smaller buffers, or larger collision areas)", err)
		case setting != "power" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
			err = fmt.Errorf("%w (the loaded module has no such setting: it is of another version than the library)", err)
		}
	} else if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: somebody else made it first: %w", ErrExists, err)
	}
	return fmt.Errorf("make BUSE device %s: %w", name(major), err)
}

// complete returns nil if the queues can be opened.
func (s system) complete(major, queues int) error {
	for i := range queues {
		for _, kind := range []string{"r", "w"} {
			path := filepath.Join(s.dev, fmt.Sprintf("%s-%s%d", name(major), kind, i))
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("queue of BUSE device %s: %w", name(major), err)
			}
		}
	}
	return nil
}

// shown reports whether the block device has appeared and has its size.
func (s system) shown(major int) bool {
	size, err := os.ReadFile(filepath.Join(s.block, name(major), "size"))
	return err == nil && strings.TrimSpace(string(size)) != "0"
}
