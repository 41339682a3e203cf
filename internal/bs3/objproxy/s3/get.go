package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"

	"bs3/internal/bs3/objproxy"
)

// Get implements objproxy.Store.
func (s *Store) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if len(p) == 0 {
		// HTTP has no range of no bytes. The last byte says as much of the
		// object.
		_, info, err := s.get(ctx, name, make([]byte, 1), -1)
		if err == nil && off > info.Size {
			err = s.pastTheEnd(name, 0, off, info.Size)
		}
		if err != nil {
			return 0, objproxy.Info{}, err
		}
		return 0, info, nil
	}
	return s.get(ctx, name, p, off)
}

func (s *Store) pastTheEnd(name string, n int, off, size int64) error {
	return fmt.Errorf("%s: %w: %d bytes at %d of %d", s.describe("get", name), objproxy.ErrRange, n, off, size)
}

func (s *Store) get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	var httpRange string
	if off < 0 {
		httpRange = "bytes=-" + strconv.Itoa(len(p))
	} else {
		httpRange = "bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+int64(len(p))-1, 10)
	}
	n, info, err := s.getOnce(ctx, name, p, off, httpRange)
	if off < 0 && errors.Is(err, objproxy.ErrRange) {
		// Some stores refuse a suffix that is longer than the object, or any
		// of an empty one.
		return s.getOnce(ctx, name, p, off, "")
	}
	return n, info, err
}

// getOnce makes one request, for a range or, if that is empty, for the whole
// object, and takes from the answer what p and off ask for.
func (s *Store) getOnce(ctx context.Context, name string, p []byte, off int64, httpRange string) (int, objproxy.Info, error) {
	fail := func(err error) (int, objproxy.Info, error) { return 0, objproxy.Info{}, err }
	broken := func(err error) (int, objproxy.Info, error) {
		return fail(fmt.Errorf("%s: %w: %w", s.describe("get", name), objproxy.ErrTransient, err))
	}
	reqCtx, watched, stop := s.watch(ctx, int64(len(p)))
	defer stop()
	header := make(http.Header, 8)
	if httpRange != "" {
		header["Range"] = []string{httpRange}
	}
	if s.checksums {
		header["X-Amz-Checksum-Mode"] = []string{"ENABLED"}
	}
	answer, err := s.objects.do(reqCtx, http.MethodGet, s.prefix+name, header, emptyPayload, nil, 0)
	if err != nil {
		return fail(s.getError(ctx, name, err))
	}
	defer answer.Body.Close()
	start, end, size, err := extent(answer)
	if err != nil {
		return broken(err)
	}
	version := answer.Header.Get("Etag")
	if version == "" {
		return broken(errNoETag)
	}
	if off < 0 {
		off = max(0, size-int64(len(p)))
		p = p[:size-off]
	}
	last := off + int64(len(p))
	if last > size {
		_ = drain(answer.Body) // for the connection's sake
		return fail(s.pastTheEnd(name, len(p), off, size))
	}
	if start > off || end < last {
		return broken(fmt.Errorf("asked for bytes %d to %d, the store sends %d to %d", off, last, start, end))
	}
	body, sum := io.Reader(watchedReader{answer.Body, watched}), (*checksum)(nil)
	if s.checksums && start == 0 && end == size {
		if sum = newChecksum(answer.Header); sum != nil {
			body = io.TeeReader(body, sum)
		}
	}
	if off > start {
		_, err = io.CopyN(io.Discard, body, off-start)
	}
	if err == nil {
		_, err = io.ReadFull(body, p)
	}
	if err == nil {
		// The end of the answer frees the connection.
		err = drain(body)
	}
	if err == nil && sum != nil {
		err = sum.verify(size)
	}
	if err != nil {
		return fail(s.bodyError(ctx, name, stuck(reqCtx, err)))
	}
	modified, _ := http.ParseTime(answer.Header.Get("Last-Modified")) // it is only for people
	return len(p), objproxy.Info{Name: name, Size: size, Version: objproxy.Version(version), Modified: modified}, nil
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
func extent(answer *http.Response) (start, end, size int64, err error) {
	length := answer.ContentLength
	if length < 0 {
		return 0, 0, 0, errors.New("an answer without a length")
	}
	header := answer.Header.Get("Content-Range")
	if header == "" {
		if answer.StatusCode == http.StatusPartialContent {
			return 0, 0, 0, errors.New("a part of an object, without Content-Range")
		}
		return 0, length, length, nil
	}
	// Content-Range: bytes FIRST-LAST/SIZE (RFC 9110, 14.4).
	spec, ok := strings.CutPrefix(header, "bytes ")
	first, spec, dash := strings.Cut(spec, "-")
	last, all, slash := strings.Cut(spec, "/")
	ok = ok && dash && slash
	for _, n := range []struct {
		text string
		to   *int64
	}{{first, &start}, {last, &end}, {all, &size}} {
		if *n.to, err = strconv.ParseInt(n.text, 10, 64); err != nil {
			ok = false
		}
	}
	end++
	if !ok || start < 0 || end <= start || size < end || end-start != length {
		return 0, 0, 0, fmt.Errorf("an answer of %d bytes with Content-Range %q", length, header)
	}
	return start, end, size, nil
}

// checksum is what a store says of a whole object, and the hash of what came.
type checksum struct {
	hash.Hash32
	want string
	n    int64
}

// newChecksum gives the checksum of an answer that we can compute; nil if there
// is none. One of parts ("…-3") is not.
func newChecksum(header http.Header) *checksum {
	for name, table := range map[string]*crc32.Table{
		"X-Amz-Checksum-Crc32":  crc32.IEEETable,
		"X-Amz-Checksum-Crc32c": crc32.MakeTable(crc32.Castagnoli),
	} {
		if want := header.Get(name); want != "" && !strings.Contains(want, "-") {
			return &checksum{Hash32: crc32.New(table), want: want}
		}
	}
	return nil
}

// Write implements io.Writer.
func (c *checksum) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Hash32.Write(p)
}

// verify compares, if all of the size bytes were read.
func (c *checksum) verify(size int64) error {
	if got := encodeChecksum(c.Sum32()); c.n == size && got != c.want {
		return fmt.Errorf("its checksum is %s, the store says %s", got, c.want)
	}
	return nil
}

// encodeChecksum is how S3 writes a CRC.
func encodeChecksum(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}
