package dir

import (
	"errors"
	"fmt"
	"strings"
)

// The object "c0000000/00000000" is the file c0/0/c0000000%2F00000000: its whole
// name, escaped, below two levels of directories, named after the first two bytes
// of the name and the third. The names of a volume's objects begin with
// hexadecimal digits in which neighbours differ, so they spread over 4096
// directories. Directories and files sort as the names do, so List reads only the
// directories that it needs.

const (
	firstLevel  = 2 // bytes of the name in the first level
	secondLevel = 1
	maxFileName = 255 // of Linux
	empty       = "%" // stands for the empty string; no escaped byte looks like it
)

// errName means that a name cannot belong to an object of this store.
var errName = errors.New("bad object name")

// location is where an object is, relative to the root.
type location struct{ top, sub, file string }

func (l location) dir() string  { return l.top + "/" + l.sub }
func (l location) path() string { return l.top + "/" + l.sub + "/" + l.file }

func locate(name string) (location, error) {
	if name == "" {
		return location{}, fmt.Errorf("%w: it is empty", errName)
	}
	file := escape(name)
	if len(file) > maxFileName {
		return location{}, fmt.Errorf("%w: %q is too long for a file", errName, name)
	}
	a := min(firstLevel, len(name))
	b := min(firstLevel+secondLevel, len(name))
	return location{top: escape(name[:a]), sub: escape(name[a:b]), file: file}, nil
}

// escape keeps letters, digits, '-' and '_' and writes every other byte as %XX.
// So there is no '/', and no leading dot, which is for files that are no objects.
func escape(s string) string {
	if s == "" {
		return empty
	}
	b := make([]byte, 0, len(s)+2)
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			b = append(b, c)
		default:
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

const hexDigits = "0123456789ABCDEF"

// unescape is the inverse of escape; ok is false for what escape never returns.
func unescape(s string) (name string, ok bool) {
	if s == empty {
		return "", true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		high, low := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if high < 0 || low < 0 {
			return "", false
		}
		b = append(b, byte(high<<4|low))
		i += 2
	}
	name = string(b)
	return name, name != "" && escape(name) == s
}
