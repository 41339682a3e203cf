package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// blocks returns the lines of the fenced blocks of ARCHITECTURE.md below a
// heading.
func blocks(t *testing.T, heading string) (all [][]string) {
	t.Helper()
	b, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("ARCHITECTURE.md has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for i, part := range strings.Split(section, "```\n") {
		if i%2 == 1 {
			all = append(all, strings.Split(strings.TrimSuffix(part, "\n"), "\n"))
		}
	}
	return all
}

// outline calls f for each line with what it is indented below, itself last.
func outline(lines []string, f func(path []string)) {
	var path []string
	for _, line := range lines {
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		path = append(path[:min(depth, len(path))], strings.Fields(line)[0])
		f(path)
	}
}

// TestSourceTree compares the tree in ARCHITECTURE.md with the packages that exist.
func TestSourceTree(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var exist, drawn []string
	for p := range strings.FieldsSeq(string(out)) {
		exist = append(exist, strings.TrimPrefix(strings.TrimPrefix(p, "bs3"), "/"))
	}
	outline(blocks(t, "The source tree")[0], func(path []string) {
		dir := strings.TrimSuffix(strings.Join(path, ""), "/")
		if strings.HasSuffix(dir, ".go") {
			dir = ""
		}
		if slices.Contains(exist, dir) {
			drawn = append(drawn, dir)
		} else if !slices.ContainsFunc(exist, func(p string) bool { return strings.HasPrefix(p, dir+"/") }) {
			t.Errorf("the tree has %s, which does not exist", dir)
		}
	})
	for _, p := range exist {
		if !slices.Contains(drawn, p) {
			t.Errorf("package bs3/%s is not in the tree", p)
		}
	}
}

// TestPaths: what the paths name exists, and none of them enters a package twice
// on its way down.
func TestPaths(t *testing.T) {
	dirs := packageDirs(t)
	for _, lines := range blocks(t, "Four paths through the engine") {
		outline(lines, func(path []string) {
			var packages []string
			for _, name := range path {
				if p, _, _ := strings.Cut(name, "."); len(packages) == 0 || packages[len(packages)-1] != p {
					packages = append(packages, p)
				}
			}
			if sorted := slices.Sorted(slices.Values(packages)); len(slices.Compact(sorted)) != len(packages) {
				t.Errorf("%v enters a package twice", path)
			}
			if name := path[len(path)-1]; !declared(t, dirs, name, "*.go") {
				t.Errorf("there is no %s", name)
			}
		})
	}
}

// TestWhereWhatIsDecided: what is named there exists, in that file.
func TestWhereWhatIsDecided(t *testing.T) {
	dirs := packageDirs(t)
	for _, line := range blocks(t, "Where what is decided")[0] {
		name, text, _ := strings.Cut(line, " ")
		file, _, _ := strings.Cut(strings.TrimSpace(text), ":")
		if !declared(t, dirs, name, file) {
			t.Errorf("there is no %s in %s", name, file)
		}
	}
}

// packageDirs returns the directories of packages, by name.
func packageDirs(t *testing.T) map[string]string {
	t.Helper()
	dirs := make(map[string]string)
	err := filepath.WalkDir("../internal", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs[d.Name()] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// declared reports whether package.Function or package.Type.Method is in a file of
// the package whose name matches.
func declared(t *testing.T, dirs map[string]string, name, file string) bool {
	t.Helper()
	parts := strings.Split(name, ".")
	pattern := `(?m)^func ` + parts[len(parts)-1] + `\(`
	if len(parts) == 3 {
		pattern = fmt.Sprintf(`(?m)^func \(\w+ \*?%s\) %s\(`, parts[1], parts[2])
	}
	files, err := filepath.Glob(filepath.Join(dirs[parts[0]], file))
	if err != nil || dirs[parts[0]] == "" {
		return false
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(pattern).Match(b) {
			return true
		}
	}
	return false
}
