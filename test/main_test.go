package test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binaryEnv names a bs3 to test instead of the one built from the tree.
const binaryEnv = "BS3_BINARY"

// requireEnv, if 1, makes a missing program a failure.
const requireEnv = "BS3_REQUIRE_TOOLS"

// long makes some tests more thorough, see docs/TESTING.md.
var long = flag.Bool("long", false, "more rounds, longer outages, more data")

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runTests runs the tests with a freshly built bs3, which they find through the
// environment.
func runTests(m *testing.M) (code int, err error) {
	defer setPatience()()
	if path := os.Getenv(binaryEnv); path != "" {
		// Tests run it from other directories.
		if path, err = filepath.Abs(path); err != nil {
			return 0, err
		}
		if err := os.Setenv(binaryEnv, path); err != nil {
			return 0, err
		}
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "bs3-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary := filepath.Join(dir, "bs3")
	build := exec.Command("go", "build", "-o", binary, "..")
	build.Stderr = os.Stderr
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build bs3: %w", err)
	}
	if err := os.Setenv(binaryEnv, binary); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// needTools skips the test, or fails it if tools are required, unless all the
// named programs are there.
func needTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			lack(t, err.Error()+"; make test installs it")
		}
	}
}

// needRoot is needTools for the rights to mount.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "mounting and loop devices need root")
	}
}

func lack(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(requireEnv) == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
