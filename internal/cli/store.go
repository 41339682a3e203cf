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

// purpose is what a store is opened for.
type purpose int

const (
	// toServe makes a directory or bucket that is missing, with the first
	// request, and gives the store its manners: two priorities, over trying again
	// for ever.
	toServe purpose = iota
	// toAsk takes the store as it is, and changes nothing.
	toAsk
)

// store is the configured store.
type store struct {
	objproxy.Store
	where string // for people
	close func() error
	// waiting is as of objproxy.Retry; nil unless the store is there to serve.
	waiting func() (since time.Time, lastErr error, waiting bool)
}

// openStore opens the store that c describes. To serve it sends no request: how
// long a store that does not answer is waited for is for the volume to say.
func openStore(ctx context.Context, c config.Config, why purpose, log zerolog.Logger) (*store, error) {
	s := &store{}
	var open func(context.Context) (objproxy.Store, error)
	switch c.Store {
	case config.StoreDir:
		s.where = "directory " + c.Dir.Path
		open = func(ctx context.Context) (objproxy.Store, error) {
			if why == toAsk {
				return dir.OpenReadOnly(c.Dir.Path)
			}
			return dir.Open(ctx, c.Dir.Path)
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
			SignPayload:  s3.SignPayload(c.S3.SignPayload),
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errStore, err)
		}
		open = func(ctx context.Context) (objproxy.Store, error) {
			if why == toServe {
				return b, b.EnsureBucket(ctx)
			}
			return b, nil
		}
	default:
		return nil, fmt.Errorf("store = %q", c.Store) // config.Validate lets nothing else through
	}
	if why == toAsk {
		asked, err := open(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errStore, err)
		}
		s.Store, s.close = asked, func() error { return closeStore(asked) }
		return s, nil
	}
	late := newLateStore(open)
	retry := objproxy.NewRetry(late, objproxy.RetryOptions{Log: log})
	s.Store, s.close, s.waiting = objproxy.NewPriority(retry, c.S3.Uploaders, c.S3.Downloaders), late.close, retry.Waiting
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
