package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/volume"
	"bs3/internal/config"
	"bs3/internal/device/buse"
	"bs3/internal/device/nbd/kernel"
	"bs3/internal/device/ublk"
)

// beDaemon makes the test binary behave as bs3.
const beDaemon = "CLI_TEST_BE_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(beDaemon) != "" {
		os.Exit(Main("v1.2.3-test", os.Args[1:]))
	}
	os.Exit(m.Run())
}

// command is bs3 with args in dir, with the environment of the tests but for
// our own variables, and env.
func command(t *testing.T, dir string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Dir = dir
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BS3_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	// Whatever this machine has, no device is made on it.
	cmd.Env = append(append(append(cmd.Env, "BS3_TRANSPORT=nbd"), env...), beDaemon+"=1")
	return cmd
}

// bs3Main runs bs3 to its end.
func bs3Main(t *testing.T, dir string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(t, dir, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// process is a running bs3.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout bytes.Buffer
	lines  chan string // of standard error
}

func startDaemon(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	d := &process{t: t, cmd: command(t, dir, env, args...), lines: make(chan string, 1000)}
	d.cmd.Stdout = &d.stdout
	r, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() }) // a no-op after a normal end
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			t.Log(s.Text())
			d.lines <- s.Text()
		}
	}()
	return d
}

// expect waits for a line of the log that contains text, for as long as the
// tests may run: how long it takes depends on what else the machine does.
func (d *process) expect(text string) string {
	d.t.Helper()
	late := lastMoment(d.t)
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("the log ended without %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-late:
			d.signal(syscall.SIGQUIT) // its goroutines go to the log
			d.wait()
			d.t.Fatalf("no %q in the log", text)
		}
	}
}

// lastMoment receives when the time that the tests may take is nearly over.
func lastMoment(t *testing.T) <-chan time.Time {
	deadline, ok := t.Deadline()
	if !ok {
		return nil
	}
	return time.After(time.Until(deadline) - 20*time.Second)
}

func (d *process) signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// state is that of all threads of the process, as in /proc/PID/stat, or empty if
// they differ.
func (d *process) state() string {
	d.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", d.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		d.t.Fatalf("the threads of the process: %v, %v", tasks, err)
	}
	all := ""
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			return "" // it has just ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		state, _, _ := strings.Cut(rest, " ")
		if all != "" && state != all {
			return ""
		}
		all = state
	}
	return all
}

// wait waits for the end of the process and returns its exit code.
func (d *process) wait() int {
	d.t.Helper()
	for range d.lines { // all of the log, before Wait closes the pipe
	}
	_ = d.cmd.Wait() // the exit code has it
	return d.cmd.ProcessState.ExitCode()
}

func TestLocalDaemon(t *testing.T) {
	dir := t.TempDir()
	if code, _, errs := bs3Main(t, dir, nil, "info", "--local"); code != exitOther || !strings.Contains(errs, "no volume") {
		t.Errorf("info without a volume: exit %d, %s", code, errs)
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("info made %v", names)
	}

	d := startDaemon(t, dir, []string{"BS3_SISE=1"}, "--local")
	d.expect("BS3_SISE")
	line := d.expect("serving")
	for _, want := range []string{"mode=durable", "epoch=1", ".bs3/store", "volume=", "nbd=nbd+unix:///?socket=" + dir} {
		if !strings.Contains(line, want) {
			t.Errorf("the log's line does not say %s: %s", want, line)
		}
	}
	greeting(t, "unix", filepath.Join(dir, ".bs3/nbd.sock"))

	// Nobody else may have it, neither with this state nor with another.
	if code, _, errs := bs3Main(t, dir, []string{"BS3_NBD_LISTEN=unix:other"}, "--local"); code != exitOther || !strings.Contains(errs, "in use") {
		t.Errorf("a second daemon: exit %d, %s", code, errs)
	}
	if code, _, errs := bs3Main(t, dir, []string{"BS3_STATE_PATH=elsewhere"}, "--local"); code != exitRefused || !strings.Contains(errs, "refused") {
		t.Errorf("a daemon with other state: exit %d, %s", code, errs)
	}
	if info := volumeInfo(t, dir); info.Writer.Released || info.Epoch != 1 || info.Size != 8<<30 || info.Writer.PID != d.cmd.Process.Pid {
		t.Errorf("info while it runs: %+v", info)
	}

	d.signal(syscall.SIGUSR1)
	d.expect("garbage collection compacted=0")
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("a clean stop: exit %d", code)
	}
	if !strings.Contains(d.stdout.String(), "nbdcopy") || !strings.Contains(d.stdout.String(), dir+"/.bs3/nbd.sock") {
		t.Errorf("the hints are: %s", d.stdout.String())
	}
	if _, err := os.Stat(filepath.Join(dir, ".bs3/nbd.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if info := volumeInfo(t, dir); !info.Writer.Released {
		t.Errorf("info after a clean stop: %+v", info)
	}
	code, out, errs := bs3Main(t, dir, nil, "info", "--local")
	if code != exitOK || !strings.Contains(out, "size              8 GB\n") || !strings.Contains(out, "epoch             1, released\n") {
		t.Errorf("info: exit %d, %s%s", code, out, errs)
	}
	if code, _, errs := bs3Main(t, dir, []string{"BS3_BLOCKSIZE=512"}, "--local"); code != exitRefused || !strings.Contains(errs, "block_size") {
		t.Errorf("another block size: exit %d, %s", code, errs)
	}
}

