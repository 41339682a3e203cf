// Command ublkd shows a volume as a ublk device, for the tests in the VM. It
// prints the path of the device when that is there; SIGTERM stops it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/rs/zerolog"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/device"
	"bs3/internal/device/devtest"
	"bs3/internal/device/ublk"
	"bs3/internal/null"
)

type options struct {
	kind, dir, state string
	size             int64
	block            int
	readOnly         bool
	memory           int64
	ublk             ublk.Options
}

func main() {
	var o options
	flag.StringVar(&o.kind, "volume", "memory", "null, memory or engine")
	flag.StringVar(&o.dir, "dir", "/tmp/store", "directory store of the engine")
	flag.StringVar(&o.state, "state", "/run/bs3", "chunk memory of the engine; the device is taken over if it is there")
	flag.Int64Var(&o.size, "size", 1<<30, "bytes")
	flag.IntVar(&o.block, "block", 4096, "bytes")
	flag.Int64Var(&o.memory, "memory", 64<<20, "bytes of chunk memory")
	flag.BoolVar(&o.readOnly, "read-only", false, "refuse writes (memory, null)")
	flag.IntVar(&o.ublk.ID, "id", -1, "number of the device")
	flag.IntVar(&o.ublk.Queues, "queues", 0, "hardware queues")
	flag.IntVar(&o.ublk.QueueDepth, "depth", 0, "requests for each queue")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "ublkd:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := zerolog.New(os.Stderr).With().Timestamp().Int("pid", os.Getpid()).Logger()
	o.ublk.Log = log
	o.ublk.Attached = func(path string) { fmt.Println(path) }
	vol, closeVolume, err := open(ctx, &o, log)
	if err != nil {
		return err
	}
	err = ublk.New(vol, o.ublk).Run(ctx)
	return errors.Join(err, closeVolume(context.WithoutCancel(ctx)))
}

func open(ctx context.Context, o *options, log zerolog.Logger) (device.Volume, func(context.Context) error, error) {
	g := device.Geometry{Size: o.size, BlockSize: o.block, ReadOnly: o.readOnly}
	nothing := func(context.Context) error { return nil }
	id := fnv.New64a()
	fmt.Fprintln(id, o.kind, o.dir)
	o.ublk.Identity = id.Sum64()
	switch o.kind {
	case "null":
		o.ublk.Recover = true // nothing to lose
		return null.New(g), nothing, nil
	case "memory":
		return devtest.NewMemory(g), nothing, nil
	case "engine":
	default:
		return nil, nil, fmt.Errorf("-volume %s", o.kind)
	}
	_, err := os.Stat(filepath.Join(o.state, "memory"))
	o.ublk.Recover = err == nil
	o.ublk.Marker = filepath.Join(o.state, "takeover")
	store, err := dir.Open(ctx, o.dir)
	if err != nil {
		return nil, nil, err
	}
	host, err := bs3.LocalHost()
	if err != nil {
		return nil, nil, err
	}
	engine, err := bs3.Open(ctx, bs3.Options{
		Store: objproxy.NewPriority(objproxy.NewRetry(store, objproxy.RetryOptions{Log: log}), 4, 4),
		Log:   log, Host: host, Size: o.size, BlockSize: o.block, ChunkSize: 4 << 20,
		Memory: o.memory, Uploaders: runtime.NumCPU(), StatePath: o.state,
	})
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return engine, func(ctx context.Context) error { return errors.Join(engine.Close(ctx), store.Close()) }, nil
}
