package config

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bs3/contrib"
)

// noEnvironment hides the variables that are set where the tests run.
func noEnvironment(t *testing.T) {
	t.Helper()
	for _, name := range []string{"CREDENTIALS_DIRECTORY", "AWS_CA_BUNDLE", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	for _, v := range Variables() {
		old, set := os.LookupEnv(v.Env)
		if set {
			t.Setenv(v.Env, old) // so that it comes back
			if err := os.Unsetenv(v.Env); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// problems returns the problems of err, one line each.
func problems(t *testing.T, err error) []string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, not an *Error", err)
	}
	var list []string
	for _, p := range e.Problems {
		list = append(list, p.String())
	}
	return list
}

func shipped(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../config.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestShippedFileIsTheDefault(t *testing.T) {
	noEnvironment(t)
	got, err := Parse("config.toml", []byte(shipped(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.fill("config")
	if got != want {
		t.Errorf("config.toml says\n%+v\nDefault says\n%+v", got, want)
	}
}

// The equality above does not see a key that the file leaves out.
func TestShippedFileHasEveryKey(t *testing.T) {
	text := shipped(t)
	c := Default()
	section, comment, seen := "", "", map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, _, isKey := strings.Cut(line, " = ")
		switch {
		case strings.HasPrefix(line, "["):
			section, comment = strings.Trim(line, "[]")+".", ""
		case strings.HasPrefix(line, "#"):
			comment += line[1:]
		case line == "":
			comment = ""
		case isKey:
			seen[section+key] = comment
		}
	}
	for _, s := range settings(&c) {
		comment, ok := seen[s.key]
		switch {
		case !ok:
			t.Errorf("config.toml has no %s", s.key)
		case !strings.Contains(comment, s.env):
			t.Errorf("the comment of %s does not name %s", s.key, s.env)
		case strings.HasPrefix(strings.TrimSpace(comment), "Not yet") != (s.later != ""):
			t.Errorf("the comment of %s says %q, but what it waits for is %q", s.key, comment, s.later)
		}
		delete(seen, s.key)
	}
	for key := range seen {
		t.Errorf("config.toml has %s, which is no key", key)
	}
}

func TestLocalFile(t *testing.T) {
	noEnvironment(t)
	c, err := Parse(contrib.LocalName, contrib.Local())
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Store, want.Dir.Path, want.State.Path, want.NBD.Listen = StoreDir, ".bs3/store", ".bs3/state", "unix:.bs3/nbd.sock"
	want.Transport = TransportNBD
	want.fill("local")
	if c != want {
		t.Errorf("got %+v, want %+v", c, want)
	}
}

func TestEveryKeyHasNameVariableAndText(t *testing.T) {
	c := Default()
	keys, envs := map[string]bool{}, map[string]bool{}
	for _, s := range settings(&c) {
		if s.key == "" || strings.HasSuffix(s.key, ".") || s.doc == "" || !strings.HasPrefix(s.env, "BS3_") {
			t.Errorf("incomplete tags: %+v", s)
		}
		if keys[s.key] || envs[s.env] {
			t.Errorf("twice: %s, %s", s.key, s.env)
		}
		keys[s.key], envs[s.env] = true, true
	}
}

func TestLoadPaths(t *testing.T) {
	noEnvironment(t)
	missing := filepath.Join(t.TempDir(), "vm7.toml")
	c, err := Load(missing, false)
	if err != nil {
		t.Fatalf("a default file that is missing: %v", err)
	}
	if c.Name != "vm7" || c.State.Path != "/run/bs3/vm7" || c.NBD.Listen != "unix:/run/bs3/vm7/nbd.sock" ||
		c.Control.Socket != "/run/bs3/vm7/control.sock" {
		t.Errorf("name, state and sockets are %q, %q, %q, %q", c.Name, c.State.Path, c.NBD.Listen, c.Control.Socket)
	}
	_, err = Load(missing, true)
	if got := problems(t, err); len(got) != 1 || !strings.Contains(got[0], missing) {
		t.Errorf("a named file that is missing: %q", got)
	}
	_, err = Load(t.TempDir(), false) // there, but not a file
	if got := problems(t, err); len(got) != 1 {
		t.Errorf("a file that cannot be read: %q", got)
	}
}

// With env-default tags cleanenv would turn these zeros into defaults.
func TestZeroValuesOfTheFileCount(t *testing.T) {
	noEnvironment(t)
	c, err := Parse("x.toml", []byte("[write]\ndurable = false\n[log]\nlevel = 0\npretty = false\n[nbd]\nlisten = \"unix:s\""))
	if err != nil {
		t.Fatal(err)
	}
	if c.Write.Durable || c.Log.Level != 0 || c.Log.Pretty || c.NBD.Listen != "unix:s" {
		t.Errorf("got %+v", c)
	}
}

// What looks like 10 is 10, or is refused as in the file.
func TestIntegersAreDecimal(t *testing.T) {
	noEnvironment(t)
	t.Setenv("BS3_SIZE", "010")
	_, err := Parse("x.toml", nil)
	if want := []string{`size = "010" (variable BS3_SIZE): must be an integer`}; !slices.Equal(problems(t, err), want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if _, err := Parse("x.toml", []byte("threads = 010")); err == nil {
		t.Error("the file is allowed it")
	}
}

func TestEnvironmentWins(t *testing.T) {
	noEnvironment(t)
	t.Setenv("BS3_SIZE", "16")
	t.Setenv("BS3_WRITE_DURABLE", "false")
	t.Setenv("BS3_S3_SECRETKEY", "s")
	t.Setenv("BS3_S3_ACCESSKEY", "a")
	t.Setenv("BS3_S3_REGION", "eu-central-1")
	c, err := Parse("x.toml", []byte("size = \"wrong\"\n[s3]\naccess_key=\"b\"\nbucket = \"other\""))
	if err != nil {
		t.Fatal(err)
	}
	if c.Size != 16 || c.Write.Durable || c.S3.AccessKey != "a" || c.S3.SecretKey != "s" ||
		c.S3.Region != "eu-central-1" || c.S3.Bucket != "other" {
		t.Errorf("got %+v", c)
	}
	t.Setenv("BS3_S3_REMOTE", "")
	if c, err = Parse("x.toml", []byte("[s3]\nremote = \"http://h\"")); err != nil || c.S3.Remote != "" {
		t.Errorf("a variable set to nothing does not win: %q, %v", c.S3.Remote, err)
	}
}

func TestCredentials(t *testing.T) {
	noEnvironment(t)
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	file := []byte("[s3]\naccess_key = \"file\"\nsecret_key = \"file\"")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(access, secret Secret) {
		t.Helper()
		c, err := Parse("x.toml", file)
		if err != nil || c.S3.AccessKey != access || c.S3.SecretKey != secret {
			t.Errorf("access %q, secret %q, %v; want %q, %q", string(c.S3.AccessKey), string(c.S3.SecretKey), err, string(access), string(secret))
		}
	}
	expect("file", "file") // there are none
	write("bs3.s3.access_key", "credential a\n")
	write("bs3.s3.secret_key", "credential s")
	write("bs3.size", "16") // not a secret, so not read
	expect("credential a", "credential s")
	t.Setenv("BS3_S3_SECRETKEY", "environment")
	expect("credential a", "environment")

	// A problem names the place that the value comes from, and is dropped if the
	// value is replaced from another place.
	file = []byte("[s3]\naccess_key = 1")
	expect("credential a", "environment")
	if err := os.Remove(filepath.Join(dir, "bs3.s3.access_key")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bs3.s3.access_key"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Parse("x.toml", nil)
	if got := problems(t, err); !strings.HasPrefix(got[0], "s3.access_key (credential bs3.s3.access_key): cannot be read") {
		t.Errorf("%q", got)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	noEnvironment(t)
	t.Setenv("BS3_SIZE", "big")
	t.Setenv("BS3_PROFILER", "perhaps")
	t.Setenv("BS3_S3_UPLOADERS", "0")
	_, err := Parse("/etc/bs3/x.toml", []byte(`
block_size = 1024
nul = true
transport = "scsi"
store = "tape"
major = -3
queue_depth = "deep"
ublk = 4
[write]
chunk_size = 4.0
memory = 8
[gc]
live_data = 1.5
wait = true
[nbd]
listen = "nonsense"
port = 3
[colour]
red = 1
`))
	got := problems(t, err)
	want := []string{
		`queue_depth = "deep" (/etc/bs3/x.toml): must be an integer`,
		`write.chunk_size = 4 (/etc/bs3/x.toml): must be an integer`,
		`gc.wait = true (/etc/bs3/x.toml): must be an integer`,
		`colour (/etc/bs3/x.toml): no such key`,
		`nbd.port (/etc/bs3/x.toml): no such key`,
		`nul (/etc/bs3/x.toml): no such key`,
		`ublk (/etc/bs3/x.toml): must be a table, [ublk]`,
		`size = "big" (variable BS3_SIZE): must be an integer`,
		`profiler = "perhaps" (variable BS3_PROFILER): must be true or false`,
		`block_size = 1024 (/etc/bs3/x.toml): must be 512 or 4096 bytes`,
		`transport = "scsi" (/etc/bs3/x.toml): must be one of auto, buse, ublk, nbd`,
		`major = -3 (/etc/bs3/x.toml): must be from 0 to 65535`,
		`nbd.listen = "nonsense" (/etc/bs3/x.toml): must be unix:PATH or tcp:HOST:PORT`,
		`s3.uploaders = 0 (variable BS3_S3_UPLOADERS): must be from 2 to 4096`,
		`store = "tape" (/etc/bs3/x.toml): must be one of s3, dir`,
		`write.memory = 8 (/etc/bs3/x.toml): must hold at least 4 chunks of write.chunk_size, that is 16 MB, and at most 262144 MB`,
		`gc.live_data = 1.5 (/etc/bs3/x.toml): must be from 0 to 1`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, line := range want {
		if !strings.Contains(err.Error(), "\n  "+line) {
			t.Errorf("the message lacks %q", line)
		}
	}
}

func TestSyntaxError(t *testing.T) {
	noEnvironment(t)
	for text, want := range map[string]string{
		"size = 1\nsize = 2":           "x.toml: is not TOML: line 2: Key 'size' has already been defined.",
		"[s3]\n\nsecret_key = hunter2": "x.toml: is not TOML: line 3 (not shown: it may hold a secret)",
		"a = [":                        "x.toml: is not TOML: line 1: ",
	} {
		_, err := Parse("x.toml", []byte(text))
		got := problems(t, err)
		if len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestNotYet(t *testing.T) {
	noEnvironment(t)
	for _, key := range []string{
		"control.listen", "nbd.tls_cert", "nbd.tls_key", "nbd.tls_ca",
	} {
		c := Default()
		c.fill("x")
		for _, s := range settings(&c) {
			if s.key != key {
				continue
			}
			switch {
			case s.field.CanInt():
				s.field.SetInt(s.field.Int() + 1)
			case s.field.CanFloat():
				s.field.SetFloat(s.field.Float() + 0.1)
			case s.field.Kind() == reflect.Bool:
				s.field.SetBool(true)
			default:
				s.field.SetString("x")
			}
		}
		got := problems(t, c.Validate())
		if len(got) != 1 || !strings.HasPrefix(got[0], key+" = ") || !strings.Contains(got[0], "not yet") {
			t.Errorf("%s: got %q", key, got)
		}
	}
}

// A refusal says what would do.
func TestBUSENamesTheAreasThatDo(t *testing.T) {
	c := Default()
	c.fill("x")
	c.Transport, c.Size = TransportBUSE, 2048
	got := problems(t, c.Validate())
	want := []string{"write.collision_chunk_size = 1: must be at least 2 MB for a size of 2048 GB, for BUSE"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = problems(t, c.Refuse("major", "must not be %d", 0))
	if want := []string{"major = 0: must not be 0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRules(t *testing.T) {
	for _, test := range []struct {
		key string // the key that is refused; empty: all is well
		set func(c *Config)
	}{
		{"", func(*Config) {}},
		{"size", func(c *Config) { c.Size = 0 }},
		{"", func(c *Config) { c.Cache.Path = "/var/cache/bs3" }},
		{"cache.path", func(c *Config) { c.State.Path, c.Cache.Path = "/var/bs3", "/var/bs3/" }},
		{"cache.path", func(c *Config) { c.Store, c.Dir.Path, c.Cache.Path = StoreDir, "/srv", "/srv/cache" }},
		{"cache.size", func(c *Config) { c.Cache.Size = 0 }},
		{"cache.size", func(c *Config) { c.Cache.Size = 1<<16 + 1 }},
		{"size", func(c *Config) { c.Size = -1 }},
		{"", func(c *Config) { c.Size = 1 << 20 }},
		{"size", func(c *Config) { c.Size = 1<<20 + 1 }},
		{"", func(c *Config) { c.BlockSize = 512; c.IOMin = 512; c.IOOpt = 512 }},
		{"block_size", func(c *Config) { c.BlockSize = 8192 }},
		{"io_min", func(c *Config) { c.IOMin = 2048 }},
		{"io_min", func(c *Config) { c.IOMin = 12288 }},
		{"io_min", func(c *Config) { c.IOMin = -4096 }},
		{"", func(c *Config) { c.IOMin = 512 << 10; c.IOOpt = 4 << 20 }},
		{"io_opt", func(c *Config) { c.IOOpt = 64 << 20 }},
		{"io_opt", func(c *Config) { c.IOMin = 8192; c.IOOpt = 4096 }},
		{"transport", func(c *Config) { c.Transport = "iscsi" }},
		{"", func(c *Config) { c.Transport = "nbd" }},
		{"", func(c *Config) { c.Transport = "nbd"; c.NBD.Device = "/dev/nbd15" }},
		{"", func(c *Config) { c.NBD.Device = "/dev/nbd0" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "/dev/nbd" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "/dev/nbd01" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "/dev/nbd0p1" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "nbd0" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "/dev/nbd32768" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "/dev/nbd0"; c.Transport = "ublk" }},
		{"nbd.device", func(c *Config) { c.NBD.Device = "/dev/nbd0"; c.Transport = "buse" }},
		{"", func(c *Config) { c.Transport = "ublk"; c.Threads = 8; c.QueueDepth = 4096; c.Ublk.ID = 7 }},
		{"queue_depth", func(c *Config) { c.Transport = "ublk"; c.QueueDepth = 4097 }},
		{"queue_depth", func(c *Config) { c.QueueDepth = 0 }},
		{"threads", func(c *Config) { c.Threads = -1 }},
		{"cpus_per_node", func(c *Config) { c.CPUsPerNode = -1 }},
		{"ublk.id", func(c *Config) { c.Ublk.ID = -2 }},
		{"", func(c *Config) { c.Transport = "buse"; c.Major = 65535; c.QueueDepth = 10240; c.Scheduler = true }},
		{"major", func(c *Config) { c.Transport = "buse"; c.Major = 65536 }},
		{"queue_depth", func(c *Config) { c.Transport = "buse"; c.QueueDepth = 10241 }},
		{"", func(c *Config) { c.Write.BufSize, c.Read.BufSize, c.Write.CollisionSize = 3, 1000, 5 }}, // no BUSE
		{"", func(c *Config) {
			c.Transport = "buse"
			c.Write.BufSize, c.Read.BufSize, c.Write.CollisionSize = 4096, 8, 1024
		}},
		{"write.shared_buffer_size", func(c *Config) { c.Transport = "buse"; c.Write.BufSize = 4100 }},
		{"write.shared_buffer_size", func(c *Config) { c.Transport = "buse"; c.Write.BufSize = 34 }},
		{"read.shared_buffer_size", func(c *Config) { c.Transport = "buse"; c.Read.BufSize = 7 }},
		{"read.shared_buffer_size", func(c *Config) { c.Transport = "buse"; c.Read.BufSize = 33 }},
		{"write.collision_chunk_size", func(c *Config) { c.Transport = "buse"; c.Write.CollisionSize = 0 }},
		{"write.collision_chunk_size", func(c *Config) { c.Transport = "buse"; c.Write.CollisionSize = 3 }},
		{"write.collision_chunk_size", func(c *Config) { c.Transport = "buse"; c.Write.CollisionSize = 2048 }},
		{"write.collision_chunk_size", func(c *Config) { c.Transport = "buse"; c.Size = 2048 }},
		{"write.collision_chunk_size", func(c *Config) { c.Transport = "buse"; c.Size = 2049; c.Write.CollisionSize = 2 }},
		{"", func(c *Config) { c.Transport = "buse"; c.Size = 1024 }},
		{"", func(c *Config) { c.Transport = "buse"; c.Size = 2048; c.Write.CollisionSize = 2 }},
		{"", func(c *Config) { c.Transport = "buse"; c.Size = 1 << 20; c.Write.CollisionSize = 1024 }},
		{"", func(c *Config) { c.Size = 2048 }}, // no BUSE
		{"read.shared_buffer_size", func(c *Config) {
			c.Transport, c.BlockSize, c.Write.BufSize, c.Read.BufSize = "buse", 512, 512, 260
		}},
		{"", func(c *Config) { c.Transport, c.BlockSize, c.Write.BufSize, c.Read.BufSize = "buse", 512, 512, 256 }},
		{"write.chunk_size", func(c *Config) { c.Transport = "buse"; c.Null = true; c.Write.ChunkSize = 0 }},
		{"", func(c *Config) { c.Takeover = "auto" }},
		{"takeover", func(c *Config) { c.Takeover = "always" }},
		{"", func(c *Config) { c.NBD.Listen = "tcp:[::1]:10809" }},
		{"", func(c *Config) { c.NBD.Listen = "tcp:localhost:0" }},
		{"nbd.listen", func(c *Config) { c.NBD.Listen = "tcp::10809" }},
		{"nbd.listen", func(c *Config) { c.NBD.Listen = "tcp:h:nbd" }},
		{"nbd.listen", func(c *Config) { c.NBD.Listen = "tcp:h:65536" }},
		{"nbd.listen", func(c *Config) { c.NBD.Listen = "unix:" }},
		{"nbd.listen", func(c *Config) { c.NBD.Listen = "unix:@bs3" }},
		{"", func(c *Config) { c.NBD.Listen = "unix:./@bs3" }},
		{"control.socket", func(c *Config) { c.Control.Socket = "@bs3" }},
		{"", func(c *Config) { c.NBD.Listen = "unix:/" + strings.Repeat("x", 106) }},
		{"nbd.listen", func(c *Config) { c.NBD.Listen = "unix:/" + strings.Repeat("x", 107) }},
		{"", func(c *Config) { c.NBD.Memory = 32 }},
		{"nbd.memory", func(c *Config) { c.NBD.Memory = 31 }},
		{"nbd.memory", func(c *Config) { c.NBD.Memory = 1<<20 + 1 }},
		{"store", func(c *Config) { c.Store = "" }},
		{"dir.path", func(c *Config) { c.Store = "dir" }},
		{"", func(c *Config) { c.Store = "dir"; c.Dir.Path = "/data" }},
		{"", func(c *Config) { c.Null = true; c.Store = "dir" }},
		{"dir.path", func(c *Config) {
			c.Store, c.Dir.Path, c.NBD.Listen, c.Control.Socket = "dir", "/run/bs3/x/", "unix:/s", "/t"
		}},
		{"dir.path", func(c *Config) { c.Store = "dir"; c.Dir.Path = "/run/bs3/x/store" }},
		{"dir.path", func(c *Config) {
			c.Store, c.Dir.Path, c.State.Path, c.NBD.Listen = "dir", "a/b/../c", "./a/c/d", "unix:/s"
		}},
		{"", func(c *Config) { c.Store, c.Dir.Path, c.State.Path = "dir", "/a/store", "/a/store2" }},
		{"nbd.listen", func(c *Config) { c.Store = "dir"; c.Dir.Path = "/a"; c.NBD.Listen = "unix:/a/s" }},
		{"s3.bucket", func(c *Config) { c.S3.Bucket = "" }},
		{"s3.bucket", func(c *Config) { c.S3.Bucket = "ab" }},
		{"s3.bucket", func(c *Config) { c.S3.Bucket = "Upper" }},
		{"s3.bucket", func(c *Config) { c.S3.Bucket = "a..b" }},
		{"s3.bucket", func(c *Config) { c.S3.Bucket = "10.0.0.1" }},
		{"s3.bucket", func(c *Config) { c.S3.Bucket = "-abc" }},
		{"", func(c *Config) { c.S3.Bucket = "a.b-c9" }},
		{"", func(c *Config) { c.S3.Prefix = "vm/7" }},
		{"s3.prefix", func(c *Config) { c.S3.Prefix = "/vm" }},
		{"s3.prefix", func(c *Config) { c.S3.Prefix = "vm/" }},
		{"s3.prefix", func(c *Config) { c.S3.Prefix = "vm/../x" }},
		{"s3.prefix", func(c *Config) { c.S3.Prefix = "a\nb" }},
		{"", func(c *Config) { c.S3.Region = "" }},
		{"s3.path_style", func(c *Config) { c.S3.PathStyle = "sometimes" }},
		{"s3.session_token", func(c *Config) { c.S3.SessionToken = "t" }},
		{"", func(c *Config) { c.S3.AccessKey, c.S3.SecretKey, c.S3.SessionToken = "a", "s", "t" }},
		{"", func(c *Config) { c.S3.SSE = "AES256" }},
		{"", func(c *Config) { c.S3.SSE, c.S3.SSEKMSKeyID = "aws:kms", "k" }},
		{"s3.sse", func(c *Config) { c.S3.SSE = "aes" }},
		{"s3.sse_kms_key_id", func(c *Config) { c.S3.SSE, c.S3.SSEKMSKeyID = "AES256", "k" }},
		{"", func(c *Config) { c.S3.SSECustomerKey = customerKey }},
		{"s3.sse", func(c *Config) { c.S3.SSE, c.S3.SSECustomerKey = "AES256", customerKey }},
		{"s3.sse_customer_key", func(c *Config) { c.S3.SSECustomerKey = Secret(customerKey[4:]) }},
		{"s3.sse_customer_key", func(c *Config) { c.S3.SSECustomerKey = "no base64!" }},
		{"s3.sse_customer_key", func(c *Config) { c.S3.Remote, c.S3.SSECustomerKey = "http://h", customerKey }},
		{"s3.sse_customer_key", func(c *Config) { c.S3.Remote, c.S3.SSECustomerKey = "HTTP://h", customerKey }},
		{"", func(c *Config) { c.S3.Remote = "http://127.0.0.1:7070" }},
		{"s3.remote", func(c *Config) { c.S3.Remote = "127.0.0.1:7070" }},
		{"s3.remote", func(c *Config) { c.S3.Remote = "ftp://h" }},
		{"s3.remote", func(c *Config) { c.S3.Remote = "http://" }},
		{"s3.remote", func(c *Config) { c.S3.Remote = "http://h:65536" }},
		{"s3.remote", func(c *Config) { c.S3.Remote = "http://h:0" }},
		{"", func(c *Config) { c.S3.Remote = "https://[::1]:65535" }},
		{"s3.remote", func(c *Config) { c.S3.Remote = "http://h?x=y" }},
		{"s3.secret_key", func(c *Config) { c.S3.AccessKey = "a" }},
		{"s3.secret_key", func(c *Config) { c.S3.SecretKey = "a" }},
		{"s3.uploaders", func(c *Config) { c.S3.Uploaders = 1 }},
		{"s3.downloaders", func(c *Config) { c.S3.Downloaders = 5000 }},
		{"dir.uploaders", func(c *Config) { c.Dir.Uploaders = 1 }},
		{"dir.downloaders", func(c *Config) { c.Store, c.Dir.Path, c.Dir.Downloaders = "dir", "/a", 5000 }},
		{"s3.checksums", func(c *Config) { c.S3.Checksums = "never" }},
		{"s3.sign_payload", func(c *Config) { c.S3.SignPayload = "sometimes" }},
		{"", func(c *Config) {
			c.S3.Checksums = "when_supported"
			c.S3.HTTP2 = true
			c.S3.StorageClass = "STANDARD_IA"
		}},
		{"s3.storage_class", func(c *Config) { c.S3.StorageClass = "cheap one" }},
		{"write.chunk_size", func(c *Config) { c.Write.ChunkSize = 0 }},
		{"write.chunk_size", func(c *Config) { c.Write.ChunkSize = 65; c.Write.Memory = 1000 }},
		{"write.memory", func(c *Config) { c.Write.Memory = 15 }},
		{"", func(c *Config) { c.Write.Memory = 16 }},
		{"write.memory", func(c *Config) { c.Write.ChunkSize = 64 }},
		{"", func(c *Config) { c.Write.ChunkSize = 1; c.Write.Memory = 1 << 16 }},
		{"write.memory", func(c *Config) { c.Write.ChunkSize = 1; c.Write.Memory = 1<<16 + 1 }},
		{"write.linger", func(c *Config) { c.Write.Linger = 0 }},
		{"checkpoint.interval", func(c *Config) { c.Checkpoint.Interval = 0 }},
		{"", func(c *Config) { c.GC = GC{Step: 1} }},
		{"", func(c *Config) { c.GC.LiveData, c.GC.MaxGarbage = 1, 1 }},
		{"gc.step", func(c *Config) { c.GC.Step = 0 }},
		{"gc.live_data", func(c *Config) { c.GC.LiveData = -0.1 }},
		{"gc.live_data", func(c *Config) { c.GC.LiveData = math.NaN() }},
		{"gc.idle_timeout", func(c *Config) { c.GC.IdleTimeout = -1 }},
		{"gc.wait", func(c *Config) { c.GC.Wait = -1 }},
		{"gc.max_garbage", func(c *Config) { c.GC.MaxGarbage = 1.1 }},
		{"gc.max_garbage", func(c *Config) { c.GC.MaxGarbage = math.NaN() }},
		{"", func(c *Config) { c.GC.MaxMoves = 0 }},
		{"", func(c *Config) { c.GC.MaxMoves = 10 }},
		{"gc.max_moves", func(c *Config) { c.GC.MaxMoves = 10.1 }},
		{"gc.max_moves", func(c *Config) { c.GC.MaxMoves = -0.1 }},
		{"gc.max_moves", func(c *Config) { c.GC.MaxMoves = math.NaN() }},
		{"gc.max_moves", func(c *Config) { c.GC.MaxMoves = math.Inf(1) }},
		{"", func(c *Config) { c.S3.UnsafeNoFencing = true }},
		{"", func(c *Config) { c.Control.Socket = "/" + strings.Repeat("x", 106) }},
		{"control.socket", func(c *Config) { c.Control.Socket = "/" + strings.Repeat("x", 107) }},
		{"control.socket", func(c *Config) { c.NBD.Listen, c.Control.Socket = "unix:/a/s", "/a/../a/s" }},
		{"control.socket", func(c *Config) { c.Store, c.Dir.Path, c.Control.Socket = "dir", "/a", "/a/s" }},
		{"", func(c *Config) { c.Null = true; c.Control.Socket = strings.Repeat("x", 200) }},
		{"log.level", func(c *Config) { c.Log.Level = 6 }},
		{"log.level", func(c *Config) { c.Log.Level = -2 }},
		{"profiler_port", func(c *Config) { c.ProfilerPort = 70000 }},
	} {
		c := Default()
		c.fill("x")
		test.set(&c)
		err := c.Validate()
		if test.key == "" {
			if err != nil {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if got := problems(t, err); len(got) != 1 || !strings.HasPrefix(got[0], test.key+" = ") {
			t.Errorf("want one problem with %s, got %q", test.key, got)
		}
	}
}

// customerKey is 32 bytes in base64.
const customerKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// What the AWS SDK's variables say counts where nothing else is configured, and a
// token only with its key.
func TestVariablesOfTheSDK(t *testing.T) {
	const keys = "[s3]\naccess_key=\"a\"\nsecret_key=\"s\"\n"
	for _, c := range []struct {
		file, id    string
		token, cert string // the result
	}{
		{"", "a", "", "bundle"},
		{keys, "", "env", "bundle"},
		{keys, "a", "env", "bundle"},
		{keys, "b", "", "bundle"},
		{keys + "session_token=\"t\"\nca_cert=\"c\"", "a", "t", "c"},
	} {
		noEnvironment(t)
		t.Setenv("AWS_CA_BUNDLE", "bundle")
		t.Setenv("AWS_SESSION_TOKEN", "env")
		t.Setenv("AWS_ACCESS_KEY_ID", c.id)
		got, err := Parse("x.toml", []byte(c.file))
		if err != nil || string(got.S3.SessionToken) != c.token || got.S3.CACert != c.cert {
			t.Errorf("%q, AWS_ACCESS_KEY_ID=%s: token %q, certificates %q, %v", c.file, c.id, string(got.S3.SessionToken), got.S3.CACert, err)
		}
	}
}

func TestSecretsAreNeverShown(t *testing.T) {
	noEnvironment(t)
	const secret = "hunter2"
	s := S3{AccessKey: secret, SecretKey: secret, SessionToken: secret, SSECustomerKey: secret}
	shown := fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s.SecretKey, s.SecretKey)
	text, err := s.SecretKey.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	shown += string(text)

	for _, file := range []string{
		"[s3]\nsecret_key = \"hunter2\"",                  // without an access key
		"[s3]\nsession_token = \"hunter2\"",               // without keys
		"[s3]\nsse_customer_key = \"hunter2\"",            // not 32 bytes
		"[s3]\nsession_token = hunter2",                   // no TOML
		"[s3]\nsecret_kye = \"hunter2\"",                  // misspelt
		"[s3]\nsecret_key = [\"hunter2\"]",                // of the wrong type
		"[s3]\nsecret_key = hunter2",                      // no TOML
		"[s3]\nremote = \"http://u:hunter2@h\"",           // at a place where it must not be
		"[s3]\nremote = \"http://h?token=hunter2\"",       //
		"[s3]\nremote = \"http://h:hunter2%zz@:\\u0000\"", // and no URL
	} {
		_, err := Parse("x.toml", []byte(file))
		if err == nil {
			t.Errorf("%q is accepted", file)
			continue
		}
		shown += err.Error() + "\n"
	}
	t.Setenv("BS3_S3_SECRETKEY", secret)
	_, err = Parse("x.toml", nil)
	shown += err.Error() + "\n"
	for _, v := range Variables() {
		shown += v.Default
	}
	if strings.Contains(shown, secret) || !strings.Contains(shown, "(hidden)") {
		t.Errorf("a secret is shown: %s", shown)
	}
}

func TestUnknownVariables(t *testing.T) {
	got := UnknownVariables([]string{"PATH=/bin", "BS3_SIZE=4", "BS3_SISE=4", "BS3_WRITE_DURABEL=false"})
	if want := []string{"BS3_SISE", "BS3_WRITE_DURABEL"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddress(t *testing.T) {
	network, address, err := NBD{Listen: "unix:/run/a:b.sock"}.Address()
	if err != nil || network != "unix" || address != "/run/a:b.sock" {
		t.Errorf("got %q, %q, %v", network, address, err)
	}
	network, address, err = NBD{Listen: "tcp:[::1]:10809"}.Address()
	if err != nil || network != "tcp" || address != "[::1]:10809" {
		t.Errorf("got %q, %q, %v", network, address, err)
	}
}

func TestDurations(t *testing.T) {
	c := Default()
	got := []time.Duration{c.Write.LingerTime(), c.Checkpoint.IntervalTime(), c.GC.WaitTime(), c.GC.IdleTime()}
	if want := []time.Duration{time.Second, time.Minute, 10 * time.Minute, 200 * time.Millisecond}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// No text makes Parse panic, or accept what Validate refuses.
func FuzzParse(f *testing.F) {
	f.Add(string(contrib.Local()))
	f.Add("size = 1\n[s3]\nbucket = 'x'")
	f.Add("s3 = []\n[[nbd]]\n[nbd.listen]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("x.toml", []byte(text))
		if err == nil {
			err = c.Validate()
			if err != nil {
				t.Errorf("accepted, though %v", err)
			}
			return
		}
		problems(t, err)
	})
}
