// Package docs tests the pages of this directory and of the one above.
package docs

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// link is a link or a picture of a page; the first group is where it leads.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksOfTheTree(t *testing.T) { checkLinks(t, "..") }

// The pages are installed without the rest of the tree.
func TestLinksOfTheInstalledPages(t *testing.T) {
	for _, tool := range []string{"make", "install", "sed"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("BS3_REQUIRE_TOOLS") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	tree, dest := t.TempDir(), t.TempDir()
	for _, name := range []string{"Makefile", "README.md", "CHANGELOG.md", "config.toml", "docs", "contrib"} {
		if err := os.Symlink(filepath.Join(repository, name), filepath.Join(tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "bs3"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "make", "-s", "-C", tree, "install", "DESTDIR="+dest, "PREFIX=/usr/local").CombinedOutput()
	if err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	checkLinks(t, filepath.Join(dest, "usr/local/share/doc/bs3"))
}

// checkLinks checks that each relative link of a page below root leads to a file.
func checkLinks(t *testing.T, root string) {
	t.Helper()
	pages := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		pages++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			to, _, _ := strings.Cut(m[1], "#")
			if to == "" || strings.Contains(to, "://") {
				continue
			}
			if info, err := os.Stat(filepath.Join(filepath.Dir(path), to)); err != nil || info.IsDir() {
				t.Errorf("%s: %s leads to no file", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pages < 5 {
		t.Errorf("%d pages below %s", pages, root)
	}
}
