package s3

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"
)

// sdkConfig reads the environment and the files of the AWS SDK. The SDK must not
// write to the log, whose format it does not know; it returns its errors anyway.
func sdkConfig(ctx context.Context) (aws.Config, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithLogger(logging.Nop{}))
	if err != nil {
		return aws.Config{}, fmt.Errorf("read the configuration of the AWS SDK: %w", err)
	}
	return cfg, nil
}

// reloadEvery is the shortest time between two looks at the SDK's files.
const reloadEvery = time.Second

// reloaded are credentials that the SDK has found. The SDK renews those that say
// when they expire. Keys in a file do not, so they are read again when a store
// refuses them.
type reloaded struct {
	mu     sync.Mutex
	found  aws.CredentialsProvider
	loaded time.Time
}

// Retrieve implements aws.CredentialsProvider.
func (r *reloaded) Retrieve(ctx context.Context) (aws.Credentials, error) {
	r.mu.Lock()
	found := r.found
	r.mu.Unlock()
	return found.Retrieve(ctx)
}

// reload looks for credentials again, after refused were. It reports whether
// there are others.
func (r *reloaded) reload(ctx context.Context, refused aws.Credentials) bool {
	r.mu.Lock()
	if time.Since(r.loaded) >= reloadEvery {
		r.loaded = time.Now()
		if cfg, err := sdkConfig(ctx); err == nil { // otherwise the file is being written, or was lost
			r.found = cfg.Credentials
		}
	}
	r.mu.Unlock()
	now, err := r.Retrieve(ctx)
	return err == nil && (now.AccessKeyID != refused.AccessKeyID ||
		now.SecretAccessKey != refused.SecretAccessKey || now.SessionToken != refused.SessionToken)
}

// credentialCodes refuse the credentials, not the request.
var credentialCodes = []string{
	"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidClientTokenId",
}

func (r *refusal) ofCredentials() bool {
	return slices.Contains(credentialCodes, r.code) || r.status == http.StatusUnauthorized
}
