package main

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes where the figures were taken.
type machine struct {
	CPU        string
	Processors int
	Memory     float64 // GiB
	Kernel     string
	Disk       string // kind of the file system of the local log
	Go         string
	Fio        string
	Nbdkit     string
	Load       string // at the beginning
}

// thisMachine describes the machine. What it cannot find out stays empty.
func thisMachine(ctx context.Context, b *bench) machine {
	m := machine{Processors: runtime.NumCPU(), Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(text), "model name")
		line, _, _ := strings.Cut(rest, "\n")
		m.CPU = strings.TrimSpace(strings.TrimLeft(line, "\t :"))
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = float64(info.Totalram) * float64(info.Unit) / gib
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if kind, err := command(ctx, "stat", "--file-system", "--format=%T", b.disk); err == nil {
		m.Disk = strings.TrimSpace(kind)
	}
	if out, err := command(ctx, "fio", "--version"); err == nil {
		m.Fio = strings.TrimSpace(out)
	}
	if out, err := command(ctx, "nbdkit", "--version"); err == nil {
		m.Nbdkit = strings.TrimSpace(out)
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(text), " ")
	}
	return m
}

func (m machine) String() string {
	return m.CPU + ", " + strconv.Itoa(m.Processors) + " processors, " + strconv.Itoa(int(m.Memory+0.5)) + " GiB, Linux " + m.Kernel +
		"; disk of the local log: " + m.Disk + "; " + m.Go + ", " + m.Fio + ", " + m.Nbdkit + "; load at the beginning: " + m.Load
}
