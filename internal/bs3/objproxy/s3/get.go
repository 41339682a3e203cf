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
	"slices"
	"strconv"
	"strings"

	"bs3/internal/bs3/objproxy"
)

// Get implements objproxy.Store.
func (s *Store) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if len(p) == 0 {
		// HTTP has no empty range. A read of the last byte tells the same about
		// the object.
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
	if off < 0 && (errors.Is(err, objproxy.ErrRange) || errors.Is(err, errOtherPart)) {
		// Some stores refuse a suffix range that is longer than the object, or any
		// of an empty object; some take it for another range.
		httpRange = ""
		n, info, err = s.getOnce(ctx, name, p, off, httpRange)
	}
	if errors.Is(err, objproxy.ErrDamaged) {
		// The bytes may have changed on their way.
		n, info, err = s.getOnce(ctx, name, p, off, httpRange)
	}
	return n, info, err
}

// getOnce makes one request, for httpRange or, if that is empty, for the whole
// object, and takes from the answer what p and off require.
func (s *Store) getOnce(ctx context.Context, name string, p []byte, off int64, httpRange string) (int, objproxy.Info, error) {
	fail := func(err error) (int, objproxy.Info, error) { return 0, objproxy.Info{}, err }
	broken := func(err error) (int, objproxy.Info, error) {
		return fail(fmt.Errorf("%s: %w: %w", s.describe("get", name), objproxy.ErrTransient, err))
	}
	reqCtx, watched := s.watch(ctx, http.MethodGet, int64(len(p)))
	defer watched.stop()
	header := make(http.Header, 8)
	if httpRange != "" {
		header["Range"] = []string{httpRange}
	}
	if s.checksums {
		header["X-Amz-Checksum-Mode"] = []string{"ENABLED"}
	}
	s.encryption.customerKey(header)
	answer, err := s.requests.do(reqCtx, watched, request{
		method: http.MethodGet, object: s.prefix + name, header: header, payload: emptyPayload,
	})
	if err != nil {
		return fail(s.getError(ctx, name, err))
	}
	defer answer.Body.Close()
	s.noteKey(answer.Header)
	part, err := partOf(answer)
	if err != nil {
		return broken(err)
	}
	version, err := versionOf(answer.Header)
	if err != nil {
		return broken(err)
	}
	if off < 0 {
		off = max(0, part.size-int64(len(p)))
		p = p[:part.size-off]
	}
	end := off + int64(len(p))
	if end > part.size {
		_, _ = drain(answer.Body) // so that the connection can be used again
		return fail(s.pastTheEnd(name, len(p), off, part.size))
	}
	if part.start > off || part.end < end {
		return broken(fmt.Errorf("%w: %d to %d were requested, the store sends %d to %d", errOtherPart, off, end, part.start, part.end))
	}
	body, sum := io.Reader(watchedReader{answer.Body, watched}), (*checksum)(nil)
	if s.checksums && part.start == 0 && part.end == part.size {
		if sum = newChecksum(answer.Header); sum != nil {
			body = io.TeeReader(body, sum)
		}
	}
	if off > part.start {
		_, err = io.CopyN(io.Discard, body, off-part.start)
	}
	if err == nil {
		_, err = io.ReadFull(body, p)
	}
	if err == nil {
		// Reading to the end of the answer frees the connection.
		var more int64
		more, err = drain(body)
		// Only an answer with a length is known not to break off, or go on.
		if err == nil && answer.ContentLength < 0 && more != min(part.end-end, maxDrained) {
			err = fmt.Errorf("%d bytes instead of %d follow those requested", more, part.end-end)
		}
	}
	if err != nil {
		return fail(s.bodyError(ctx, name, stuck(reqCtx, err)))
	}
	if sum != nil {
		if err := sum.verify(part.size); err != nil {
			return fail(fmt.Errorf("%s: %w: %w", s.describe("get", name), objproxy.ErrDamaged, err))
		}
	}
	modified, _ := http.ParseTime(answer.Header.Get("Last-Modified")) // only for people
	return len(p), objproxy.Info{Name: name, Size: part.size, Version: version, Modified: modified}, nil
}

// maxDrained is how much of an answer is read beyond what is needed, in bytes. A
// longer one is dropped with its connection.
const maxDrained = 64 << 10

// drain reads the rest of an answer if it is short, and returns its length.
func drain(r io.Reader) (int64, error) {
	n, err := io.CopyN(io.Discard, r, maxDrained)
	if errors.Is(err, io.EOF) {
		return n, nil
	}
	return n, err
}

// errOtherPart means that the answer has not all the bytes that were requested,
// though the object has.
var errOtherPart = errors.New("other bytes than requested")

// part is the bytes [start, end) of an object of size bytes.
type part struct{ start, end, size int64 }

// emptyRanges are what stores say of a range of an empty object; HTTP knows none.
// MinIO says the first.
var emptyRanges = []string{"bytes 0--1/0", "bytes */0"}

// partOf returns which part of an object an answer brings.
func partOf(answer *http.Response) (part, error) {
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusPartialContent {
		return part{}, fmt.Errorf("the answer to a GET is %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	length := answer.ContentLength // -1 = the answer has none, but comes in chunks
	header := answer.Header.Get("Content-Range")
	switch {
	case header == "" && answer.StatusCode == http.StatusPartialContent:
		return part{}, errors.New("a part of an object, without Content-Range")
	case header == "" && length < 0:
		return part{}, errors.New("an answer without a length")
	case header == "":
		return part{0, length, length}, nil
	case slices.Contains(emptyRanges, header) && length <= 0:
		return part{}, nil
	}
	// Content-Range: bytes FIRST-LAST/SIZE (RFC 9110, 14.4).
	spec, ok := strings.CutPrefix(header, "bytes ")
	first, spec, dash := strings.Cut(spec, "-")
	last, all, slash := strings.Cut(spec, "/")
	ok = ok && dash && slash
	var p part
	for _, n := range []struct {
		text string
		to   *int64
	}{{first, &p.start}, {last, &p.end}, {all, &p.size}} {
		var err error
		if *n.to, err = strconv.ParseInt(n.text, 10, 64); err != nil {
			ok = false
		}
	}
	p.end++
	if !ok || p.start < 0 || p.end <= p.start || p.size < p.end || length >= 0 && p.end-p.start != length {
		return part{}, fmt.Errorf("an answer of %d bytes with Content-Range %q", length, header)
	}
	return p, nil
}

// checksum is the store's checksum of a whole object, and the hash of what came.
type checksum struct {
	hash.Hash32
	want string
	n    int64
}

// newChecksum returns a checksum of an answer that we can verify; nil if there is
// none. We cannot verify one of parts ("…-3").
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

// verify compares the checksums, if all of the size bytes were read.
func (c *checksum) verify(size int64) error {
	if got := encodeChecksum(c.Sum32()); c.n == size && got != c.want {
		return fmt.Errorf("its checksum is %s, the store says %s", got, c.want)
	}
	return nil
}

// encodeChecksum returns a CRC as S3 writes it.
func encodeChecksum(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}
