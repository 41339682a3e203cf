package s3

import (
	"context"
	"errors"
	"io"
	"time"
)

// errStuck is why a request that did not get on was given up.
var errStuck = errors.New("none of it got on for too long")

// watched is a request with a payload. Its time starts again whenever some of
// the payload gets on: on a slow line that many requests share, each takes long
// and all would be begun again for ever if that were limited.
type watched struct {
	timer *time.Timer
	limit time.Duration
}

// watch bounds how long a request with a payload of so many bytes may be stuck.
func (s *Store) watch(ctx context.Context, bytes int64) (reqCtx context.Context, w *watched, stop func()) {
	reqCtx, cancel := context.WithCancelCause(ctx)
	limit := s.limitOf(bytes)
	w = &watched{limit: limit, timer: time.AfterFunc(limit, func() { cancel(errStuck) })}
	return reqCtx, w, func() {
		w.timer.Stop()
		cancel(nil)
	}
}

// watchedReader is the payload of a watched request, in either direction.
type watchedReader struct {
	io.ReadCloser
	w *watched
}

func (r watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 && err == nil {
		r.w.timer.Reset(r.w.limit)
	}
	return n, err
}

// stuck gives the reason if err is about a request that was given up.
func stuck(reqCtx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(reqCtx), errStuck) {
		return errStuck
	}
	return err
}
