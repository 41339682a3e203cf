// Package stores opens the store that the configuration names. A new kind of
// store is one entry in kinds, beside its own package and its section of the
// configuration.
package stores

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/dir"
	"bs3/internal/bs3/objproxy/s3"
	"bs3/internal/bs3/volume"
	"bs3/internal/config"
)

// Store is the configured store. It is safe for concurrent use but for Close.
type Store struct {
	objproxy.Store
	Where string // for people

	Uploaders, Downloaders int  // requests at a time, each way
	UnsafeNoFencing        bool // see bs3.Options

	close func() error
	retry *objproxy.Retry // nil for a store that OpenToAsk has opened
}

// Close closes the store; closing it again changes nothing. No request may be
// under way, or follow.
func (s *Store) Close() error { return s.close() }

// Waiting returns since when requests wait for the store, and its last error;
// see objproxy.Retry.Waiting. It is safe for concurrent use, and panics on a
// store that OpenToAsk has opened.
func (s *Store) Waiting() (since time.Time, lastErr error, waiting bool) { return s.retry.Waiting() }

// Oldest returns when the oldest request was made that the store has not
// answered yet, and reports whether there is one. It is like Waiting otherwise.
func (s *Store) Oldest() (since time.Time, underWay bool) { return s.retry.Oldest() }

// kind is a kind of store as c configures it.
type kind struct {
	where                  string // for people
	uploaders, downloaders int
	unsafeNoFencing        bool
	refused                error // why it cannot be served, a *config.Error, and waiting does not help; nil = it can
	// toServe opens the store, and makes its directory or bucket if that is
	// missing.
	toServe func(context.Context) (objproxy.Store, error)
	// toAsk opens the store as it is, and changes nothing; it goes on when its
	// directory was away and is back. volume.ErrNoVolume says that there is no store
	// that could hold a volume.
	toAsk func(context.Context) (objproxy.Store, error)
	// toChange is toAsk for who changes something of what is there.
	toChange func(context.Context) (objproxy.Store, error)
}

// kinds is the table of stores, by their names in the configuration. Its
// functions send no request, but look at what is on this machine.
func kinds() map[string]func(context.Context, config.Config) (kind, error) {
	return map[string]func(context.Context, config.Config) (kind, error){
		config.StoreDir: directory,
		config.StoreS3:  bucket,
	}
}

func directory(_ context.Context, c config.Config) (kind, error) {
	var refused error
	if info, err := os.Stat(c.Dir.Path); err == nil && !info.IsDir() {
		refused = c.Refuse("dir.path", "must be a directory, not a file")
	}
	missing := func() error {
		if _, err := os.Stat(c.Dir.Path); err != nil {
			return fmt.Errorf("%w: %w", volume.ErrNoVolume, err)
		}
		return nil
	}
	return kind{
		where:       "directory " + c.Dir.Path,
		uploaders:   c.Dir.Uploaders,
		downloaders: c.Dir.Downloaders,
		refused:     refused,
		toServe: func(ctx context.Context) (objproxy.Store, error) {
			return dir.OpenLasting(ctx, c.Dir.Path)
		},
		toAsk: func(context.Context) (objproxy.Store, error) {
			if err := missing(); err != nil {
				return nil, err
			}
			return dir.OpenLastingReadOnly(c.Dir.Path)
		},
		toChange: func(ctx context.Context) (objproxy.Store, error) {
			if err := missing(); err != nil {
				return nil, err
			}
			return dir.OpenLasting(ctx, c.Dir.Path)
		},
	}, nil
}

func bucket(ctx context.Context, c config.Config) (kind, error) {
	key, err := c.S3.CustomerKey()
	if err != nil {
		return kind{}, fmt.Errorf("s3.sse_customer_key: %w", err) // config.Validate refuses it
	}
	b, err := s3.New(ctx, s3.Options{
		Bucket:         c.S3.Bucket,
		Endpoint:       c.S3.Remote,
		Region:         c.S3.Region,
		AccessKey:      string(c.S3.AccessKey),
		SecretKey:      string(c.S3.SecretKey),
		SessionToken:   string(c.S3.SessionToken),
		CACert:         c.S3.CACert,
		PathStyle:      s3.PathStyle(c.S3.PathStyle),
		Prefix:         c.S3.Prefix,
		Workers:        c.S3.Uploaders + c.S3.Downloaders,
		HTTP2:          c.S3.HTTP2,
		StorageClass:   c.S3.StorageClass,
		Checksums:      s3.Checksums(c.S3.Checksums),
		SignPayload:    s3.SignPayload(c.S3.SignPayload),
		SSE:            c.S3.SSE,
		SSEKMSKeyID:    c.S3.SSEKMSKeyID,
		SSECustomerKey: key,
	})
	if err != nil {
		return kind{}, err
	}
	where := "bucket " + c.S3.Bucket
	if c.S3.Prefix != "" {
		where += ", prefix " + c.S3.Prefix
	}
	if c.S3.Remote != "" {
		where += " at " + c.S3.Remote
	}
	isThere := func(context.Context) (objproxy.Store, error) { return b, nil }
	return kind{
		where:           where,
		uploaders:       c.S3.Uploaders,
		downloaders:     c.S3.Downloaders,
		unsafeNoFencing: c.S3.UnsafeNoFencing,
		toServe: func(ctx context.Context) (objproxy.Store, error) {
			return b, b.EnsureBucket(ctx)
		},
		toAsk:    isThere,
		toChange: isThere,
	}, nil
}

