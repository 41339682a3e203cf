package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Key    string // empty: the file as a whole
	Value  string // as in a file; never a secret
	Source string // the file or the variable it comes from, or that it is the default; empty: not known here
	Rule   string // what is allowed
}

func (p Problem) String() string {
	switch {
	case p.Key == "":
		return p.Source + ": " + p.Rule
	case p.Value == "":
		return fmt.Sprintf("%s (%s): %s", p.Key, p.Source, p.Rule)
	case p.Source == "":
		return fmt.Sprintf("%s = %s: %s", p.Key, p.Value, p.Rule)
	}
	return fmt.Sprintf("%s = %s (%s): %s", p.Key, p.Value, p.Source, p.Rule)
}

// Error is everything that is wrong with a configuration.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("the configuration is refused:")
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// Validate checks every rule. It returns nil or an *Error with every problem.
func (c Config) Validate() error {
	if problems := c.problems(); len(problems) > 0 {
		return &Error{Problems: problems}
	}
	return nil
}

// Refuse returns the *Error of a rule for key that depends on the machine, and
// that the caller has found broken.
func (c Config) Refuse(key, rule string, args ...any) error {
	k := &checker{settings: settings(&c)}
	k.require(false, key, rule, args...)
	return &Error{Problems: k.problems}
}

// Limits.
const (
	maxSize       = 1 << 20   // GB, a PiB: then the directory of the map alone is 512 MB
	maxChunkSize  = 64        // MB
	minChunks     = 4         // in write.memory: one to fill while others are sealed, sent and settled
	maxIO         = 32 * MB   // bytes: NBD knows no larger request
	maxWorkers    = 4096      // connections of one kind
	maxChunks     = 1 << 16   // in write.memory: its file has no more slots
	maxMemory     = 1 << 20   // MB
	maxCacheSize  = 1 << 16   // GB
	maxMoves      = 10        // times what was written
	maxLinger     = 600_000   // ms
	maxInterval   = 7 * 86400 // s
	maxStep       = 1 << 20   // blocks
	maxIdle       = 600_000   // ms
	maxNameLength = 512       // bytes of s3.prefix: S3 allows 1024 for a whole name
)

// checker collects problems.
type checker struct {
	settings []setting
	problems []Problem
}

// require reports key unless ok.
func (k *checker) require(ok bool, key, rule string, args ...any) {
	if ok {
		return
	}
	i := slices.IndexFunc(k.settings, func(s setting) bool { return s.key == key })
	k.problems = append(k.problems, Problem{
		Key: key, Value: k.settings[i].value(), Rule: fmt.Sprintf(rule, args...),
	})
}

// between reports key unless its value v is in [low, high].
func (k *checker) between(v int64, key string, low, high int64, unit string) {
	k.require(low <= v && v <= high, key, "must be from %d to %d%s", low, high, unit)
}

// oneOf reports key unless its value v is one of list.
func (k *checker) oneOf(v, key string, list ...string) {
	k.require(slices.Contains(list, v), key, "must be one of %s", strings.Join(list, ", "))
}

// problems checks every rule. State.Path, NBD.Listen and Control.Socket are
// filled in.
func (c Config) problems() []Problem {
	k := &checker{settings: settings(&c)}
	c.checkDevice(k)
	if !c.Null {
		c.checkStore(k)
		c.checkWrite(k)
		c.GC.check(k)
	}
	c.checkPaths(k)
	k.between(int64(c.Log.Level), "log.level", -1, 5, "")
	k.between(int64(c.ProfilerPort), "profiler_port", 1, 65535, "")
	k.later()
	return k.problems
}

// later refuses keys for what does not exist yet, unless they have their default.
func (k *checker) later() {
	byDefault := Default()
	for i, d := range settings(&byDefault) {
		s := k.settings[i]
		if s.later != "" && !reflect.DeepEqual(s.field.Interface(), d.field.Interface()) {
			k.require(false, s.key, "not yet: this version has no %s; leave it at %s", s.later, d.value())
		}
	}
}

