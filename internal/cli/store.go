package cli

import (
	"context"
	"errors"
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

// store is the configured store, with its manners: two priorities over
// retries over the store itself.
type store struct {
	objproxy.Store
	where string // for people
	close func() error
}

// openStore opens the store that c describes, for as long as ctx allows. With
// create it makes a directory or bucket that is missing.
func openStore(ctx context.Context, c config.Config, create bool, log zerolog.Logger) (*store, error) {
	s := &store{close: func() error { return nil }}
	var bare objproxy.Store
	switch c.Store {
	case config.StoreDir:
		s.where = "directory " + c.Dir.Path
		err := keepTrying(ctx, s.where, log, func() error {
			d, err := dir.Open(ctx, c.Dir.Path)
			if err == nil {
				bare, s.close = d, d.Close
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
		if create {
			if err := keepTrying(ctx, s.where, log, func() error { return b.EnsureBucket(ctx) }); err != nil {
				return nil, err
			}
		}
		bare = b
	default:
		return nil, fmt.Errorf("store = %q", c.Store) // config.Validate lets nothing else through
	}
	s.Store = objproxy.NewPriority(objproxy.NewRetry(bare, objproxy.RetryOptions{Log: log}), c.S3.Uploaders, c.S3.Downloaders)
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

// explain adds to err that the time of withLimit is over, if that is why.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errStore) && !errors.Is(err, errStore) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