// OpenToServe returns the store that c describes, with two priorities for
// requests, which are tried again for as long as their ctx allows. It sends no
// request: the first one opens the store, and makes a directory or bucket that
// is missing. Errors: volume.ErrStore, *config.Error.
func OpenToServe(ctx context.Context, c config.Config, log zerolog.Logger) (*Store, error) {
	k, err := find(ctx, c)
	if err != nil {
		return nil, err
	}
	if k.refused != nil {
		return nil, k.refused
	}
	late := objproxy.NewLate(k.toServe)
	retry := objproxy.NewRetry(late, objproxy.RetryOptions{Log: log})
	return k.store(objproxy.NewPriority(retry, k.uploaders, k.downloaders), late.Close, retry), nil
}

// OpenToAsk opens the store that c describes as it is, for who changes nothing. Its
// requests are tried again as those of a Patient. Errors: volume.ErrNoVolume (there is
// nothing that could hold one), volume.ErrStore.
func OpenToAsk(ctx context.Context, c config.Config, patience time.Duration) (*Store, error) {
	return openPatient(ctx, c, patience, false)
}

// OpenToChange is OpenToAsk for who changes a volume that is there. It makes neither
// directory nor bucket.
func OpenToChange(ctx context.Context, c config.Config, patience time.Duration) (*Store, error) {
	return openPatient(ctx, c, patience, true)
}

func openPatient(ctx context.Context, c config.Config, patience time.Duration, change bool) (*Store, error) {
	k, err := find(ctx, c)
	if err != nil {
		return nil, err
	}
	open := k.toAsk
	if change {
		open = k.toChange
	}
	s, err := asItIs(open(ctx))
	if err != nil {
		return nil, err
	}
	return k.store(NewPatient(s, patience), func() error { return objproxy.Close(s) }, nil), nil
}

// OpenToRead opens the store that c describes as it is, for somebody who serves what
// is in it and changes nothing: it is OpenToServe in all else. Errors: those of
// OpenToAsk, *config.Error.
func OpenToRead(ctx context.Context, c config.Config, log zerolog.Logger) (*Store, error) {
	k, err := find(ctx, c)
	if err != nil {
		return nil, err
	}
	if k.refused != nil {
		return nil, k.refused
	}
	s, err := asItIs(k.toAsk(ctx))
	if err != nil {
		return nil, err
	}
	retry := objproxy.NewRetry(s, objproxy.RetryOptions{Log: log})
	return k.store(objproxy.NewPriority(retry, k.uploaders, k.downloaders), func() error { return objproxy.Close(s) }, retry), nil
}

// asItIs returns what toAsk or toChange does, with volume.ErrStore for what is not
// volume.ErrNoVolume.
func asItIs(s objproxy.Store, err error) (objproxy.Store, error) {
	if err != nil && !errors.Is(err, volume.ErrNoVolume) {
		return nil, fmt.Errorf("%w: %w", volume.ErrStore, err)
	}
	return s, err
}

// find looks up the kind of store that c names. Errors: volume.ErrStore.
func find(ctx context.Context, c config.Config) (kind, error) {
	configured, ok := kinds()[c.Store]
	if !ok {
		return kind{}, fmt.Errorf("store = %q: there is no such store", c.Store) // config.Validate refuses it
	}
	k, err := configured(ctx, c)
	if err != nil {
		return kind{}, fmt.Errorf("%w: %w", volume.ErrStore, err)
	}
	return k, nil
}

func (k kind) store(s objproxy.Store, closing func() error, retry *objproxy.Retry) *Store {
	return &Store{
		Store: s, Where: k.where,
		Uploaders: k.uploaders, Downloaders: k.downloaders, UnsafeNoFencing: k.unsafeNoFencing,
		close: sync.OnceValue(closing), retry: retry,
	}
}
