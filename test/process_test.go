package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// command runs a program that has to succeed within limit, and gives its
// standard output.
func command(t testing.TB, limit time.Duration, name string, args ...string) string {
	t.Helper()
	code, out, errs := run(t, limit, exec.Command(name, args...))
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s%s", name, strings.Join(args, " "), code, out, errs)
	}
	return out
}

// run runs cmd to its end, which has to come within limit.
func run(t testing.TB, limit time.Duration, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second // a child of it may hold the pipes
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		t.Fatalf("%s: not done after %v\n%s%s", cmd, limit, out.String(), errs.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// process is a program that runs beside the test. Its standard error is kept,
// line by line.
type process struct {
	t     testing.TB
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended and all its lines are read

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed when there is another line, and replaced
}

// start starts cmd. It is killed when the test ends, unless it has ended
// before; if the test failed, what it said is shown.
func start(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, ended: make(chan struct{}), more: make(chan struct{})}
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
		_ = cmd.Wait() // how it ended is asked of its state
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
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
}

// said is the end of what it said.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines[max(0, len(p.lines)-200):], "\n")
}

// logged gives the lines so far that contain text.
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

// expect waits for a line that contains text, and gives the first one.
func (p *process) expect(text string, limit time.Duration) string {
	p.t.Helper()
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		p.mu.Lock()
		more := p.more
		p.mu.Unlock()
		if found := p.logged(text); len(found) > 0 {
			return found[0]
		}
		select {
		case <-more:
		case <-p.ended:
			if found := p.logged(text); len(found) > 0 {
				return found[0]
			}
			p.t.Fatalf("%s ended (%v) without saying %q", p.name, p.cmd.ProcessState, text)
		case <-late.C:
			p.t.Fatalf("%s does not say %q within %v", p.name, text, limit)
		}
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v to %s: %v", s, p.name, err)
	}
}

// wait gives the exit code (-1 after a signal); it has to end within limit.
func (p *process) wait(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%s has not ended after %v", p.name, limit)
		return 0
	}
}

// kill ends it without any chance to clean up, and waits for that.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}

// field gives a value of a line of bs3's log.
func field[T any](t testing.TB, line, name string) T {
	t.Helper()
	var fields map[string]json.RawMessage
	var v T
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		t.Fatalf("%v in the log's line %s", err, line)
	}
	if err := json.Unmarshal(fields[name], &v); err != nil {
		t.Fatalf("%s in the log's line %s: %v", name, line, err)
	}
	return v
}
