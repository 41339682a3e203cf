package objtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const (
	versitygwEnv = "BS3_VERSITYGW"     // path of the program
	requireEnv   = "BS3_REQUIRE_TOOLS" // "1": a missing program is a failure
	startTime    = 20 * time.Second
	startTries   = 5
)

// StartVersitygw runs a real S3 server (github.com/versity/versitygw) on a
// free port of the loopback interface, with its data in a directory of the
// test, until the test ends. Without the program it skips the test, or fails it
// if BS3_REQUIRE_TOOLS is 1.
func StartVersitygw(t testing.TB) (endpoint, accessKey, secretKey string) {
	t.Helper()
	return StartVersitygwIn(t, t.TempDir())
}

// StartVersitygwIn is StartVersitygw with its data in the directory data: the
// object KEY of a bucket is the file BUCKET/KEY there.
func StartVersitygwIn(t testing.TB, data string) (endpoint, accessKey, secretKey string) {
	t.Helper()
	program, err := findVersitygw()
	if err != nil {
		if os.Getenv(requireEnv) == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	const access, secret = "bs3test", "bs3testsecret"
	for try := 1; ; try++ {
		endpoint, err := startVersitygw(t, program, data, access, secret)
		if err == nil {
			return endpoint, access, secret
		}
		// Another process may have taken the port meanwhile.
		if try == startTries {
			t.Fatal(err)
		}
	}
}

// findVersitygw looks for the program where the environment variable points,
// where make installs it, and in PATH.
func findVersitygw() (string, error) {
	if path := os.Getenv(versitygwEnv); path != "" {
		return path, nil
	}
	const tool = ".tools/bin/versitygw"
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		path := filepath.Join(dir, tool)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	path, err := exec.LookPath("versitygw")
	if err != nil {
		return "", fmt.Errorf("no versitygw in $%s, %s or $PATH; make test installs it: %w", versitygwEnv, tool, err)
	}
	return path, nil
}

func startVersitygw(t testing.TB, program, data, access, secret string) (endpoint string, err error) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		return "", err
	}
	ctx, stop := context.WithCancel(context.Background())
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--port", addr, "--access", access, "--secret", secret,
		"--quiet", "--keep-alive", "posix", data)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		stop()
		return "", fmt.Errorf("start versitygw: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends by a signal
		close(ended)
	}()
	end := func() {
		stop()
		<-ended
	}
	if err := waitListening(addr, ended); err != nil {
		end()
		return "", fmt.Errorf("start versitygw: %w; it said:\n%s", err, output.String())
	}
	t.Cleanup(func() {
		end()
		if t.Failed() {
			t.Logf("versitygw on %s said:\n%s", addr, output.String())
		}
	})
	return "http://" + addr, nil
}

func waitListening(addr string, ended <-chan struct{}) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(startTime)
	defer late.Stop()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return errors.New("it ended by itself")
		case <-late.C:
			return fmt.Errorf("not listening after %v: %w", startTime, err)
		case <-tick.C:
		}
	}
}
