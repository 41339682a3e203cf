package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// command runs a program that has to succeed, and returns its standard output.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	code, out, errs := run(t, exec.Command(name, args...))
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), code, out, errs)
	}
	return out
}

// run runs cmd to its end.
func run(t testing.TB, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Minute // a child of it that stays may hold the pipes
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = cmd.Wait()
	}()
	if !happens(ended) {
		_ = cmd.Process.Kill() // and not waited for: it may be stuck in the kernel
		t.Fatalf("%s: still running at the end of -timeout", cmd)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// process is a program that runs beside the test. Its standard error is kept
// line by line.
type process struct {
	t     testing.TB
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended and all its lines are read

	mu    sync.Mutex
	lines []string
}

// start starts cmd. It is killed at the end of the test if it still runs; if
// the test failed, what it wrote is shown.
func start(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, ended: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.ended)
		p.read(r)
		r.Close()
		_ = cmd.Wait() // its state says how it ended
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s (pid %d) said:\n%s", name, cmd.Process.Pid, p.said())
		}
	})
	return p
}

func (p *process) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		p.mu.Lock()
		p.lines = append(p.lines, s.Text())
		p.mu.Unlock()
	}
}

// said returns the last lines of what it wrote.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines[max(0, len(p.lines)-200):], "\n")
}

// logged returns the lines so far that contain text.
func (p *process) logged(text string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []string
	for _, line := range p.lines {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// expect waits for a line that contains text, and returns the first one.
func (p *process) expect(text string) string {
	p.t.Helper()
	var found []string
	p.waitFor(fmt.Sprintf("%s to log %q", p.name, text), func() bool {
		found = p.logged(text)
		return len(found) > 0
	})
	return found[0]
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v to %s: %v", s, p.name, err)
	}
}

// wait waits until it has ended, and returns the exit code (-1 after a signal).
func (p *process) wait() int {
	p.t.Helper()
	if !happens(p.ended) {
		p.t.Fatalf("%s: still running at the end of -timeout", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// kill ends it without any chance to clean up, and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}

// field returns a value from a line of bs3's log.
func field[T any](t testing.TB, line, name string) T {
	t.Helper()
	var fields map[string]json.RawMessage
	var v T
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		t.Fatalf("%v in the log line %s", err, line)
	}
	if err := json.Unmarshal(fields[name], &v); err != nil {
		t.Fatalf("%s in the log line %s: %v", name, line, err)
	}
	return v
}
