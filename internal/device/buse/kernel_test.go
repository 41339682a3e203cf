package buse

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	lib "github.com/asch/buse/lib/go/buse"
	"golang.org/x/sys/unix"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// says checks that err is target, and what its message contains.
func says(t *testing.T, err, target error, texts ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func TestNoModule(t *testing.T) {
	m := newModule(t)
	if err := m.sys.module(); err != nil {
		t.Errorf("module: %v", err)
	}
	for _, missing := range []string{filepath.Join(m.sys.configfs, "buse"), m.sys.configfs} {
		if err := os.Remove(missing); err != nil {
			t.Fatal(err)
		}
		err := newDevice(newMemory(), small(), m.sys).Run(t.Context())
		says(t, err, ErrNoModule, "modprobe buse", "mount -t configfs none "+m.sys.configfs)
	}
}

// The library itself, on a machine without the module.
func TestLinuxWithoutModule(t *testing.T) {
	if Available() == nil {
		t.Skip("the module is loaded")
	}
	says(t, New(newMemory(), small()).Run(t.Context()), ErrNoModule)
	if _, err := linux().create(&callbacks{}, lib.Options{Threads: 1, BlockSize: 512, WriteChunkSize: 512}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the library made a device: %v", err)
	}
}

// A device that a killed daemon left, or that another serves.
func TestDeviceExists(t *testing.T) {
	m := newModule(t)
	dir := m.sys.directory(4)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.sys.create = func(lib.BuseReadWriter, lib.Options) (kernelDevice, error) {
		t.Error("a device was made")
		return nil, errIO
	}
	opts := small()
	opts.Major = 4
	for power, texts := range map[string][]string{
		"1\n": {
			"buse4", "killed", "acknowledges", "Unmount", "echo 0 > " + dir + "/power && rmdir " + dir,
			"only a reboot", "Do not interrupt the echo", "major",
		},
		"0\n": {"buse4", "switched off", "rmdir " + dir},
	} {
		if err := os.WriteFile(filepath.Join(dir, "power"), []byte(power), 0o600); err != nil {
			t.Fatal(err)
		}
		says(t, newDevice(newMemory(), opts, m.sys).Run(t.Context()), ErrExists, texts...)
		says(t, m.sys.check(opts, 0), ErrExists, texts...)
	}
	opts.Major = 5
	if err := m.sys.check(opts, 0); err != nil {
		t.Errorf("another number: %v", err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("somebody's device was touched: %v", err)
	}
}

// Buffers for which there is no memory are refused, before the kernel kills for
// them.
func TestMemoryIsShort(t *testing.T) {
	m := newModule(t)
	opts := small()
	need := opts.Memory()
	if want := int64(opts.queues()) * 96 << 10; need != want {
		t.Errorf("%d bytes are needed, want %d", need, want)
	}
	m.hasMemory(t, need-1024)
	says(t, m.sys.check(opts, 0), ErrMemory, "available")
	says(t, newDevice(newMemory(), opts, m.sys).Run(t.Context()), ErrMemory)
	if m.killed {
		t.Error("the kernel has killed for the buffers")
	}
	m.hasMemory(t, need+8<<20)
	if err := m.sys.check(opts, 8<<20); err != nil {
		t.Errorf("there is enough: %v", err)
	}
	says(t, m.sys.check(opts, 9<<20), ErrMemory, "9 MB are needed beside, and 8 MB are available")
	for text, want := range map[string]string{
		"MemTotal: 1 kB\n":               "has no MemAvailable",
		"MemAvailable: 99999999999 MB\n": "has no MemAvailable",
		"MemAvailable: x kB\n":           "invalid syntax",
	} {
		if err := os.WriteFile(m.sys.meminfo, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.sys.check(opts, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if available, err := linux().availableMemory(); err != nil || available <= 0 {
		t.Errorf("this machine: %d bytes, %v", available, err)
	}
}

// The module gets everything that it needs in one piece for what is accepted, and
// no less is accepted. What it does not get costs memory for good.
func TestWhatIsAcceptedCanBeMade(t *testing.T) {
	m := newModule(t)
	m.hasMemory(t, 1<<40)
	for _, size := range []int64{1 << 30, 1 << 40, 1<<40 + 1<<30, 2 << 40, 3 << 40, 1 << 50} {
		for area := int64(4096); area <= maxCollisionArea; area *= 2 {
			for _, block := range []int{512, 4096} {
				for buffer := int64(32 << 20); buffer <= maxWriteBuffer; buffer *= 2 {
					o := Options{Threads: 1, WriteBuffer: buffer, ReadBuffer: buffer, CollisionArea: area}
					d := newDevice(devtest.NewMemory(device.Geometry{Size: size, BlockSize: block}), o, m.sys)
					refused, failed := d.opts.Validate(d.geometry), m.allocate(d.library())
					if (refused == nil) != (failed == nil) {
						t.Fatalf("size %d, area %d, blocks of %d, buffers of %d: refused with %v, and the module says %v", size, area, block, buffer, refused, failed)
					}
				}
			}
		}
	}
	leaked := m.leaked
	big := devtest.NewMemory(device.Geometry{Size: 2 << 40, BlockSize: 4096})
	err := newDevice(big, Options{}, m.sys).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "collision area 1048576: must be at least 2097152 for a size of 2199023255552") {
		t.Errorf("2 TiB with the defaults: %v", err)
	}
	if m.leaked != leaked {
		t.Errorf("%d bytes of memory are lost", m.leaked-leaked)
	}
}

// A scheduler that the kernel only offers orders nothing.
func TestScheduler(t *testing.T) {
	for on, want := range map[bool]string{true: "mq-deadline", false: "none"} {
		opts := small()
		opts.Scheduler = on
		s := serve(t, newModule(t), newMemory(), opts)
		if s.scheduler != want {
			t.Errorf("scheduler %v: it is %s, want %s", on, s.scheduler, want)
		}
		if err := s.end(t); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// The library leaves the directory behind when it fails; it is ours only from
// the moment at which a setting fails.
func TestDeviceCannotBeMade(t *testing.T) {
	setting := func(name string, errno error) func(dir string) error {
		return func(dir string) error {
			return &fs.PathError{Op: "write", Path: filepath.Join(dir, name), Err: errno}
		}
	}
	for name, test := range map[string]struct {
		fail   func(dir string) error
		is     error
		text   string
		theirs bool
	}{
		"no memory":     {fail: setting("power", unix.ENOMEM), is: unix.ENOMEM, text: "larger collision areas"},
		"older module":  {fail: setting("io_opt", unix.EACCES), is: unix.EACCES, text: "another version"},
		"power refused": {fail: setting("power", unix.EINVAL), is: unix.EINVAL, text: "make BUSE device buse0"},
		"too late": {fail: func(dir string) error { return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.EEXIST} }, is: ErrExists,
			text: "made it first", theirs: true},
		"too late by name": {fail: func(string) error { return errIO }, is: errIO, text: "make BUSE device buse0", theirs: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModule(t)
			dir := m.sys.directory(0)
			m.sys.create = func(lib.BuseReadWriter, lib.Options) (kernelDevice, error) {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				return nil, test.fail(dir)
			}
			says(t, newDevice(newMemory(), small(), m.sys).Run(t.Context()), test.is, test.text)
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) == test.theirs {
				t.Errorf("directory of the device afterwards: %v", err)
			}
		})
	}
}

// The library panics when it cannot open a queue.
func TestQueueIsMissing(t *testing.T) {
	m := newModule(t)
	create := m.sys.create
	m.sys.create = func(rw lib.BuseReadWriter, o lib.Options) (kernelDevice, error) {
		dev, err := create(rw, o)
		return dev, errors.Join(err, os.Remove(filepath.Join(m.sys.dev, "buse0-w2")))
	}
	says(t, newDevice(newMemory(), small(), m.sys).Run(t.Context()), fs.ErrNotExist, "buse0-w2")
	if !m.stopped || !m.removed {
		t.Error("the device was left behind")
	}
}

func TestLibraryGetsAllOptions(t *testing.T) {
	m := newModule(t)
	var got lib.Options
	m.sys.create = func(_ lib.BuseReadWriter, o lib.Options) (kernelDevice, error) {
		got = o
		return nil, errIO
	}
	vol := devtest.NewMemory(device.Geometry{Size: 64 << 20, BlockSize: 4096, IOMin: 8192, IOOpt: 65536})
	opts := Options{
		Major: 3, Threads: 5, CPUsPerNode: 2, QueueDepth: 7, Scheduler: true,
		WriteBuffer: 16 << 20, ReadBuffer: 8 << 20, ChunkSize: 2 << 20, CollisionArea: 4 << 20,
	}
	says(t, newDevice(vol, opts, m.sys).Run(t.Context()), errIO)
	want := lib.Options{
		Durable: true, WriteChunkSize: 2 << 20, BlockSize: 4096, IOMin: 8192, IOOpt: 65536, Threads: 5, Major: 3,
		WriteShmSize: 16 << 20, ReadShmSize: 8 << 20, Size: 64 << 20, CollisionArea: 4 << 20, QueueDepth: 7,
		Scheduler: true, CPUsPerNode: 2,
	}
	if got != want {
		t.Errorf("the library gets %+v, want %+v", got, want)
	}
	for i, v := 0, reflect.ValueOf(got); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not set by this test", v.Type().Field(i).Name)
		}
	}
}

func TestValidate(t *testing.T) {
	g := device.Geometry{Size: 64 << 20, BlockSize: 4096}
	if err := (Options{}).Validate(g); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	if err := small().Validate(device.Geometry{Size: 1 << 20, BlockSize: 512}); err != nil {
		t.Errorf("the least: %v", err)
	}
	for name, test := range map[string]struct {
		change func(o *Options, g *device.Geometry)
		says   string
	}{
		"block size":     {func(_ *Options, g *device.Geometry) { g.BlockSize = 1024 }, "block size 1024"},
		"read-only":      {func(_ *Options, g *device.Geometry) { g.ReadOnly = true }, "read-only"},
		"size":           {func(_ *Options, g *device.Geometry) { g.Size -= 4096 }, "multiple of the collision area"},
		"no size":        {func(_ *Options, g *device.Geometry) { g.Size = 0 }, "size 0"},
		"io_min":         {func(_ *Options, g *device.Geometry) { g.IOMin = 512 }, "smallest request 512"},
		"io_opt":         {func(_ *Options, g *device.Geometry) { g.IOOpt = 6000 }, "preferred request 6000"},
		"major":          {func(o *Options, _ *device.Geometry) { o.Major = 65536 }, "number of the device 65536"},
		"threads":        {func(o *Options, _ *device.Geometry) { o.Threads = -1 }, "threads -1"},
		"node":           {func(o *Options, _ *device.Geometry) { o.CPUsPerNode = -1 }, "CPUs of a node -1"},
		"depth":          {func(o *Options, _ *device.Geometry) { o.QueueDepth = 10241 }, "queue depth 10241"},
		"chunk":          {func(o *Options, _ *device.Geometry) { o.ChunkSize = 256 << 10 }, "chunk size 262144"},
		"negative chunk": {func(o *Options, _ *device.Geometry) { o.ChunkSize = -1 << 20 }, "chunk size -1048576"},
		"buffer":         {func(o *Options, _ *device.Geometry) { o.WriteBuffer = 34 << 20 }, "multiple of the chunk size"},
		"large buffer":   {func(o *Options, _ *device.Geometry) { o.WriteBuffer = 8 << 30 }, "write buffer 8589934592"},
		"read buffer":    {func(o *Options, _ *device.Geometry) { o.ReadBuffer = 4 << 20 }, "at least two chunks"},
		"large read":     {func(o *Options, _ *device.Geometry) { o.ReadBuffer = 64 << 20 }, "at most the write buffer"},
		"pages":          {func(o *Options, _ *device.Geometry) { o.ReadBuffer = 16<<20 + 512 }, "read buffer 16777728"},
		"area":           {func(o *Options, _ *device.Geometry) { o.CollisionArea = 3 << 20 }, "collision area 3145728"},
		"small area":     {func(o *Options, _ *device.Geometry) { o.CollisionArea = 512 }, "collision area 512"},
		"large area":     {func(o *Options, _ *device.Geometry) { o.CollisionArea = 2 << 30 }, "collision area 2147483648"},
		"areas":          {func(o *Options, g *device.Geometry) { g.Size = 1<<40 + 1<<20 }, "collision area 1048576: must be at least"},
		"read blocks": {func(o *Options, g *device.Geometry) {
			g.BlockSize, o.WriteBuffer, o.ReadBuffer = 512, 512<<20, 512<<20
		}, "read buffer 536870912: must be at most 268435456 with blocks of 512"},
		"area above size": {func(o *Options, _ *device.Geometry) { o.CollisionArea = 128 << 20 }, "size 67108864"},
	} {
		o, g := Options{}, g
		test.change(&o, &g)
		if err := o.Validate(g); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	both := Options{Threads: -1, Major: -2}.Validate(g)
	if both == nil || strings.Count(both.Error(), "\n") != 1 {
		t.Errorf("two mistakes are not told at once: %v", both)
	}
	m := newModule(t)
	if err := newDevice(newMemory(), Options{Threads: -1}, m.sys).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "threads -1") {
		t.Errorf("Run: %v", err)
	}
}
