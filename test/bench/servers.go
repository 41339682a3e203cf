package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bs3/test/bench/s3server"
)

// settings are keys of bs3's configuration and their values.
type settings map[string]any

// baseConfig returns what differs from the defaults in every measured volume, except
// for names and addresses.
func baseConfig() settings {
	return settings{
		// As with TLS. The raw requests are signed in the same way.
		"s3.sign_payload": "never",
		"size":            8,
	}
}

// with returns s with other values for some keys.
func (s settings) with(other settings) settings {
	all := settings{}
	maps.Copy(all, s)
	maps.Copy(all, other)
	return all
}

func (s settings) toml() string {
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&text, "%s = %#v\n", key, s[key])
	}
	return text.String()
}

// describe returns settings in one line.
func describe(s settings) string {
	return strings.ReplaceAll(strings.TrimSpace(s.toml()), "\n", ", ")
}

// daemon is a running bs3.
type daemon struct {
	*process
	b        *bench
	bucket   string
	dir      string
	socket   string
	control  string
	profiler string // address of its profiler
}

// bs3 starts a daemon with its own state whose volume is in a bucket, and waits
// until it serves.
func (b *bench) bs3(ctx context.Context, bucket string, s settings) (*daemon, error) {
	dir := filepath.Join(b.tmp, b.name("volume"))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	d := &daemon{
		b: b, bucket: bucket, dir: dir,
		socket: filepath.Join(dir, "nbd.sock"), control: filepath.Join(dir, "control.sock"),
		profiler: "127.0.0.1:" + strconv.Itoa(port),
	}
	config := baseConfig().with(settings{
		"s3.remote": b.store.endpoint, "s3.bucket": bucket, "s3.access_key": "key", "s3.secret_key": "secret",
		"state.path": filepath.Join(dir, "state"), "nbd.listen": "unix:" + d.socket, "control.socket": d.control,
		"log.pretty": false, "log.level": 2, "profiler": true, "profiler_port": port, "transport": "nbd",
	}).with(s)
	file := filepath.Join(dir, "bench.toml")
	if err := os.WriteFile(file, []byte(config.toml()), 0o600); err != nil {
		return nil, err
	}
	if d.process, err = start(ctx, b.binary, "-c", file); err != nil {
		return nil, err
	}
	if err := d.waitSocket(ctx, d.socket); err != nil {
		d.kill()
		return nil, err
	}
	return d, nil
}

// verb runs a verb of bs3 on the daemon.
func (d *daemon) verb(ctx context.Context, args ...string) (string, error) {
	return command(ctx, d.b.binary, append([]string{"-c", filepath.Join(d.dir, "bench.toml")}, args...)...)
}

// fio runs a job on the volume.
func (d *daemon) fio(ctx context.Context, j fioJob) (sample, error) {
	s, err := d.b.fio(ctx, d.process, d.socket, j)
	if err != nil {
		return s, fmt.Errorf("bs3: %w\n%s", err, d.output())
	}
	return s, nil
}

// end kills the daemon and removes its state, with what it had of the volume.
func (d *daemon) end() error {
	d.kill()
	if err := d.healthy(); err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}

// close stops the daemon cleanly.
func (d *daemon) close() error {
	if err := d.stop(); err != nil {
		return err
	}
	if err := d.healthy(); err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}

// onFresh calls f with the daemon of a new volume, and then drops the volume.
func (b *bench) onFresh(ctx context.Context, s settings, f func(*daemon) error) error {
	bucket := b.name("bucket")
	d, err := b.bs3(ctx, bucket, s)
	if err != nil {
		return err
	}
	if err := f(d); err != nil {
		d.kill()
		return err
	}
	if err := d.end(); err != nil {
		return err
	}
	if path, ok := s["cache.path"].(string); ok {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return b.store.drop(ctx, bucket)
}

// prepared makes a bucket with a volume whose first bytes were written in order.
func (b *bench) prepared(ctx context.Context, bytes int64) (bucket string, err error) {
	bucket = b.name("bucket")
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return "", err
	}
	d, err := b.bs3(ctx, bucket, nil)
	if err != nil {
		return "", err
	}
	if _, err := d.fio(ctx, fioJob{rw: "write", bs: mib, depth: 8, size: bytes, flushed: true}); err != nil {
		d.kill()
		return "", err
	}
	return bucket, d.close()
}

// onPrepared calls f with a new daemon of a prepared volume, which has nothing
// cached.
func (b *bench) onPrepared(ctx context.Context, bucket string, s settings, f func(*daemon) error) error {
	d, err := b.bs3(ctx, bucket, s.with(settings{"takeover": "auto"}))
	if err != nil {
		return err
	}
	if err := f(d); err != nil {
		d.kill()
		return err
	}
	return d.end()
}

// counted calls f and returns the requests that it caused to the store.
func (d *daemon) counted(ctx context.Context, f func() error) (s3server.Counts, error) {
	before, err := d.b.store.counts(ctx, d.bucket)
	if err != nil {
		return before, err
	}
	if err := f(); err != nil {
		return before, err
	}
	after, err := d.b.store.counts(ctx, d.bucket)
	return after.Sub(before), err
}

// nbdkit is a running nbdkit.
type nbdkit struct {
	*process
	b      *bench
	socket string
}

// nbdkit starts nbdkit with a plugin and that plugin's argument.
func (b *bench) nbdkit(ctx context.Context, plugin, arg string) (*nbdkit, error) {
	socket := filepath.Join(b.tmp, b.name("nbdkit")+".sock")
	p, err := start(ctx, "nbdkit", "-f", "-U", socket, plugin, arg)
	if err != nil {
		return nil, err
	}
	if err := p.waitSocket(ctx, socket); err != nil {
		p.kill()
		return nil, err
	}
	return &nbdkit{p, b, socket}, nil
}

// nbdkitMemory starts nbdkit's memory plugin. It discards a first pass, which takes
// memory from the kernel.
func (b *bench) nbdkitMemory(ctx context.Context, bytes int64) (*nbdkit, error) {
	k, err := b.nbdkit(ctx, "memory", strconv.FormatInt(bytes, 10))
	if err != nil {
		return nil, err
	}
	if _, err := k.fio(ctx, fioJob{rw: "write", bs: mib, depth: 4, size: bytes}); err != nil {
		k.kill()
		return nil, err
	}
	return k, nil
}

func (k *nbdkit) fio(ctx context.Context, j fioJob) (sample, error) {
	s, err := k.b.fio(ctx, k.process, k.socket, j)
	if err != nil {
		return s, fmt.Errorf("nbdkit: %w\n%s", err, k.output())
	}
	return s, nil
}

// settled waits until the daemon has sent no request for the time quiet.
func (d *daemon) settled(ctx context.Context, quiet time.Duration) error {
	silent, err := d.silent(ctx, quiet, 10*time.Minute)
	if err == nil && !silent {
		err = errors.New("the daemon does not stop sending requests")
	}
	return err
}

// silent waits until the daemon has sent no request for the time quiet, and reports
// whether it came to that before limit.
func (d *daemon) silent(ctx context.Context, quiet, limit time.Duration) (bool, error) {
	last, err := d.b.store.counts(ctx, d.bucket)
	if err != nil {
		return false, err
	}
	since, began := time.Now(), time.Now()
	for time.Since(since) < quiet {
		if time.Since(began) > limit {
			return false, nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return false, err
		}
		now, err := d.b.store.counts(ctx, d.bucket)
		if err != nil {
			return false, err
		}
		if now != last {
			last, since = now, time.Now()
		}
	}
	return true, nil
}