func volumeInfo(t *testing.T, dir string) volume.Info {
	t.Helper()
	code, out, errs := bs3Main(t, dir, nil, "info", "--local", "--json")
	if code != exitOK {
		t.Fatalf("info: exit %d, %s", code, errs)
	}
	var info volume.Info
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return info
}

// greeting checks that an NBD server answers.
func greeting(t *testing.T, network, address string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	hello := make([]byte, 16)
	if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "NBDMAGICIHAVEOPT" {
		t.Errorf("the greeting is %q, %v", hello, err)
	}
}

// The store is gone, so a clean stop waits for ever.
func TestSecondSignalExits(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, nil, "run", "--local")
	d.expect("serving")
	for os.RemoveAll(filepath.Join(dir, ".bs3/store")) != nil { // something was just stored there
		if t.Context().Err() != nil {
			t.FailNow()
		}
	}
	d.signal(os.Interrupt)
	d.expect("closing the volume")
	d.expect("WRN") // that it waits
	// The same signal at once would not count, so it is sent until one does.
	enough := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			_ = d.cmd.Process.Signal(os.Interrupt)
			select {
			case <-enough:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	d.expect("second signal")
	close(enough)
	sender.Wait()
	if code := d.wait(); code != exitOther {
		t.Errorf("exit %d", code)
	}
}

