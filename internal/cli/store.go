package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/s3"
	"bs3/internal/config"
)

const (
	// openFor is how long the daemon tries to reach its store at the start
	// before it gives up; the engine has the same limit for reading the volume.
	openFor = 5 * time.Minute
	// Between two tries: from the first to the second, doubling.
	firstWait, lastWait = 100 * time.Millisecond, 5 * time.Second
	// sayEvery is how often a store that stays away is reported.
	sayEvery = time.Minute
)

// purpose is what a store is opened for.
type purpose int

const (
	// toServe makes a directory or bucket that is missing, and gives the store
	// its manners: two priorities, over trying again for ever.
	toServe purpose = iota
	// toAsk takes the store as it is.
	toAsk
)

// store is the configured store.
type store struct {
	objproxy.Store
	where string // for people
	close func() error
}

// openStore opens the store that c describes, trying for as long as ctx allows.
func openStore(ctx context.Context, c config.Config, why purpose, log zerolog.Logger) (*store, error) {
	s := &store{close: func() error { return nil }}
	attempt := func(try func() error) error {
		if why == toServe {
			return keepTrying(ctx, s.where, log, try)
		}
		if err := try(); err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
		return nil
	}
	switch c.Store {
	case config.StoreDir:
		s.where = "directory " + c.Dir.Path
		err := attempt(func() error {
			d, err := dir.Open(ctx, c.Dir.Path)
			if err == nil {
				s.Store, s.close = d, d.Close
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	case config.StoreS3:
		s.where = bucketName(c.S3)
		b, err := s3.New(ctx, s3.Options{
			Bucket:       c.S3.Bucket,
			Endpoint:     c.S3.Remote,
			Region:       c.S3.Region,
			AccessKey:    string(c.S3.AccessKey),
			SecretKey:    string(c.S3.SecretKey),
			Prefix:       c.S3.Prefix,
			Workers:      c.S3.Uploaders + c.S3.Downloaders,
			HTTP2:        c.S3.HTTP2,
			StorageClass: c.S3.StorageClass,
			Checksums:    s3.Checksums(c.S3.Checksums),
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errStore, err)
		}
		if why == toServe {
			if err := attempt(func() error { return b.EnsureBucket(ctx) }); err != nil {
				return nil, err
			}
		}
		s.Store = b
	default:
		return nil, fmt.Errorf("store = %q", c.Store) // config.Validate lets nothing else through
	}
	if why == toServe {
		retry := objproxy.NewRetry(s.Store, objproxy.RetryOptions{Log: log})
		s.Store = objproxy.NewPriority(retry, c.S3.Uploaders, c.S3.Downloaders)
	}
	return s, nil
}

// bucketName is how the log calls the bucket.
func bucketName(c config.S3) string {
	where := "bucket " + c.Bucket
	if c.Prefix != "" {
		where += ", prefix " + c.Prefix
	}
	if c.Remote != "" {
		where += " at " + c.Remote
	}
	return where
}

// keepTrying calls try until it succeeds or ctx ends, waiting longer and
// longer in between. It says why it waits. The error wraps the ctx's cause and
// the last one of try.
func keepTrying(ctx context.Context, what string, log zerolog.Logger, try func() error) error {
	wait := firstWait
	var said time.Time
	for {
		err := try()
		if err == nil {
			if !said.IsZero() {
				log.Info().Str("store", what).Msg("the store answers")
			}
			return nil
		}
		if ctx.Err() == nil && time.Since(said) >= sayEvery {
			log.Warn().Str("store", what).Err(err).Msg("can not use the store; trying again")
			said = time.Now()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-timer.C:
		}
		wait = min(2*wait, lastWait)
	}
}

// withLimit bounds ctx by limit; its cause is errStore then.
func withLimit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: no proper answer for %v", errStore, limit))
}
