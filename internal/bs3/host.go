package bs3

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// Host tells machines, and their boots, apart.
type Host struct {
	ID   string   // of the machine (machine-id(5)), or its name where it has none
	Name string   // for people
	Boot [16]byte // of the running kernel: chunk memory of this boot cannot be torn
}

// LocalHost describes the machine the process runs on.
func LocalHost() (Host, error) {
	name, err := os.Hostname()
	if err != nil {
		return Host{}, fmt.Errorf("host name: %w", err)
	}
	h := Host{ID: name, Name: name}
	if id, err := os.ReadFile("/etc/machine-id"); err == nil && len(strings.TrimSpace(string(id))) > 0 {
		h.ID = strings.TrimSpace(string(id))
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Host{}, fmt.Errorf("boot id: %w", err)
	}
	digits := strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", "")
	if n, err := hex.Decode(h.Boot[:], []byte(digits)); err != nil || n != len(h.Boot) {
		return Host{}, fmt.Errorf("boot id %q is not a UUID", boot)
	}
	return h, nil
}