func (c Config) checkDevice(k *checker) {
	k.between(c.Size, "size", 1, maxSize, " GB")
	k.require(c.BlockSize == 512 || c.BlockSize == 4096, "block_size", "must be 512 or 4096 bytes")
	io := func(v int, key string) {
		powerOfTwo := v > 0 && v&(v-1) == 0
		k.require(v == 0 || powerOfTwo && v >= c.BlockSize && v <= maxIO, key,
			"must be 0 or a power of two from block_size to %d bytes", maxIO)
	}
	io(c.IOMin, "io_min")
	io(c.IOOpt, "io_opt")
	k.require(c.IOOpt == 0 || c.IOOpt >= c.IOMin, "io_opt", "must be 0 or at least io_min (%d)", c.IOMin)

	c.checkTransports(k)
}

func (c Config) checkStore(k *checker) {
	k.oneOf(c.Takeover, "takeover", TakeoverRefuse, TakeoverAuto)
	// Background work that waits for the store would take the only one.
	k.between(int64(c.S3.Uploaders), "s3.uploaders", 2, maxWorkers, "")
	k.between(int64(c.S3.Downloaders), "s3.downloaders", 2, maxWorkers, "")
	k.between(int64(c.Dir.Uploaders), "dir.uploaders", 2, maxWorkers, "")
	k.between(int64(c.Dir.Downloaders), "dir.downloaders", 2, maxWorkers, "")
	k.oneOf(c.Store, "store", Stores()...)
	switch c.Store {
	case StoreS3:
		c.S3.check(k)
	case StoreDir:
		k.require(c.Dir.Path != "", "dir.path", "must be set for store = %q", StoreDir)
	}
}

func (s S3) check(k *checker) {
	k.require(bucketName(s.Bucket), "s3.bucket", "must be a bucket's name: 3 to 63 of a-z 0-9 . -, "+
		"first and last a letter or digit, no two dots in a row, no IP address")
	k.require(prefixName(s.Prefix), "s3.prefix", "must be up to %d printable ASCII characters; "+
		"parts between slashes are not empty, . or ..", maxNameLength)
	k.require((s.AccessKey == "") == (s.SecretKey == ""), "s3.secret_key", "access_key and secret_key are set both or neither")
	k.require(s.SessionToken == "" || s.AccessKey != "", "s3.session_token", "needs access_key and secret_key")
	k.oneOf(s.PathStyle, "s3.path_style", PathStyleAuto, PathStyleAlways, PathStyleNever)
	s.checkEncryption(k)
	k.oneOf(s.Checksums, "s3.checksums", ChecksumsWhenRequired, ChecksumsWhenSupported)
	k.oneOf(s.SignPayload, "s3.sign_payload", SignPayloadAuto, SignPayloadAlways, SignPayloadNever)
	k.require(regexp.MustCompile(`^[A-Z0-9_]*$`).MatchString(s.StorageClass), "s3.storage_class",
		"must be empty or a storage class of S3 such as STANDARD_IA")
	if u, ok := remote(s.Remote); !ok {
		// A refused address may contain a password: only its harmless parts are shown.
		k.problems = append(k.problems, Problem{Key: "s3.remote", Value: u,
			Rule: "must be empty or http(s)://HOST[:PORT], without user, query and fragment"})
	}
}

// sseKeySize is the size of a key of AES256 in bytes.
const sseKeySize = 32

func (s S3) checkEncryption(k *checker) {
	k.require(slices.Contains([]string{SSENone, SSEAES, SSEKMS}, s.SSE), "s3.sse", "must be empty, %s or %s", SSEAES, SSEKMS)
	k.require(s.SSEKMSKeyID == "" || s.SSE == SSEKMS, "s3.sse_kms_key_id", "needs sse = %q", SSEKMS)
	if s.SSECustomerKey == "" {
		return
	}
	key, err := s.CustomerKey()
	k.require(err == nil && len(key) == sseKeySize, "s3.sse_customer_key", "must be %d bytes in base64", sseKeySize)
	k.require(s.SSE == SSENone, "s3.sse", "must be empty if sse_customer_key is set")
	k.require(!strings.HasPrefix(strings.ToLower(s.Remote), "http://"), "s3.sse_customer_key",
		"is sent with every request, so s3.remote must begin with https://")
}

// remote reports whether s is a valid s3.remote, and returns how to show it.
func remote(s string) (shown string, ok bool) {
	u, err := url.Parse(s)
	switch {
	case s == "":
		return "", true
	case err != nil:
		return "(no URL)", false
	}
	ok = (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
	if port := u.Port(); port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		ok = ok && err == nil && n > 0
	}
	return fmt.Sprintf("%q", u.Scheme+"://"+u.Host+u.EscapedPath()), ok
}

