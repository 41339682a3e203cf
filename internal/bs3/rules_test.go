//go:build rules

package bs3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	ruleSeeds    = flag.Int("rules.seeds", 3000, "rules: seeds of the simulation to run without each rule")
	ruleOnly     = flag.String("rules.only", "", "rules: a regular expression of their names; empty = all")
	ruleDirected = flag.String("rules.directed", "^Test(Rule[A-Z]|TornMemory|FencedByNewerWriter|FlushWaitsForLowerKeys|Changed|DiskCache|OneWrongAnswer|LogDamage|GCLeavesDamageAlone)", "rules: the directed tests")
)

// TestLeftOut builds the engine without each rule in turn, and demands
// that the directed tests, or the simulation, notice. The tree itself is not
// touched: the compiler is given another file in its place (-overlay).
func TestLeftOut(t *testing.T) {
	only := regexp.MustCompile(*ruleOnly)
	var table []string
	for _, r := range rulesOut {
		if !only.MatchString(r.rule) {
			continue
		}
		t.Run(r.rule, func(t *testing.T) {
			bin := r.build(t)
			directed := r.directed(t, bin)
			seeds := r.simulate(t, bin)
			table = append(table, fmt.Sprintf("| %s | %s | %s | %s |", r.rule, r.what, directed, seeds))
			t.Logf("%s: %s: %s; simulation: %s", r.rule, r.what, directed, seeds)
			if directed == "none" && strings.HasPrefix(seeds, "none") {
				t.Errorf("nobody notices that %s", r.what)
			}
		})
	}
	t.Logf("\n| Rule | Left out: | Directed tests that fail | Simulation fails at seed |\n|---|---|---|---|\n%s", strings.Join(table, "\n"))
}

// build makes a test binary of the engine without the rule.
func (r ruleOut) build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	changed := make(map[string]string) // by path
	for _, e := range r.edits {
		path, err := filepath.Abs(e.file)
		if err != nil {
			t.Fatal(err)
		}
		if _, read := changed[path]; !read {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed[path] = string(b)
		}
		if n := strings.Count(changed[path], e.old); n != 1 {
			t.Fatalf("%s has this %d times, not once:\n%s\nThe engine has changed: say in rules_table_test.go how it looks without the rule now.", e.file, n, e.old)
		}
		changed[path] = strings.Replace(changed[path], e.old, e.new, 1)
	}
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for path, text := range changed {
		to := filepath.Join(dir, fmt.Sprintf("%d.go", len(overlay.Replace)))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[path] = to
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bs3.test")
	out, err := exec.Command("go", "test", "-c", "-vet=off", "-overlay", list, "-o", bin, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("the engine without the rule does not build: %v\n%s", err, out)
	}
	return bin
}

// run runs tests of the binary and returns their output. It ends them when they
// take longer than limit, because a mutilated engine may wait for ever.
func (r ruleOut) run(t *testing.T, limit time.Duration, bin string, args ...string) (out string, failed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.WaitDelay = time.Second
	b, err := cmd.CombinedOutput()
	if err == nil {
		return string(b), false
	}
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) && ctx.Err() == nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		b = append(b, "\nHANGS\n"...)
	}
	return string(b), true
}

// directed runs the directed tests, each alone, as one may take the binary
// with it, and says which fail.
func (r ruleOut) directed(t *testing.T, bin string) string {
	t.Helper()
	list, err := exec.Command(bin, "-test.list", *ruleDirected).Output()
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for name := range strings.FieldsSeq(string(list)) {
		out, bad := r.run(t, 3*time.Minute, bin, "-test.run", "^"+name+"$")
		if !bad {
			continue
		}
		what := strings.TrimPrefix(name, "Test")
		if strings.HasSuffix(out, "\nHANGS\n") {
			what += " (hangs)" // or is slow: then it shows nothing
		}
		failed = append(failed, what)
	}
	if len(failed) == 0 {
		return "none"
	}
	return strings.Join(failed, ", ")
}

var ruleSeed = regexp.MustCompile(`seed (\d+): (.*)`)

// simulate runs seeds until one fails, and says which and how.
func (r ruleOut) simulate(t *testing.T, bin string) string {
	t.Helper()
	if *ruleSeeds == 0 {
		return "none of 0"
	}
	out, bad := r.run(t, 10*time.Minute, bin, "-test.run", "^TestSim$", "-sim.failures=1", "-sim.shorten=false",
		fmt.Sprintf("-sim.seeds=%d", *ruleSeeds))
	if !bad {
		return fmt.Sprintf("none of %d", *ruleSeeds)
	}
	if m := ruleSeed.FindStringSubmatch(out); m != nil {
		return fmt.Sprintf("%s: %.100s", m[1], m[2])
	}
	for line := range bytes.Lines([]byte(out)) {
		if bytes.HasPrefix(line, []byte("panic:")) || bytes.HasPrefix(line, []byte("fatal error:")) || bytes.HasPrefix(line, []byte("HANGS")) {
			return strings.TrimSpace(string(line))
		}
	}
	return "it fails: " + out[:min(len(out), 300)]
}
