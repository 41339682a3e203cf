package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"bs3/internal/bs3/objproxy"
)

// Get implements objproxy.Store.
func (s *Store) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	what := s.describe("get", name)
	if len(p) == 0 {
		// HTTP has no range of no bytes. The last byte says as much of the
		// object.
		_, info, err := s.get(ctx, what, name, make([]byte, 1), -1)
		if err == nil && off > info.Size {
			err = pastTheEnd(what, 0, off, info.Size)
		}
		if err != nil {
			return 0, objproxy.Info{}, err
		}
		return 0, info, nil
	}
	return s.get(ctx, what, name, p, off)
}

func pastTheEnd(what string, n int, off, size int64) error {
	return fmt.Errorf("%s: %w: %d bytes at %d of %d", what, objproxy.ErrRange, n, off, size)
}

func (s *Store) get(ctx context.Context, what, name string, p []byte, off int64) (int, objproxy.Info, error) {
	httpRange := fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)
	if off < 0 {
		httpRange = fmt.Sprintf("bytes=-%d", len(p))
	}
	n, info, err := s.getOnce(ctx, what, name, p, off, &httpRange)
	if off < 0 && errors.Is(err, objproxy.ErrRange) {
		// Some stores refuse a suffix that is longer than the object, or any
		// of an empty one.
		return s.getOnce(ctx, what, name, p, off, nil)
	}
	return n, info, err
}

// getOnce makes one request, for a range or, if that is nil, for the whole
// object, and takes from the answer what p and off ask for.
func (s *Store) getOnce(ctx context.Context, what, name string, p []byte, off int64, httpRange *string) (int, objproxy.Info, error) {
	fail := func(err error) (int, objproxy.Info, error) { return 0, objproxy.Info{}, err }
	reqCtx, cancel := s.limit(ctx, int64(len(p)))
	defer cancel()
	out, err := s.client.GetObject(reqCtx, &s3.GetObjectInput{
		Bucket: &s.bucket,
		Key:    aws.String(s.prefix + name),
		Range:  httpRange,
	})
	if err != nil {
		return fail(getError(ctx, what, err))
	}
	defer out.Body.Close()
	start, end, size, err := extent(out)
	if err != nil {
		return fail(fmt.Errorf("%s: %w: %w", what, objproxy.ErrTransient, err))
	}
	if aws.ToString(out.ETag) == "" {
		return fail(fmt.Errorf("%s: %w: %w", what, objproxy.ErrTransient, errNoETag))
	}
	if off < 0 {
		off = max(0, size-int64(len(p)))
		p = p[:size-off]
	}
	last := off + int64(len(p))
	if last > size {
		_ = drain(out.Body) // for the connection's sake
		return fail(pastTheEnd(what, len(p), off, size))
	}
	if start > off || end < last {
		return fail(fmt.Errorf("%s: %w: asked for bytes %d to %d, the store sends %d to %d",
			what, objproxy.ErrTransient, off, last, start, end))
	}
	if _, err = io.CopyN(io.Discard, out.Body, off-start); err == nil {
		_, err = io.ReadFull(out.Body, p)
	}
	if err == nil {
		// The end of the answer frees the connection, and verifies a checksum.
		err = drain(out.Body)
	}
	if err != nil {
		return fail(bodyError(ctx, what, err))
	}
	return len(p), objproxy.Info{
		Name:     name,
		Size:     size,
		Version:  objproxy.Version(*out.ETag),
		Modified: aws.ToTime(out.LastModified),
	}, nil
}

// drain reads what is left of an answer if that is little; a longer rest is
// dropped with its connection.
func drain(r io.Reader) error {
	const little = 64 << 10
	_, err := io.CopyN(io.Discard, r, little)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// extent says which bytes [start, end) of an object of what size an answer
// brings.
func extent(out *s3.GetObjectOutput) (start, end, size int64, err error) {
	length := aws.ToInt64(out.ContentLength)
	if out.ContentLength == nil || length < 0 {
		return 0, 0, 0, errors.New("an answer without a length")
	}
	if out.ContentRange == nil {
		return 0, length, length, nil
	}
	// Content-Range: bytes FIRST-LAST/SIZE (RFC 9110, 14.4).
	r := *out.ContentRange
	spec, ok := strings.CutPrefix(r, "bytes ")
	if ok {
		var n int
		n, err = fmt.Sscanf(spec, "%d-%d/%d", &start, &end, &size)
		ok = n == 3 && err == nil
	}
	end++
	if !ok || start < 0 || end <= start || size < end || end-start != length {
		return 0, 0, 0, fmt.Errorf("an answer of %d bytes with Content-Range %q", length, r)
	}
	return start, end, size, nil
}
