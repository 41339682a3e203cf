package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/ilyakaznacheev/cleanenv"
)

// Load reads the file at path, then the credentials of the service manager, then
// the environment, and checks the result. The file must exist if explicit is set,
// because the user named it. The error is an *Error.
func Load(path string, explicit bool) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil && (explicit || !errors.Is(err, fs.ErrNotExist)) {
		return Config{}, &Error{Problems: []Problem{{Source: path, Rule: "cannot be read: " + err.Error()}}}
	}
	return Parse(path, text)
}

// Parse is Load for the text of the file at path.
func Parse(path string, text []byte) (Config, error) {
	c := Default()
	l := loader{settings: settings(&c), sources: map[string]string{}}
	if err := l.file(path, text); err != nil {
		return Config{}, err
	}
	l.credentials(os.Getenv("CREDENTIALS_DIRECTORY"))
	l.environment()
	c.S3.takeSDK(os.Getenv)
	c.fill(name(path))

	// A key that could not be read keeps its default, and nobody chose that: it is
	// not complained about as well.
	for _, p := range c.problems() {
		if !slices.ContainsFunc(l.problems, func(q Problem) bool { return q.Key == p.Key }) {
			p.Source = cmp.Or(l.sources[p.Key], "default")
			l.problems = append(l.problems, p)
		}
	}
	if len(l.problems) > 0 {
		return Config{}, &Error{Problems: l.problems}
	}
	return c, nil
}

// name returns the base name of path without its extension.
func name(path string) string {
	base := filepath.Base(path)
	if n := strings.TrimSuffix(base, filepath.Ext(base)); n != "" {
		return n
	}
	return base
}

// setting is one key of a Config.
type setting struct {
	key, env, doc, later string
	field                reflect.Value
}

// settings lists the keys of c in the order of the struct; their fields are those
// of c.
func settings(c *Config) []setting {
	return appendSettings(nil, "", reflect.ValueOf(c).Elem())
}

func appendSettings(list []setting, prefix string, v reflect.Value) []setting {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := f.Tag.Get("toml")
		switch {
		case key == "-":
		case f.Type.Kind() == reflect.Struct:
			list = appendSettings(list, key+".", v.Field(i))
		default:
			list = append(list, setting{
				key:   prefix + key,
				env:   f.Tag.Get("env"),
				doc:   f.Tag.Get("env-description"),
				later: f.Tag.Get("later"),
				field: v.Field(i),
			})
		}
	}
	return list
}

// value formats the setting's value for people.
func (s setting) value() string { return s.show(s.field.Interface()) }

// show formats v as a value of s. Secrets are hidden, even if they are of the
// wrong type.
func (s setting) show(v any) string {
	if s.field.Type() == reflect.TypeFor[Secret]() {
		v = Secret(fmt.Sprint(v)).String()
	}
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case map[string]any:
		return "{…}"
	}
	return fmt.Sprint(v)
}

// kind returns the rule for the type of the setting's value.
func (s setting) kind() string {
	switch s.field.Kind() {
	case reflect.Bool:
		return "must be true or false"
	case reflect.Int, reflect.Int64:
		return "must be an integer"
	case reflect.Float64:
		return "must be a number"
	default:
		return "must be a string"
	}
}

// loader collects values and what is wrong with them.
type loader struct {
	settings []setting
	sources  map[string]string // key -> where its value comes from
	problems []Problem
}

// file takes the keys of a TOML text. It fails only if the text is not TOML.
//
// cleanenv reads it into a map and not into the Config: decoding into a struct
// stops at the first wrong type and ignores keys that the struct does not have.
func (l *loader) file(path string, text []byte) error {
	tree := map[string]any{}
	if err := cleanenv.ParseTOML(bytes.NewReader(text), &tree); err != nil {
		return &Error{Problems: []Problem{{Source: path, Rule: syntaxRule(err, text)}}}
	}
	for _, s := range l.settings {
		section, key := tree, s.key
		if head, tail, nested := strings.Cut(s.key, "."); nested {
			section, _ = tree[head].(map[string]any)
			key = tail
		}
		v, ok := section[key]
		if !ok {
			continue
		}
		delete(section, key)
		if !assign(s.field, v) {
			l.problems = append(l.problems, Problem{Key: s.key, Value: s.show(v), Source: path, Rule: s.kind()})
			continue
		}
		l.sources[s.key] = path
	}
	l.unknown(path, "", tree)
	return nil
}

// unknown reports what is left of a file once its keys were taken. The value of
// such a key is not shown: it may be a secret under a misspelt name.
func (l *loader) unknown(path, prefix string, tree map[string]any) {
	for _, k := range slices.Sorted(maps.Keys(tree)) {
		isSection := prefix == "" && slices.ContainsFunc(l.settings, func(s setting) bool {
			return strings.HasPrefix(s.key, k+".")
		})
		section, isTable := tree[k].(map[string]any)
		switch {
		case isSection && isTable:
			l.unknown(path, k+".", section)
		case isSection:
			l.problems = append(l.problems, Problem{Key: k, Source: path, Rule: "must be a table, [" + k + "]"})
		default:
			l.problems = append(l.problems, Problem{Key: prefix + k, Source: path, Rule: "no such key"})
		}
	}
}

