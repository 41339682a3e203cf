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

// process is a program that runs beside this one.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex
	said bytes.Buffer
}

// start starts a program, which dies with this one.
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
		_ = p.cmd.Wait() // its state says how it ended
	}()
	return p, nil
}

// Write keeps what the program prints.
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

// healthy returns an error if the program has logged one. fio does not notice a
// failing flush, so nothing else would show it.
func (p *process) healthy() error {
	said := p.output()
	// The forms of bs3 and of nbdkit.
	if strings.Contains(said, `"level":"error"`) || strings.Contains(said, ": error: ") {
		return fmt.Errorf("%s logged an error:\n%s", filepath.Base(p.cmd.Path), said)
	}
	return nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends it with SIGTERM and waits. It is an error if the program ends neither
// with exit code 0 nor by the signal.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if p.cmd.ProcessState.Success() || ok && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return fmt.Errorf("%s: %v\n%s", p.cmd.Path, p.cmd.ProcessState, p.output())
}

// kill kills it and waits.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// cpu returns the processor time that it has used so far.
func (p *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		return 0, err
	}
	// proc(5): the name, in parentheses, may have blanks; utime and stime are the
	// 12th and 13th fields after it.
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

// exactCPU is cpu in nanoseconds, but without threads that have ended.
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

// share returns how many processors it uses on average during d, after a wait.
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

// resident returns the resident memory of its mappings, in bytes, without those of
// files below the directory except.
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

// peak returns the largest resident memory since resetPeak, in bytes.
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

// ownCPU returns the processor time that this process has used.
func ownCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it cannot fail for this process
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// waitSocket waits until somebody listens on the unix socket. It does not connect:
// nbdkit would log a connection without a request as an error.
func (p *process) waitSocket(ctx context.Context, path string) error {
	return p.wait(ctx, func() bool {
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

// wait asks until ready returns true, p has ended or ctx is cancelled.
func (p *process) wait(ctx context.Context, ready func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s has ended: %v\n%s", filepath.Base(p.cmd.Path), p.cmd.ProcessState, p.output())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// command runs a program to its end and returns its output.
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

// pause waits for d, or until ctx is cancelled.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// freePort returns a TCP port of 127.0.0.1 that nobody listens on at the moment.
func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