func bucketName(s string) bool {
	_, err := netip.ParseAddr(s)
	return regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`).MatchString(s) &&
		!strings.Contains(s, "..") && err != nil
}

func prefixName(s string) bool {
	if s == "" {
		return true
	}
	bad := func(r rune) bool { return r < ' ' || r > '~' }
	parts := strings.Split(s, "/")
	return len(s) <= maxNameLength && !strings.ContainsFunc(s, bad) &&
		!slices.Contains(parts, "") && !slices.Contains(parts, ".") && !slices.Contains(parts, "..")
}

func (c Config) checkWrite(k *checker) {
	k.between(int64(c.Write.ChunkSize), "write.chunk_size", 1, maxChunkSize, " MB")
	most := maxMemory
	if chunk := c.Write.ChunkSize; chunk > 0 && chunk <= maxChunkSize {
		most = min(most, maxChunks*chunk)
	}
	k.require(c.Write.Memory >= minChunks*c.Write.ChunkSize && c.Write.Memory <= most, "write.memory",
		"must hold at least %d chunks of write.chunk_size, that is %d MB, and at most %d MB",
		minChunks, minChunks*c.Write.ChunkSize, most)
	k.between(int64(c.Write.Linger), "write.linger", 1, maxLinger, " ms")
	k.between(int64(c.Read.CacheSize), "read.cache_size", 0, maxMemory, " MB")
	k.between(int64(c.Read.Readahead), "read.readahead", 0, maxMemory, " MB")
	k.oneOf(c.Read.WholeObjects, "read.whole_objects", WholeObjectsAuto, WholeObjectsOff)
	k.between(int64(c.Cache.Size), "cache.size", 1, maxCacheSize, " GB")
	k.between(int64(c.Checkpoint.Interval), "checkpoint.interval", 1, maxInterval, " s")
}

func (g GC) check(k *checker) {
	share := func(v float64, key string) {
		k.require(0 <= v && v <= 1, key, "must be from 0 to 1") // NaN is neither
	}
	k.between(int64(g.Step), "gc.step", 1, maxStep, " blocks")
	share(g.LiveData, "gc.live_data")
	k.between(int64(g.IdleTimeout), "gc.idle_timeout", 0, maxIdle, " ms")
	k.between(int64(g.Wait), "gc.wait", 0, maxInterval, " s")
	share(g.MaxGarbage, "gc.max_garbage")
	k.require(0 <= g.MaxMoves && g.MaxMoves <= maxMoves, "gc.max_moves", "must be from 0 to %d", maxMoves)
}

// checkPaths keeps the sockets apart from each other, and the store's directory
// from everything else: the store owns all that lies in it.
func (c Config) checkPaths(k *checker) {
	if c.Null {
		return
	}
	k.require(socketPath(c.Control.Socket), "control.socket", "must be a path of at most %d bytes that does not begin with @, this one has %d",
		maxSocketPath, len(c.Control.Socket))
	network, address, err := c.NBD.Address()
	hasSocket := err == nil && network == "unix"
	k.require(!hasSocket || filepath.Clean(c.Control.Socket) != filepath.Clean(address), "control.socket", "must not be the socket of nbd.listen")
	k.require(c.Cache.Path == "" || apart(c.Cache.Path, c.State.Path), "cache.path",
		"must be neither state.path (%s) nor inside it nor around it", c.State.Path)
	if c.Store != StoreDir || c.Dir.Path == "" {
		return
	}
	k.require(c.Cache.Path == "" || apart(c.Cache.Path, c.Dir.Path), "cache.path",
		"must be neither dir.path (%s) nor inside it nor around it", c.Dir.Path)
	k.require(apart(c.Dir.Path, c.State.Path), "dir.path",
		"must be neither state.path (%s) nor inside it nor around it", c.State.Path)
	k.require(!hasSocket || !within(address, c.Dir.Path), "nbd.listen", "must not be inside dir.path (%s)", c.Dir.Path)
	k.require(!within(c.Control.Socket, c.Dir.Path), "control.socket", "must not be inside dir.path (%s)", c.Dir.Path)
}

func apart(a, b string) bool { return !within(a, b) && !within(b, a) }

// within reports whether path is dir or lies below it, by name alone.
func within(path, dir string) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
