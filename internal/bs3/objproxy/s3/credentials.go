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
// refuses them, or when there are none.
type reloaded struct {
	mu     sync.Mutex
	found  aws.CredentialsProvider
	looked time.Time // when the files were read last
}

func (r *reloaded) provider() aws.CredentialsProvider {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found
}

// Retrieve implements aws.CredentialsProvider.
func (r *reloaded) Retrieve(ctx context.Context) (aws.Credentials, error) {
	found, err := r.provider().Retrieve(ctx)
	if err != nil && r.look(ctx, "") {
		return r.provider().Retrieve(ctx)
	}
	return found, err
}

// reload looks for credentials again, after refused were. It reports whether
// there are others.
func (r *reloaded) reload(ctx context.Context, refused aws.Credentials) bool {
	r.look(ctx, refused.Source)
	now, err := r.provider().Retrieve(ctx)
	return err == nil && (now.AccessKeyID != refused.AccessKeyID ||
		now.SecretAccessKey != refused.SecretAccessKey || now.SessionToken != refused.SessionToken)
}

// look reads the SDK's files again, unless that was done a moment ago, and reports
// whether it has found credentials. If source is not empty, only those of the same
// source count: while a file is away, or is being written, the SDK finds those of
// the machine's role instead, or none, and nobody would look again.
func (r *reloaded) look(ctx context.Context, source string) bool {
	r.mu.Lock()
	due := time.Since(r.looked) >= reloadEvery
	if due {
		r.looked = time.Now()
	}
	r.mu.Unlock()
	if !due {
		return false
	}
	cfg, err := sdkConfig(ctx)
	if err != nil {
		return false
	}
	// This may ask a server, so nobody is kept out meanwhile.
	if found, err := cfg.Credentials.Retrieve(ctx); err != nil || source != "" && found.Source != source {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = cfg.Credentials
	return true
}

// credentialCodes refuse the credentials, not the request.
var credentialCodes = []string{
	"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidClientTokenId",
}

func (r *refusal) ofCredentials() bool {
	return slices.Contains(credentialCodes, r.code) || r.status == http.StatusUnauthorized
}
