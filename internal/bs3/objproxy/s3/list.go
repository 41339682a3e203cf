package s3

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"bs3/internal/bs3/objproxy"
)

// maxAnswer is how much of an answer in XML is read, in bytes. A thousand names
// take less than 2 MiB.
const maxAnswer = 16 << 20

// listing is the answer to ListObjectsV2.
type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	IsTruncated           bool
	NextContinuationToken string
	Contents              []struct {
		Key          string
		Size         int64
		LastModified string
	}
}

// List implements objproxy.Store. It returns no versions.
func (s *Store) List(ctx context.Context, prefix, after string, count int) ([]objproxy.Info, error) {
	what := s.describe("list", prefix)
	query := url.Values{"list-type": {"2"}, "prefix": {s.prefix + prefix}}
	if after != "" {
		query.Set("start-after", s.prefix+after)
	}
	var infos []objproxy.Info
	for last, token := after, ""; ; {
		query.Set("max-keys", strconv.Itoa(min(count-len(infos), maxBatch)))
		page, err := s.listPage(ctx, query)
		if err != nil {
			return nil, requestError(ctx, what, err)
		}
		for _, o := range page.Contents {
			name, ours := strings.CutPrefix(o.Key, s.prefix)
			if !ours || !strings.HasPrefix(name, prefix) {
				return nil, fmt.Errorf("%s: %w: the answer lists %q", what, objproxy.ErrTransient, o.Key)
			}
			if name <= last && last != "" {
				return nil, fmt.Errorf("%s: the store does not list in order: %q after %q", what, name, last)
			}
			last = name
			modified, _ := time.Parse(time.RFC3339, o.LastModified) // only for people
			infos = append(infos, objproxy.Info{Name: name, Size: o.Size, Modified: modified})
		}
		if !page.IsTruncated || len(infos) >= count {
			return infos, nil
		}
		switch next := page.NextContinuationToken; next {
		case "":
			return nil, fmt.Errorf("%s: %w: the list is truncated without a continuation token", what, objproxy.ErrTransient)
		case token:
			// The next page would be this one again, and so on without end.
			return nil, fmt.Errorf("%s: %w: the list repeats its continuation token %q", what, objproxy.ErrTransient, next)
		default:
			token = next
			query.Set("continuation-token", next)
		}
	}
}

func (s *Store) listPage(ctx context.Context, query url.Values) (*listing, error) {
	var page listing
	err := s.askXML(ctx, &page, request{method: http.MethodGet, query: query, payload: emptyPayload})
	return &page, err
}

// askXML makes one request that is not the transfer of an object, and decodes
// the answer into result. Its errors are those of requester.do, and *noAnswer for
// an answer that cannot be read.
func (s *Store) askXML(ctx context.Context, result any, q request) error {
	reqCtx, watched := s.watch(ctx, q.method, 0)
	defer watched.stop()
	if q.header == nil {
		q.header = make(http.Header, 8)
	}
	answer, err := s.requests.do(reqCtx, watched, q)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(watchedReader{answer.Body, watched}, maxAnswer))
	if err != nil {
		return s.requests.noAnswer(reqCtx, err)
	}
	if result == nil {
		return nil
	}
	if err := xml.Unmarshal(b, result); err != nil { // a page of a proxy, for example
		return &noAnswer{fmt.Errorf("the answer cannot be read: %w", err)}
	}
	return nil
}
