package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"bs3/internal/bs3/objproxy"
)

// errNoETag is an error because a store without ETags has no conditions either.
var errNoETag = errors.New("the store's answer has no ETag")

// transientCodes refuse one attempt, not the request, although the status does
// not show it.
var transientCodes = []string{
	skewedCode, "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
}

// skewedCode means that one of the two clocks is wrong. The next try is signed
// with the store's time.
const skewedCode = "RequestTimeTooSkewed"

// answer returns the status and S3's code in an error of a requester. The status
// is 0 if there was no answer; the code is empty if it gave no reason.
func answer(err error) (status int, code string) {
	if e, ok := errors.AsType[*refusal](err); ok {
		return e.status, e.code
	}
	return 0, ""
}

// requestError returns the error for a failed request, if nothing more specific
// applies: ErrTransient or a permanent one. ctx is the caller's, without the time
// limit of the request. The cause is not wrapped, because a time limit of ours
// must not look like the end of the caller's ctx.
func requestError(ctx context.Context, what string, err error) error {
	if e := ctx.Err(); e != nil {
		return fmt.Errorf("%s: %w", what, e)
	}
	if transient(err) {
		return fmt.Errorf("%s: %w: %s", what, objproxy.ErrTransient, err.Error())
	}
	return fmt.Errorf("%s: %s", what, err.Error())
}

func transient(err error) bool {
	status, code := answer(err)
	refused, _ := errors.AsType[*refusal](err)
	switch {
	case refused != nil && refused.again:
		return true
	case status == 0:
		// Without an answer; otherwise the request was not even made (for example
		// because there are no credentials).
		_, lost := errors.AsType[*noAnswer](err)
		return lost || errors.Is(err, context.DeadlineExceeded)
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusTooManyRequests:
		return true
	case status >= 500:
		return status != http.StatusNotImplemented
	case status == http.StatusNotFound:
		// A gateway that does not reach what is behind it. S3 itself gives reasons.
		return code == ""
	default:
		return slices.Contains(transientCodes, code)
	}
}

func (s *Store) getError(ctx context.Context, name string, err error) error {
	what := s.describe("get", name)
	switch status, code := answer(err); {
	case status == http.StatusNotFound && code == "NoSuchKey":
		return fmt.Errorf("%s: %w", what, objproxy.ErrNotFound)
	case status == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s: %w: %s", what, objproxy.ErrRange, err.Error())
	}
	return requestError(ctx, what, err)
}

// bodyError returns the error for an answer that broke off.
func (s *Store) bodyError(ctx context.Context, name string, err error) error {
	what := s.describe("get", name)
	if e := ctx.Err(); e != nil {
		return fmt.Errorf("%s: %w", what, e)
	}
	return fmt.Errorf("%s: %w: the answer is broken: %s", what, objproxy.ErrTransient, err.Error())
}

func (s *Store) putError(ctx context.Context, name string, err error, cond objproxy.Condition) error {
	what := s.describe("put", name)
	version, isVersion := cond.Version()
	if !cond.Absent() && !isVersion {
		return requestError(ctx, what, err)
	}
	refused, _ := errors.AsType[*refusal](err)
	switch status, code := answer(err); {
	case status == http.StatusPreconditionFailed,
		// Some stores answer so if If-Match finds no object.
		status == http.StatusNotFound && code == "NoSuchKey":
		return fmt.Errorf("%s: %w", what, objproxy.ErrExists)
	case status == http.StatusNotImplemented && !refused.says("encryption"):
		return fmt.Errorf("%s: conditional puts: %w: %s", what, errors.ErrUnsupported, err.Error())
	case status == 0 && ctx.Err() == nil:
		// A store may refuse before it has read the body and hang up at once. We
		// then see a broken connection instead of the refusal, and would again at
		// the next try. A Get shows whether the condition holds without sending
		// the body.
		_, there, e := s.Get(ctx, name, nil, 0)
		if e == nil && (cond.Absent() || there.Version != version) || isVersion && errors.Is(e, objproxy.ErrNotFound) {
			return fmt.Errorf("%s: %w: seen after %s", what, objproxy.ErrExists, err.Error())
		}
	}
	return requestError(ctx, what, err)
}

// deleteError returns the error for one name of a batch; nil if there is no such
// object.
func deleteError(what, code, message string) error {
	switch code {
	case "NoSuchKey":
		return nil
	case "InternalError", "SlowDown", "ServiceUnavailable", "OperationAborted":
		return fmt.Errorf("%s: %w: %s: %s", what, objproxy.ErrTransient, code, message)
	}
	return fmt.Errorf("%s: %s: %s", what, code, message)
}
