package cli

import (
	"bytes"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/config"
)

func TestWatchSignals(t *testing.T) {
	exits, collect := make(chan struct{}, 8), make(chan struct{}, 1)
	ctx, stop := watchSignals(t.Context(), zerolog.Nop(), collect, func() { exits <- struct{}{} })
	defer stop()
	raise := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	raise(syscall.SIGUSR1)
	<-collect
	raise(syscall.SIGTERM)
	<-ctx.Done()
	select {
	case <-exits:
		t.Error("the first signal exits at once")
	default:
	}
	second := syscall.SIGINT
	if !signal.Ignored(syscall.SIGHUP) {
		second = syscall.SIGHUP
	}
	raise(second)
	<-exits
	stop()
}

// timeout(1) signals the process, and its group a moment later.
func TestSignalTwiceAtOnce(t *testing.T) {
	exits, collect := make(chan struct{}, 8), make(chan struct{}, 1)
	ctx, stop := watchSignals(t.Context(), zerolog.Nop(), collect, func() { exits <- struct{}{} })
	defer stop()
	raise := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	raise(syscall.SIGTERM)
	<-ctx.Done()
	began := time.Now()
	raise(syscall.SIGTERM)
	raise(syscall.SIGUSR1)
	<-collect // both have been looked at
	select {
	case <-exits:
		if time.Since(began) < sameWithin {
			t.Error("the same signal at once exits at once")
		}
		return
	default:
	}
	for { // later it does
		raise(syscall.SIGTERM)
		select {
		case <-exits:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Help about something that does not exist says so.
func TestHelpAboutNothing(t *testing.T) {
	for args, ok := range map[string]bool{"help": true, "help run": true, "help foo": false, "help run foo": false} {
		root := newRoot(&app{version: "v"})
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(strings.Fields(args))
		err := root.Execute()
		if (err == nil) != ok || ok && (!strings.Contains(out.String(), "Usage:") || !strings.Contains(out.String(), "-h, --help")) || !ok && !strings.Contains(err.Error(), "foo") {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, config.Log{Level: 1, Pretty: false}, true)
	log.Debug().Msg("quiet")
	log.Info().Msg("loud")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"message":"loud"`) || !strings.Contains(s, `"time":`) {
		t.Errorf("JSON at level info: %s", s)
	}
	for _, color := range []bool{true, false} {
		out.Reset()
		log = newLogger(&out, config.Log{Level: 0, Pretty: true}, color)
		log.Debug().Msg("loud")
		if s := out.String(); strings.Contains(s, "{") || !strings.Contains(s, "loud") || strings.Contains(s, "\x1b") != color {
			t.Errorf("pretty at level debug, color %v: %q", color, s)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 4096: "4096 B", 4 << 20: "4 MB", 1.5 * (1 << 20): "1.5 MB", 8 << 30: "8 GB", 1.25 * (1 << 30): "1.25 GB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestShare(t *testing.T) {
	for of, want := range map[[2]int64]string{
		{-1, 1 << 30}: "0 %", {0, 0}: "0 %", {5, -1}: "0 %", {10, 40}: "25 %", {41, 40}: "100 %",
	} {
		if got := share(of[0], of[1]); got != want {
			t.Errorf("share(%d, %d) = %q, want %q", of[0], of[1], got, want)
		}
	}
}
