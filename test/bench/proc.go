package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of times in /proc: USER_HZ, which is 100 everywhere.
const clockTick = 10 * time.Millisecond

// process is a program that runs beside us.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex
	said bytes.Buffer
}

// start starts a program. It dies with us.
func start(ctx context.Context, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, name, args...), done: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BS3_") {
			p.cmd.Env = append(p.cmd.Env, e)
		}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // how it ended is asked of its state
	}()
	return p, nil
}

// Write keeps what the program says.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// healthy is an error if the program has told of one. fio does not notice a
// flush that fails, so this is the only way to know.
func (p *process) healthy() error {
	said := p.output()
	// As bs3 and as nbdkit say it.
	if strings.Contains(said, `"level":"error"`) || strings.Contains(said, ": error: ") {
		return fmt.Errorf("%s says:\n%s", filepath.Base(p.cmd.Path), said)
	}
	return nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends it with SIGTERM and waits; a program that does not end within a
// minute, or not with exit code 0 or of the signal, is an error.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.kill()
		return fmt.Errorf("%s does not end:\n%s", p.cmd.Path, p.output())
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if p.cmd.ProcessState.Success() || ok && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return fmt.Errorf("%s: %v\n%s", p.cmd.Path, p.cmd.ProcessState, p.output())
}

// kill ends it at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// cpu is the processor time it has used so far.
func (p *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		return 0, err
	}
	// proc(5): the name, in parentheses, may have blanks; utime and stime are
	// the 12th and 13th fields after it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// exactCPU is cpu to the nanosecond, but without threads that have ended.
func (p *process) exactCPU() (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid()))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		// Time on a processor, time waiting for one, time slices.
		first, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// share is how many processors it uses on average for the time d, after a wait.
func (p *process) share(ctx context.Context, wait, d time.Duration) (float64, error) {
	if err := pause(ctx, wait); err != nil {
		return 0, err
	}
	began := time.Now()
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return (after - before).Seconds() / time.Since(began).Seconds(), err
}

// resident is the resident memory of its mappings but those of files below
// the directory except, in bytes.
func (p *process) resident(except string) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", p.pid()))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	counts := true
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		fields := strings.Fields(line)
		switch {
		case fields[0] == "Rss:" && counts:
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, err
			}
			sum += kb << 10
		case !strings.HasSuffix(fields[0], ":"): // the first line of a mapping
			counts = !strings.Contains(line, except)
		}
	}
	return sum, nil
}

// peak is the most resident memory since resetPeak, in bytes.
func (p *process) peak() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmHWM in /proc")
}

func (p *process) resetPeak() error {
	// proc(5), clear_refs: 5 resets the peak.
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid()), []byte("5"), 0)
}

// ownCPU is the processor time that this process has used.
func ownCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it cannot fail for ourselves
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// waitSocket waits until somebody listens on the unix socket. A connection that
// says nothing would be an error to nbdkit.
func (p *process) waitSocket(ctx context.Context, path string) error {
	return p.wait(ctx, "does not listen on "+path, func() bool {
		text, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(text)) {
			// Number, references, protocol, flags (__SO_ACCEPTCON), …, path.
			f := strings.Fields(line)
			if f[len(f)-1] == path && f[3] == "00010000" {
				return true
			}
		}
		return false
	})
}

// startLimit is generous: it ends a hang, and measures nothing.
const startLimit = 2 * time.Minute

// wait asks until ready says yes.
func (p *process) wait(ctx context.Context, what string, ready func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(startLimit)
	defer late.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s has ended: %v\n%s", filepath.Base(p.cmd.Path), p.cmd.ProcessState, p.output())
		case <-late.C:
			return fmt.Errorf("%s %s\n%s", filepath.Base(p.cmd.Path), what, p.output())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// command runs a program to its end and gives what it says.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", cmd, err, out, errs.String())
	}
	return string(out), nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// freePort is a TCP port of 127.0.0.1 that nobody listens on just now.
func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