// assign sets field to v, a value of the TOML decoder, if the types agree.
func assign(field reflect.Value, v any) bool {
	switch v := v.(type) {
	case bool:
		if field.Kind() != reflect.Bool {
			return false
		}
		field.SetBool(v)
	case string:
		if field.Kind() != reflect.String {
			return false
		}
		field.SetString(v)
	case int64:
		switch {
		case field.CanFloat():
			field.SetFloat(float64(v))
		case field.CanInt() && !field.OverflowInt(v):
			field.SetInt(v)
		default:
			return false
		}
	case float64:
		if !field.CanFloat() {
			return false
		}
		field.SetFloat(v)
	default:
		return false
	}
	return true
}

// credentials takes the secrets that the service manager has put into dir
// (systemd.exec(5), Credentials), each in a file bs3.KEY. A newline at its end
// does not count. If dir is empty there are none.
func (l *loader) credentials(dir string) {
	if dir == "" {
		return
	}
	for _, s := range l.settings {
		if s.field.Type() != reflect.TypeFor[Secret]() {
			continue
		}
		name := "bs3." + s.key
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		l.forget(s.key)
		source := "credential " + name
		if err != nil {
			l.problems = append(l.problems, Problem{Key: s.key, Source: source, Rule: "cannot be read: " + err.Error()})
			continue
		}
		s.field.SetString(strings.TrimRight(string(text), "\r\n"))
		l.sources[s.key] = source
	}
}

// environment takes the variables that are set.
//
// cleanenv stops at the first variable that it cannot read, so it gets one field
// at a time.
func (l *loader) environment() {
	for _, s := range l.settings {
		raw, ok := os.LookupEnv(s.env)
		if !ok {
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{{
			Name: "Value", Type: s.field.Type(), Tag: reflect.StructTag(`env:"` + s.env + `"`),
		}}))
		source := "variable " + s.env
		l.forget(s.key)
		err := cleanenv.ReadEnv(one.Interface())
		if err == nil && s.field.CanInt() {
			// cleanenv reads 010 as 8; in the file it is refused.
			if n, e := strconv.ParseInt(raw, 10, 64); e != nil || n != one.Elem().Field(0).Int() {
				err = strconv.ErrSyntax
			}
		}
		if err != nil {
			l.problems = append(l.problems, Problem{Key: s.key, Value: s.show(raw), Source: source, Rule: s.kind()})
			continue
		}
		s.field.Set(one.Elem().Field(0))
		l.sources[s.key] = source
	}
}

// takeSDK takes from variables of the AWS SDK what goes with the keys and the
// server of s and is not set there.
func (s *S3) takeSDK(getenv func(string) string) {
	if s.CACert == "" {
		s.CACert = getenv("AWS_CA_BUNDLE")
	}
	// A token belongs to one key.
	if of := getenv("AWS_ACCESS_KEY_ID"); s.AccessKey != "" && s.SessionToken == "" && (of == "" || of == string(s.AccessKey)) {
		s.SessionToken = Secret(getenv("AWS_SESSION_TOKEN"))
	}
}

// forget drops the problems of a key whose value now comes from elsewhere.
func (l *loader) forget(key string) {
	l.problems = slices.DeleteFunc(l.problems, func(p Problem) bool { return p.Key == key })
}

// syntaxRule returns what is wrong with a text that is not TOML, without quoting
// a line that may hold a secret.
func syntaxRule(err error, text []byte) string {
	var parse toml.ParseError
	if !errors.As(err, &parse) {
		return "is not TOML: " + err.Error()
	}
	where := fmt.Sprintf("is not TOML: line %d", parse.Position.Line)
	lines := bytes.Split(text, []byte("\n"))
	if i := parse.Position.Line - 1; i >= 0 && i < len(lines) && secretLine(lines[i]) {
		return where + " (not shown: it may hold a secret)"
	}
	return where + ": " + parse.Message
}

// secretLine reports whether a line of a file may hold a secret.
func secretLine(line []byte) bool {
	return bytes.Contains(line, []byte("_key")) || bytes.Contains(line, []byte("_token"))
}

// Variable describes one key for the help.
type Variable struct {
	Env, Key, Doc string
	Default       string // as in the file; empty for secrets
}

// Variables lists every key in the order of the struct.
func Variables() []Variable {
	c := Default()
	var list []Variable
	for _, s := range settings(&c) {
		doc := s.doc
		if s.later != "" {
			doc += " (not yet)"
		}
		list = append(list, Variable{Env: s.env, Key: s.key, Doc: doc, Default: s.value()})
	}
	return list
}

// UnknownVariables returns the names in environ (as of os.Environ) that look like
// ours but set no key.
func UnknownVariables(environ []string) []string {
	known := map[string]bool{}
	for _, v := range Variables() {
		known[v.Env] = true
	}
	var list []string
	for _, e := range environ {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "BS3_") && !known[name] {
			list = append(list, name)
		}
	}
	return list
}
