package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// linux is a system in a directory.
type linux struct {
	t *testing.T
	system
	root string // of paths
}

func newLinux(t *testing.T) *linux {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := &linux{t: t, system: system{mountinfo: filepath.Join(dir, "mountinfo"), sys: filepath.Join(dir, "sys")}, root: filepath.Join(dir, "root")}
	l.mount("/", "254:0", "/dev/vda")
	l.device("vda", "254:0", "")
	l.mkdir(l.root)
	return l
}

func (l *linux) mkdir(path string) {
	l.t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		l.t.Fatal(err)
	}
}

func (l *linux) write(path, text string) {
	l.t.Helper()
	l.mkdir(filepath.Dir(path))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *linux) link(target, path string) {
	l.t.Helper()
	l.mkdir(filepath.Dir(path))
	if err := os.Symlink(target, path); err != nil {
		l.t.Fatal(err)
	}
}

// device makes a device in sysfs: a partition if it has a disk, made of parts.
func (l *linux) device(name, number, disk string, parts ...string) {
	l.t.Helper()
	dir := filepath.Join(l.sys, "devices/virtual/block", disk, name)
	l.mkdir(filepath.Join(dir, "slaves"))
	if disk != "" {
		l.write(filepath.Join(dir, "partition"), "1\n")
	}
	l.link(dir, filepath.Join(l.sys, "dev/block", number))
	l.link(dir, filepath.Join(l.sys, "class/block", name))
	for _, part := range parts {
		l.link(filepath.Join(l.sys, "class/block", part), filepath.Join(dir, "slaves", part))
	}
}

// mount adds a line to mountinfo; at is below root, or "/".
func (l *linux) mount(at, number, source string) {
	l.t.Helper()
	if at != "/" {
		at = filepath.Join(l.root, at)
		l.mkdir(at)
	}
	f, err := os.OpenFile(l.mountinfo, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := f.WriteString("36 35 " + number + " / " + strings.ReplaceAll(at, " ", `\040`) + " rw,noatime shared:1 - ext4 " + source + " rw\n"); err != nil {
		l.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *linux) expect(path string, want ...string) {
	l.t.Helper()
	var got []string
	err := l.below(filepath.Join(l.root, path), func(device string) error {
		got = append(got, device)
		return nil
	})
	if err != nil || !slices.Equal(got, want) {
		l.t.Errorf("below %s: %q, %v; want %q", path, got, err, want)
	}
}

func TestBelow(t *testing.T) {
	l := newLinux(t)
	l.device("ublkb0", "259:0", "")
	l.device("ublkb0p1", "259:1", "ublkb0")
	l.mount("data", "259:1", "/dev/ublkb0p1")
	l.mount("with blank", "259:0", "/dev/ublkb0")
	l.mount("run", "0:22", "tmpfs")
	l.mount("data/run", "0:23", "tmpfs")
	l.expect("", "vda")
	l.expect("srv/there/is/no/such", "vda")
	l.expect("data", "vda", "ublkb0p1", "ublkb0")
	l.expect("data/state/new", "vda", "ublkb0p1", "ublkb0")
	l.expect("with blank/state", "vda", "ublkb0")
	l.expect("database", "vda")
	l.expect("run/bs3", "vda")
	l.expect("data/run/x", "vda", "ublkb0p1", "ublkb0") // on the way

	// A mount hides what is below it.
	l.mount("data", "0:24", "tmpfs")
	l.expect("data/state", "vda")

	// Symbolic links, also with .. and to what does not exist.
	l.mount("volume", "259:0", "/dev/ublkb0")
	l.mkdir(filepath.Join(l.root, "var/lib"))
	l.link("../../volume/bs3", filepath.Join(l.root, "var/lib/bs3"))
	l.expect("var/lib/bs3/state", "vda", "ublkb0")
	l.link(filepath.Join(l.root, "volume"), filepath.Join(l.root, "absolute"))
	l.expect("absolute", "vda", "ublkb0")
	l.write(filepath.Join(l.root, "file"), "")
	l.expect("file/x", "vda")
	l.link("loop", filepath.Join(l.root, "loop"))
	if err := l.below(filepath.Join(l.root, "loop"), func(string) error { return nil }); err == nil {
		t.Error("a link to itself was followed to an end")
	}
}

func TestBelowStacks(t *testing.T) {
	l := newLinux(t)
	l.device("nbd0", "43:0", "")
	l.device("sdb", "8:16", "")
	l.device("md0", "9:0", "", "nbd0", "sdb")
	l.device("dm-0", "253:0", "", "md0")
	l.mount("lvm", "253:0", "/dev/mapper/vg-lv")
	l.expect("lvm/x", "vda", "dm-0", "md0", "nbd0", "sdb")

	// A file behind a loop device, on a file system on a device.
	l.device("loop0", "7:0", "")
	l.write(filepath.Join(l.sys, "devices/virtual/block/loop0/loop/backing_file"), filepath.Join(l.root, "lvm/image")+"\n")
	l.mount("image", "7:0", "/dev/loop0")
	l.expect("image/x", "vda", "loop0", "vda", "dm-0", "md0", "nbd0", "sdb")

	// btrfs: a number without a device, and the name of one.
	dev := filepath.Join(l.root, "dev")
	l.write(filepath.Join(dev, "nbd0"), "")
	l.mount("btrfs", "0:40", filepath.Join(dev, "nbd0")) // not below /dev: something else's name
	l.expect("btrfs", "vda")
	if _, err := os.Stat("/dev/null"); err == nil {
		l.device("null", "99:0", "")
		l.mount("btrfs", "0:40", "/dev/null")
		l.expect("btrfs/x", "vda", "null")
	}
}

// Below looks at nothing behind a device that f rejects.
func TestBelowEnds(t *testing.T) {
	l := newLinux(t)
	l.device("ublkb0", "259:0", "")
	l.mount("dead", "259:0", "/dev/ublkb0")
	// A look at anything below would find this and fail otherwise.
	l.link("loop", filepath.Join(l.root, "dead/loop"))
	own := errors.New("own device")
	err := l.below(filepath.Join(l.root, "dead/loop"), func(device string) error {
		if device == "ublkb0" {
			return own
		}
		return nil
	})
	if !errors.Is(err, own) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(l.mountinfo, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.below("/", func(string) error { return nil }); err == nil {
		t.Error("a malformed mountinfo was accepted")
	}
}

// The real system: this directory is on some device.
func TestBelowReally(t *testing.T) {
	if err := Below(".", func(device string) error {
		if _, err := os.Stat(filepath.Join("/sys/class/block", device)); err != nil {
			t.Errorf("there is no device %s: %v", device, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
