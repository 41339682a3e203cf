package test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// exposure is ten times the highest exposure level that systemd-analyze security
// may find in a unit. Of what it finds, the daemon needs root with CAP_SYS_ADMIN
// (ublk, attaching /dev/nbdN) and the network.
const exposure = 30

// installation is a copy of what make install needs, with the bs3 under test.
type installation struct {
	t        testing.TB
	tree     string
	variable []string
}

func newInstallation(t testing.TB, variable ...string) *installation {
	t.Helper()
	needTools(t, "make", "install", "sed")
	tree := t.TempDir()
	for _, name := range []string{"Makefile", "README.md", "CHANGELOG.md", "config.toml", "docs", "contrib"} {
		if err := os.Symlink(filepath.Join(repository(t), name), filepath.Join(tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(os.Getenv(binaryEnv), filepath.Join(tree, "bs3")); err != nil {
		t.Fatal(err)
	}
	return &installation{t, tree, variable}
}

func repository(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (i *installation) make(target string) {
	i.t.Helper()
	command(i.t, "make", append([]string{"-s", "-C", i.tree, target}, i.variable...)...)
}

// files lists the files below dir, with modes.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		list = append(list, fmt.Sprintf("%s %04o", strings.TrimPrefix(path, dir), info.Mode().Perm()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestInstall(t *testing.T) {
	dest := t.TempDir()
	i := newInstallation(t, "DESTDIR="+dest, "PREFIX=/opt/bs3")
	i.make("install")
	list := files(t, dest)
	for _, want := range []string{
		"/opt/bs3/bin/bs3 0755", "/etc/bs3/config.toml 0600",
		"/opt/bs3/lib/systemd/system/bs3.service 0644", "/opt/bs3/lib/systemd/system/bs3@.service 0644",
		"/opt/bs3/lib/systemd/system/bs3-gc.service 0644", "/opt/bs3/lib/systemd/system/bs3-gc.timer 0644",
		"/opt/bs3/share/doc/bs3/README.md 0644", "/opt/bs3/share/doc/bs3/docs/OPERATIONS.md 0644",
	} {
		if !slices.Contains(list, want) {
			t.Errorf("no %s in %q", want, list)
		}
	}
	unit, err := os.ReadFile(filepath.Join(dest, "opt/bs3/lib/systemd/system/bs3@.service"))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(unit); !strings.Contains(s, "\nExecStart=/opt/bs3/bin/bs3 run -c /etc/bs3/%i.toml\n") || strings.Contains(s, "/usr/local") || strings.Contains(s, dest) {
		t.Errorf("the unit does not use PREFIX:\n%s", s)
	}

	// An existing configuration survives an upgrade and make uninstall.
	config := filepath.Join(dest, "etc/bs3/config.toml")
	if err := os.WriteFile(config, []byte("size = 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	i.make("install")
	i.make("uninstall")
	if list := files(t, dest); !slices.Equal(list, []string{"/etc/bs3/config.toml 0600"}) {
		t.Errorf("make uninstall leaves %q", list)
	}
	if text, err := os.ReadFile(config); err != nil || string(text) != "size = 7\n" {
		t.Errorf("the configuration is %q, %v", text, err)
	}
}

// systemd has no complaints about the installed units.
func TestUnits(t *testing.T) {
	needTools(t, "systemd-analyze")
	dir := t.TempDir()
	i := newInstallation(t, "DESTDIR=/", "PREFIX="+dir, "SYSCONFDIR="+filepath.Join(dir, "etc"))
	i.make("install")
	units := filepath.Join(dir, "lib/systemd/system")
	instance := filepath.Join(units, "bs3@name.service")
	if err := os.Symlink("bs3@.service", instance); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bs3.service", "bs3@name.service", "bs3-gc.service", "bs3-gc.timer"} {
		path := filepath.Join(units, name)
		if complaint := verify(t, path); complaint != "" {
			t.Errorf("%s: systemd-analyze verify: %s", name, complaint)
		}
		if filepath.Ext(name) != ".service" {
			continue
		}
		if code, out := security(t, path); code != 0 {
			t.Errorf("%s is more exposed than %d: %s", name, exposure, out)
		}
	}

	// It would have noticed these.
	text, err := os.ReadFile(filepath.Join(units, "bs3.service"))
	if err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "bs3.service")
	for what, unit := range map[string]string{
		"a misspelt key": strings.Replace(string(text), "WatchdogSec=", "WatchDogSec=", 1),
		"no program":     strings.Replace(string(text), "/bin/bs3 ", "/bin/bs4 ", 1),
	} {
		if err := os.WriteFile(wrong, []byte(unit), 0o600); err != nil {
			t.Fatal(err)
		}
		if complaint := verify(t, wrong); complaint == "" {
			t.Errorf("%s is not noticed", what)
		}
	}
	open := strings.Replace(string(text), "CapabilityBoundingSet=", "#", 1)
	if err := os.WriteFile(wrong, []byte(open), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := security(t, wrong); code == 0 {
		t.Errorf("a unit with all capabilities passes: %s", out)
	}
}

// bs3-gc.service asks all running units, also after one that has just ended.
func TestCollectionAsksAll(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository(t), "contrib/systemd/bs3-gc.service"))
	if err != nil {
		t.Fatal(err)
	}
	_, command, _ := strings.Cut(string(text), "ExecStart=/bin/sh -euc '")
	command, _, ok := strings.Cut(command, "'\n")
	if !ok {
		t.Fatal("no command")
	}
	dir := t.TempDir()
	systemctl := `#!/bin/sh
case "$*" in
list-units*) echo "bs3.service loaded active running one"; echo "bs3@gone.service loaded"; echo "bs3@last.service loaded" ;;
*gone*) exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(systemctl), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-euc", strings.ReplaceAll(command, "$$", "$"))
	cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
	code, out, errs := run(t, cmd)
	if code != 1 || out != "asked bs3.service\nasked bs3@last.service\n" {
		t.Errorf("exit code %d, %q, %s", code, out, errs)
	}
}

// verify returns the complaints of systemd-analyze verify about a unit of ours.
func verify(t testing.TB, path string) string {
	t.Helper()
	code, out, errs := run(t, exec.Command("systemd-analyze", "verify", path))
	var ours []string
	for line := range strings.Lines(out + errs) {
		if strings.Contains(line, "bs3") { // and not about units of this machine
			ours = append(ours, line)
		}
	}
	if code != 0 && len(ours) == 0 {
		return out + errs
	}
	return strings.Join(ours, "")
}

func security(t testing.TB, path string) (code int, out string) {
	t.Helper()
	code, out, errs := run(t, exec.Command("systemd-analyze", "security", "--no-pager", "--offline=yes",
		fmt.Sprintf("--threshold=%d", exposure), path))
	return code, out + errs
}

// The unit for one volume and that for several differ only in names.
func TestUnitsAreAlike(t *testing.T) {
	read := func(name string) []string {
		text, err := os.ReadFile(filepath.Join(repository(t), "contrib/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	one, several := read("bs3.service"), read("bs3@.service")
	names := strings.NewReplacer(
		" %i\n", "\n", "/%i.toml", "/config.toml", "bs3/%i\n", "bs3/config\n",
		":bs3.%i.s3.access_key", "", ":bs3.%i.s3.secret_key", "",
		":bs3.%i.s3.session_token", "", ":bs3.%i.s3.sse_customer_key", "",
	)
	for i, line := range several {
		several[i] = names.Replace(line)
	}
	if !slices.Equal(one, several) {
		t.Errorf("bs3.service:\n%s\nbs3@.service, with its names:\n%s", strings.Join(one, ""), strings.Join(several, ""))
	}
}
