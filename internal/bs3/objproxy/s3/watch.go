package s3

import (
	"context"
	"errors"
	"io"
	"time"
)

// errStuck is why a request that made no progress was given up.
var errStuck = errors.New("it made no progress for too long")

// watched is a request with a payload. Its time limit starts anew whenever some
// of the payload is transferred. On a slow line that many requests share, each
// takes long; with a limit on the whole request, all would fail and start again
// without end.
type watched struct {
	timer  *time.Timer
	limit  time.Duration
	cancel context.CancelCauseFunc
}

// watch bounds how long a request with a payload of the given number of bytes may
// be stuck. The caller must call stop when the request is done.
func (s *Store) watch(ctx context.Context, bytes int64) (reqCtx context.Context, w *watched) {
	reqCtx, cancel := context.WithCancelCause(ctx)
	limit := s.limitOf(bytes)
	timer := time.AfterFunc(limit, func() { cancel(errStuck) })
	return reqCtx, &watched{timer: timer, limit: limit, cancel: cancel}
}

func (w *watched) stop() {
	w.timer.Stop()
	w.cancel(nil)
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

// stuck returns errStuck if err is the failure of a request that was given up,
// and otherwise err.
func stuck(reqCtx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(reqCtx), errStuck) {
		return errStuck
	}
	return err
}
