package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Below calls f for each block device on the way to path: those of all file
// systems that the path crosses, by their names in sysfs (ublkb0), with what they
// are made of (partitions, device mapper, RAID, files behind loop devices). It
// ends with the first error of f, before it looks into a file system whose device
// f rejects: if that device has no server, the look would never end. A name that
// does not exist yet belongs to the file system that would get it.
func Below(path string, f func(device string) error) error {
	return system{mountinfo: "/proc/self/mountinfo", sys: "/sys"}.below(path, f)
}

// system says where Linux describes mounts and devices; tests use their own.
type system struct {
	mountinfo, sys string
}

// mostLinks bounds the symbolic links in a path, as in path_resolution(7).
const mostLinks = 40

func (s system) below(path string, f func(device string) error) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	// Of several mounts at one place the last one counts.
	enter := func(at string) error {
		for _, m := range slices.Backward(mounts) {
			if m.at == at {
				return s.each(m, f)
			}
		}
		return nil
	}
	at, rest, links := "/", split(path), 0
	if err := enter(at); err != nil {
		return err
	}
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if err := enter(next); err != nil {
			return err
		}
		info, err := os.Lstat(next)
		if err != nil {
			return nil //nolint:nilerr // it does not exist, or its user will get the error
		}
		if info.Mode().Type() != fs.ModeSymlink {
			at = next
			continue
		}
		if links++; links > mostLinks {
			return fmt.Errorf("%s: too many symbolic links", path)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(at, target)
		}
		at, rest = "/", append(split(filepath.Clean(target)), rest...)
	}
	return nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// mount is a line of proc_pid_mountinfo(5).
type mount struct {
	at     string // where it is mounted
	number string // MAJOR:MINOR of the device, the major 0 if it has none
	source string
}

func (s system) mounts() ([]mount, error) {
	text, err := os.ReadFile(s.mountinfo)
	if err != nil {
		return nil, err
	}
	var list []mount
	for line := range strings.Lines(string(text)) {
		// ID, parent, device, root, mount point, options, optional fields, "-", type, source
		before, after, _ := strings.Cut(line, " - ")
		one, other := strings.Fields(before), strings.Fields(after)
		if len(one) < 5 || len(other) < 2 {
			return nil, fmt.Errorf("%s: malformed line %q", s.mountinfo, line)
		}
		list = append(list, mount{at: unescape(one[4]), number: one[2], source: unescape(other[1])})
	}
	return list, nil
}

// unescape undoes the kernel's escapes in paths.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// each calls f for the devices of one mount.
func (s system) each(m mount, f func(device string) error) error {
	dir, err := filepath.EvalSymlinks(filepath.Join(s.sys, "dev/block", m.number))
	if errors.Is(err, fs.ErrNotExist) {
		// btrfs has no device number; the source is one of its devices.
		if !strings.HasPrefix(m.source, "/dev/") {
			return nil
		}
		source, err := filepath.EvalSymlinks(m.source)
		if err != nil {
			return nil //nolint:nilerr // whatever it named is gone
		}
		dir, err = filepath.EvalSymlinks(filepath.Join(s.sys, "class/block", filepath.Base(source)))
		if err != nil {
			return nil //nolint:nilerr // not a block device
		}
		return s.stack(dir, f)
	}
	if err != nil {
		return err
	}
	return s.stack(dir, f)
}

// stack calls f for the device that dir, in sysfs, describes, and for those that
// it is made of.
func (s system) stack(dir string, f func(device string) error) error {
	if err := f(filepath.Base(dir)); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		if err := f(filepath.Base(filepath.Dir(dir))); err != nil {
			return err
		}
		dir = filepath.Dir(dir)
	}
	if file, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
		return s.below(strings.TrimSuffix(string(file), "\n"), f)
	}
	slaves, err := filepath.Glob(filepath.Join(dir, "slaves", "*"))
	if err != nil {
		return err
	}
	for _, slave := range slaves {
		part, err := filepath.EvalSymlinks(slave)
		if err != nil {
			return err
		}
		if err := s.stack(part, f); err != nil {
			return err
		}
	}
	return nil
}