// The reader of the log may die; the device lives on, and stops cleanly.
func TestLogReaderGone(t *testing.T) {
	dir := t.TempDir()
	cmd := command(t, dir, nil, "run", "--local")
	r, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // a no-op after a normal end
	for s := bufio.NewScanner(r); s.Scan() && !strings.Contains(s.Text(), "serving"); {
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []os.Signal{syscall.SIGUSR1, syscall.SIGTERM} { // each is logged
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if v := volumeInfo(t, dir); !v.Writer.Released {
		t.Errorf("the volume is not released: %+v", v.Writer)
	}
}

func TestNullOverTCPAsJSON(t *testing.T) {
	d := startDaemon(t, t.TempDir(), []string{"BS3_NULL=true", "BS3_NBD_LISTEN=tcp:127.0.0.1:0", "BS3_LOG_PRETTY=false", "BS3_PROFILER=true", "BS3_PROFILER_PORT=" + freePort(t)})
	var line struct{ Level, Message, NBD, Store string }
	if err := json.Unmarshal([]byte(d.expect(`"serving"`)), &line); err != nil {
		t.Fatal(err)
	}
	address, ok := strings.CutPrefix(line.NBD, "nbd://")
	if !ok || line.Level != "info" || !strings.Contains(line.Store, "dropped") {
		t.Fatalf("it serves %+v", line)
	}
	greeting(t, "tcp", address)
	d.signal(os.Interrupt)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// The state directory may not exist yet when the socket is made in it.
func TestNullMakesTheSocketsDirectory(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, []string{"BS3_NULL=true", "BS3_STATE_PATH=new/state"})
	d.expect("serving")
	greeting(t, "unix", filepath.Join(dir, "new/state/nbd.sock"))
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
}

func TestRefusedConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "vm.toml")
	if err := os.WriteFile(file, []byte("size = 0\ncolour = 1\nstore = \"dir\"\n[dir]\npath = \"s\"\n[state]\npath = \"s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := bs3Main(t, dir, []string{"BS3_NBD_TLSCERT=c", "BS3_BLOCKSIZE=x"}, "-c", file)
	if code != exitRefused {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{
		"size = 0 (" + file + "):", "colour (" + file + "): no such key", "dir.path = \"s\"",
		"nbd.tls_cert = \"c\" (variable BS3_NBD_TLSCERT): not yet", "block_size = \"x\" (variable BS3_BLOCKSIZE)",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("no %s in %s", want, errs)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("it made %v", names)
	}
	for _, args := range [][]string{{"-c", "missing.toml"}, {"info", "-c", "missing.toml"}} {
		if code, _, errs := bs3Main(t, dir, nil, args...); code != exitRefused || !strings.Contains(errs, "missing.toml") {
			t.Errorf("%v: exit %d, %s", args, code, errs)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	code, _, errs := bs3Main(t, t.TempDir(), []string{"BS3_NULL=true", "BS3_NBD_LISTEN=tcp:" + l.Addr().String()})
	if code != exitOther || !strings.Contains(errs, l.Addr().String()) {
		t.Errorf("exit %d, %s", code, errs)
	}
	// Nor is a volume touched for it.
	dir := t.TempDir()
	code, _, errs = bs3Main(t, dir, []string{"BS3_NBD_LISTEN=tcp:" + l.Addr().String()}, "--local")
	if code != exitOther || !strings.Contains(errs, l.Addr().String()) {
		t.Errorf("with a volume: exit %d, %s", code, errs)
	}
	if _, err := os.Stat(filepath.Join(dir, ".bs3")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made something: %v", err)
	}
}

// A store that is no directory cannot be asked.
func TestInfoOfABadDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"info", "fsck"} {
		for path, want := range map[string]int{"file": exitStore, "missing": exitOther, "empty": exitOther} {
			code, _, errs := bs3Main(t, dir, []string{"BS3_STORE=dir", "BS3_DIR_PATH=" + path}, verb)
			if code != want || !strings.Contains(errs, path) {
				t.Errorf("%s of %s: exit %d, %s", verb, path, code, errs)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the missing directory: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "empty")); err != nil || len(entries) != 0 {
		t.Errorf("something was made in the empty directory: %v, %v", entries, err)
	}
}

// Without the driver of the configured transport nothing is touched.
func TestMissingDriver(t *testing.T) {
	if buse.Available() == nil || ublk.Available() == nil || kernel.Available() == nil {
		t.Skip("this machine has the drivers")
	}
	for transport, remedy := range map[string]string{"buse": "modprobe buse", "ublk": "modprobe ublk_drv", "nbd": "modprobe nbd"} {
		dir := t.TempDir()
		env := []string{"BS3_STORE=dir", "BS3_DIR_PATH=store", "BS3_STATE_PATH=state", "BS3_TRANSPORT=" + transport}
		if transport == "nbd" {
			env = append(env, "BS3_NBD_DEVICE=/dev/nbd0")
		}
		code, _, errs := bs3Main(t, dir, env)
		if code != exitOther || !strings.Contains(errs, remedy) {
			t.Errorf("%s: exit %d, %s", transport, code, errs)
		}
		if names, _ := filepath.Glob(dir + "/*"); len(names) != 0 {
			t.Errorf("%s: there is %v", transport, names)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	if code, out, _ := bs3Main(t, dir, nil, "version"); code != exitOK || out != "bs3 v1.2.3-test\n" {
		t.Errorf("version: exit %d, %s", code, out)
	}
	for _, args := range [][]string{{"nonsense"}, {"--nonsense"}, {"run", "x"}, {"--local", "-c", "x"}} {
		if code, _, errs := bs3Main(t, dir, nil, args...); code != exitOther || !strings.HasPrefix(errs, "bs3: ") {
			t.Errorf("%v: exit %d, %s", args, code, errs)
		}
	}
}

func TestHelp(t *testing.T) {
	code, out, _ := bs3Main(t, t.TempDir(), []string{"BS3_S3_SECRETKEY=hunter2", "BS3_SIZE=nonsense"}, "-h")
	if code != exitOK {
		t.Errorf("exit %d", code)
	}
	for _, v := range config.Variables() {
		if !strings.Contains(out, fmt.Sprintf("%s (%s, %s)", v.Env, v.Key, v.Default)) {
			t.Errorf("%s is not in the help", v.Env)
		}
	}
	for _, e := range exits() {
		if !strings.Contains(out, fmt.Sprintf("%2d  %s", e.code, e.meaning)) {
			t.Errorf("exit code %d is not in the help", e.code)
		}
	}
	if strings.Contains(out, "hunter2") {
		t.Error("a secret is in the help")
	}
}

func TestReadmeListsTheExitCodes(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exits() {
		if !strings.Contains(string(text), fmt.Sprintf("| %d | %s |", e.code, e.meaning)) {
			t.Errorf("README.md does not say that %d means: %s", e.code, e.meaning)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fmt.Errorf("y: %w", volume.ErrStore), 69},
		{errors.Join(errors.New("x"), fmt.Errorf("y: %w", volume.ErrStore)), 69},
		{fmt.Errorf("y: %w", volume.ErrFenced), 76},
		{errors.Join(volume.ErrStore, volume.ErrFenced), 76},
		{fmt.Errorf("y: %w", volume.ErrRefused), 78},
		{fmt.Errorf("y: %w", &config.Error{}), 78},
		{volume.ErrNoVolume, 1},
		{(&fsck.Report{Errors: 1}).Err(), 65},
		{volume.ErrMoving, 1},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: exit code %d, want %d", test.err, got, test.want)
		}
	}
	for _, e := range exits() {
		if e.code == 2 {
			t.Error("2 is the code of a panic")
		}
	}
}
