package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"

	"bs3/internal/bs3/objproxy"
)

// EnsureBucket creates the bucket if it is missing. It asks for no more than a
// key may do that is limited to the prefix: it lists what is below that.
func (s *Store) EnsureBucket(ctx context.Context) error {
	err := s.lookForBucket(ctx)
	if _, code := answer(err); code == "NoSuchBucket" {
		return s.createBucket(ctx)
	}
	if err != nil {
		return requestError(ctx, fmt.Sprintf("look for bucket %s at %s", s.bucket, s.endpoint), err)
	}
	return nil
}

// lookForBucket lists one object. It returns an error of requester.do.
func (s *Store) lookForBucket(ctx context.Context) error {
	_, err := s.listPage(ctx, url.Values{"list-type": {"2"}, "prefix": {s.prefix}, "max-keys": {"1"}})
	return err
}

// bucketConfiguration is the payload of CreateBucket.
type bucketConfiguration struct {
	XMLName            xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CreateBucketConfiguration"`
	LocationConstraint string
}

func (s *Store) createBucket(ctx context.Context) error {
	what := fmt.Sprintf("create the missing bucket %s at %s", s.bucket, s.endpoint)
	var body objproxy.Body
	// Amazon's first region is the default and must not be named.
	if s.region != defaultRegion {
		b, err := xml.Marshal(bucketConfiguration{LocationConstraint: s.region})
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		body.Data = b
	}
	sum := sha256.Sum256(body.Data)
	r := body.Open()
	defer r.Close()
	err := s.askXML(ctx, nil, request{method: http.MethodPut, payload: hex.EncodeToString(sum[:]), body: r, size: body.Size()})
	if err == nil {
		return nil
	}
	switch status, code := answer(err); {
	case code == "BucketAlreadyOwnedByYou": // another process was faster
		return nil
	case code == "BucketAlreadyExists":
		if s.lookForBucket(ctx) == nil { // some stores answer this even if it is ours
			return nil
		}
		return fmt.Errorf("%s: somebody else has a bucket of that name: %s", what, err.Error())
	case status == http.StatusForbidden:
		return requestError(ctx, what+": no permission (s3:CreateBucket); create it by other means", err)
	}
	return requestError(ctx, what, err)
}
