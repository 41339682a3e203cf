package bs3

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"bs3/internal/bs3/layout"
)

// Host tells machines, and their boots, apart. What is empty is not known, and
// tells nothing.
type Host struct {
	ID      string   // of the machine (machine-id(5))
	Product string   // digest of what the firmware calls the machine
	Name    string   // for people
	Boot    [16]byte // of the running kernel: chunk memory of this boot cannot be torn
}

// productFiles say what the firmware calls the machine: DMI, which only root may
// read, or the device tree.
var productFiles = []string{"/sys/class/dmi/id/product_uuid", "/sys/firmware/devicetree/base/serial-number"}

// LocalHost describes the machine the process runs on.
func LocalHost() (Host, error) {
	name, err := os.Hostname()
	if err != nil {
		return Host{}, fmt.Errorf("host name: %w", err)
	}
	h := Host{Name: name, ID: machineID("/etc/machine-id"), Product: product(productFiles)}
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

// machineID returns what a file of machine-id(5) says; empty before the first
// boot has set it.
func machineID(file string) string {
	if id := text(file); id != "uninitialized" {
		return id
	}
	return ""
}

// product returns a digest of the first file that says something: who may read
// the store need not learn what only root may read here.
func product(files []string) string {
	for _, f := range files {
		if id := text(f); id != "" {
			sum := sha256.Sum256([]byte("bs3 product " + strings.ToLower(id)))
			return hex.EncodeToString(sum[:16])
		}
	}
	return ""
}

// text returns what a file says, without what is around it; empty if it cannot be
// read.
func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), " \t\n\x00")
}

// apart says what shows that the writer w was another daemon than one on h with
// the state directory of this path and id; empty if it was the same. same: the
// directory shows that already. The name of the host shows neither.
func (h Host) apart(w *layout.Writer, statePath, stateID string, same bool) string {
	var differs []string
	for _, root := range []struct {
		name, theirs, ours string
		shows              bool // that it was the same, if it is equal: a container shares the firmware with others
	}{
		{"machine-id", w.Host, h.ID, true},
		{"product UUID", w.Product, h.Product, false},
		{"id of the state directory", w.StateID, stateID, true},
	} {
		switch {
		case root.theirs == "" || root.ours == "":
		case root.theirs != root.ours:
			differs = append(differs, root.name)
		default:
			same = same || root.shows
		}
	}
	if w.StatePath != statePath {
		differs = append(differs, "state path")
	}
	switch {
	case len(differs) > 0:
		return "not the same here: " + strings.Join(differs, ", ")
	case !same:
		return "nothing here shows that it was this host: neither a machine-id nor the id of the state directory"
	}
	return ""
}
