package s3

import (
	"context"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// EnsureBucket creates the bucket if it is missing.
func (s *Store) EnsureBucket(ctx context.Context) error {
	what := fmt.Sprintf("look for bucket %s at %s", s.bucket, s.endpoint)
	err := s.headBucket(ctx)
	if err == nil {
		return nil
	}
	// An answer to HEAD has no body, so it gives no reason.
	switch status, _ := answer(err); status {
	case http.StatusNotFound:
		return s.createBucket(ctx)
	case http.StatusForbidden:
		return requestError(ctx, what+": the credentials are wrong, or lack the permission to list it (s3:ListBucket)", err)
	case http.StatusMovedPermanently, http.StatusBadRequest:
		return requestError(ctx, fmt.Sprintf("%s: refused; is region %q right?", what, s.region), err)
	}
	return requestError(ctx, what, err)
}

func (s *Store) headBucket(ctx context.Context) error {
	ctx, cancel := s.limit(ctx, 0)
	defer cancel()
	_, err := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.bucket})
	return err
}

func (s *Store) createBucket(ctx context.Context) error {
	what := fmt.Sprintf("create the missing bucket %s at %s", s.bucket, s.endpoint)
	in := &s3.CreateBucketInput{Bucket: &s.bucket}
	// Amazon's first region is the default and must not be named.
	if s.region != "" && s.region != "us-east-1" {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{
			LocationConstraint: types.BucketLocationConstraint(s.region),
		}
	}
	reqCtx, cancel := s.limit(ctx, 0)
	defer cancel()
	_, err := s.client.CreateBucket(reqCtx, in)
	if err == nil {
		return nil
	}
	switch status, code := answer(err); {
	case code == "BucketAlreadyOwnedByYou": // another process was faster
		return nil
	case code == "BucketAlreadyExists":
		if s.headBucket(ctx) == nil { // some stores answer this even if it is ours
			return nil
		}
		return fmt.Errorf("%s: somebody else has a bucket of that name: %s", what, err.Error())
	case status == http.StatusForbidden:
		return requestError(ctx, what+": no permission (s3:CreateBucket); create it by other means", err)
	}
	return requestError(ctx, what, err)
}
