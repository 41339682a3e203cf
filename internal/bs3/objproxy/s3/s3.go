// Package s3 is a store in a bucket of Amazon S3 or of anything that speaks
// its protocol: PutObject with If-None-Match and If-Match, GetObject with
// ranges, ListObjectsV2, DeleteObjects. Addresses are always path style.
//
// A request is tried once; objproxy.Retry tries again. A version is an ETag,
// which with most stores depends on the content alone: equal bytes put again
// have the same version. Callers that rely on versions must put something into
// the bytes that never repeats, as the volume record does.
package s3

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/sys/unix"

	"bs3/internal/bs3/objproxy"
)

// Checksums is when requests carry CRC checksums besides their signature.
type Checksums string

const (
	// ChecksumsWhenRequired sends them only where the protocol demands it, which
	// every store understands. The zero value means this too.
	ChecksumsWhenRequired Checksums = "when_required"
	// ChecksumsWhenSupported sends them with every Put and verifies those of
	// whole objects. Some stores refuse such Puts.
	ChecksumsWhenSupported Checksums = "when_supported"
)

// SignPayload is whether the signature of a Put covers its payload. Hashing the
// payload takes more time than the rest of a Put.
type SignPayload string

const (
	// SignPayloadAuto signs the payload unless the connection is TLS, which
	// protects it already. The zero value means this too.
	SignPayloadAuto SignPayload = "auto"
	// SignPayloadAlways signs the payload.
	SignPayloadAlways SignPayload = "always"
	// SignPayloadNever does not sign it. Without TLS, nothing but TCP's checksum
	// then detects that something else arrived than was sent.
	SignPayloadNever SignPayload = "never"
)

// Options are where the bucket is and how to talk to it.
type Options struct {
	Bucket   string
	Prefix   string // of all names in the bucket, with a slash between; may be empty
	Endpoint string // URL; empty = Amazon's for the region
	Region   string
	// AccessKey and SecretKey are the credentials. If both are empty, the SDK
	// looks for some (environment, shared files, the machine's role).
	AccessKey, SecretKey string
	Workers              int  // requests at once; as many idle connections are kept open
	HTTP2                bool // over TLS, if the server offers it
	StorageClass         string
	Checksums            Checksums
	SignPayload          SignPayload
}

const (
	// A request may make no progress for requestTime plus the time that its
	// payload takes at slowestRate: 286 s for 4 MiB, because the progress of what
	// the kernel still buffers is not visible. The limit is for requests that hang
	// in ways that TCP does not notice, so it is generous.
	requestTime = 30 * time.Second
	slowestRate = 16 << 10 // bytes per second

	dialTime = 10 * time.Second
	// unackedTime is how long sent bytes may stay unacknowledged before the
	// kernel closes the connection (TCP_USER_TIMEOUT).
	unackedTime = 30 * time.Second
	idleTime    = 90 * time.Second // after which an unused connection is closed

	maxBatch = 1000 // names or keys in one request or answer
)

// Store is an objproxy.Store in a bucket.
type Store struct {
	objects      *requester // for GET and PUT of objects
	client       *s3.Client // for all other requests
	bucket       string
	prefix       string // empty or ends in a slash
	endpoint     string // for messages
	region       string
	storageClass string
	checksums    bool // send and verify them wherever possible
	signPayload  bool
	requestTime  time.Duration
}

var _ objproxy.Store = (*Store)(nil)

// New returns a store. It sends no request to the bucket.
func New(ctx context.Context, o Options) (*Store, error) {
	var cfg aws.Config
	if o.AccessKey != "" || o.SecretKey != "" {
		cfg.Credentials = credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, "")
	} else {
		var err error
		// The SDK must not write to the log, whose format it does not know; it
		// returns its errors anyway.
		if cfg, err = config.LoadDefaultConfig(ctx, config.WithLogger(logging.Nop{})); err != nil {
			return nil, fmt.Errorf("read the configuration of the AWS SDK: %w", err)
		}
	}
	s := &Store{
		bucket:       o.Bucket,
		endpoint:     o.Endpoint,
		region:       o.Region,
		storageClass: o.StorageClass,
		requestTime:  requestTime,
	}
	if s.endpoint == "" {
		s.endpoint = "AWS " + o.Region
	}
	if p := strings.Trim(o.Prefix, "/"); p != "" {
		s.prefix = p + "/"
	}
	requests, responses := aws.RequestChecksumCalculationWhenRequired, aws.ResponseChecksumValidationWhenRequired
	switch o.Checksums {
	case "", ChecksumsWhenRequired:
	case ChecksumsWhenSupported:
		requests, responses = aws.RequestChecksumCalculationWhenSupported, aws.ResponseChecksumValidationWhenSupported
		s.checksums = true
	default:
		return nil, fmt.Errorf("checksums %q: want %q or %q", o.Checksums, ChecksumsWhenRequired, ChecksumsWhenSupported)
	}
	transport := Transport(o)
	s.client = s3.NewFromConfig(cfg, func(c *s3.Options) {
		c.Region = o.Region
		if o.Endpoint != "" {
			c.BaseEndpoint = &o.Endpoint
		}
		c.UsePathStyle = true
		c.HTTPClient = &http.Client{
			Transport: transport,
			// A signature is valid for one address, so redirects are not followed.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		c.Retryer = aws.NopRetryer{}
		c.RequestChecksumCalculation = requests
		c.ResponseChecksumValidation = responses
		c.DisableLogOutputChecksumValidationSkipped = true
		c.Logger = logging.Nop{} // it returns its errors
	})
	var err error
	if s.objects, err = newRequester(ctx, transport, s.client.Options(), o.Bucket); err != nil {
		return nil, err
	}
	switch o.SignPayload {
	case "", SignPayloadAuto:
		s.signPayload = !s.objects.tls
	case SignPayloadAlways:
		s.signPayload = true
	case SignPayloadNever:
	default:
		return nil, fmt.Errorf("sign payload %q: want %q, %q or %q", o.SignPayload, SignPayloadAuto, SignPayloadAlways, SignPayloadNever)
	}
	return s, nil
}

// Transport returns the HTTP transport of a store with these options. It is
// exported so that benchmarks can measure it alone. It is not the SDK's, which
// is cloned after HTTP/2 was set up in it, so that HTTP/2 cannot be turned off.
func Transport(o Options) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTime, Control: setUnackedTime}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: dialTime,
		MaxIdleConnsPerHost: o.Workers,
		IdleConnTimeout:     idleTime,
		DisableCompression:  true,
		Protocols:           new(http.Protocols),
		// A header and a block of 4 KiB fit; net/http's 4 KiB would cost another
		// system call for each. Larger payloads bypass the buffers.
		WriteBufferSize: 16 << 10,
		ReadBufferSize:  16 << 10,
	}
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(o.HTTP2)
	return t
}

func setUnackedTime(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedTime.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}

// limit bounds the time of one request that carries the given number of bytes.
func (s *Store) limit(ctx context.Context, bytes int64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.limitOf(bytes))
}

func (s *Store) limitOf(bytes int64) time.Duration {
	return s.requestTime + time.Duration(bytes)*time.Second/slowestRate
}

// List implements objproxy.Store. It returns no versions.
func (s *Store) List(ctx context.Context, prefix, after string, count int) ([]objproxy.Info, error) {
	what := s.describe("list", prefix)
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.prefix + prefix)}
	if after != "" {
		in.StartAfter = aws.String(s.prefix + after)
	}
	var infos []objproxy.Info
	for last := after; ; {
		in.MaxKeys = aws.Int32(int32(min(count-len(infos), maxBatch)))
		out, err := s.listPage(ctx, in)
		if err != nil {
			return nil, requestError(ctx, what, err)
		}
		if out.Name == nil && out.IsTruncated == nil && out.KeyCount == nil {
			// The SDK takes an answer without any element that it knows, such as
			// a page of a proxy, for an empty list.
			return nil, fmt.Errorf("%s: %w: the answer is not a list", what, objproxy.ErrTransient)
		}
		for _, o := range out.Contents {
			name, ours := strings.CutPrefix(aws.ToString(o.Key), s.prefix)
			if !ours || !strings.HasPrefix(name, prefix) {
				return nil, fmt.Errorf("%s: %w: the answer lists %q", what, objproxy.ErrTransient, aws.ToString(o.Key))
			}
			if name <= last && last != "" {
				return nil, fmt.Errorf("%s: the store does not list in order: %q after %q", what, name, last)
			}
			last = name
			infos = append(infos, objproxy.Info{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)})
		}
		if !aws.ToBool(out.IsTruncated) || len(infos) >= count {
			return infos, nil
		}
		if aws.ToString(out.NextContinuationToken) == "" {
			return nil, fmt.Errorf("%s: %w: the list is truncated without a continuation token", what, objproxy.ErrTransient)
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

func (s *Store) listPage(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, error) {
	ctx, cancel := s.limit(ctx, 0)
	defer cancel()
	return s.client.ListObjectsV2(ctx, in)
}

// Delete implements objproxy.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	var failed []*objproxy.DeleteError
	for len(names) > 0 {
		batch := names[:min(maxBatch, len(names))]
		names = names[len(batch):]
		failed = append(failed, s.deleteBatch(ctx, batch)...)
	}
	return objproxy.JoinDelete(failed)
}

func (s *Store) deleteBatch(ctx context.Context, names []string) (failed []*objproxy.DeleteError) {
	what := fmt.Sprintf("in bucket %s at %s", s.bucket, s.endpoint)
	// Not quiet, because a name counts as deleted only if the answer says so.
	in := &s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: &types.Delete{Quiet: aws.Bool(false)}}
	for _, name := range names {
		in.Delete.Objects = append(in.Delete.Objects, types.ObjectIdentifier{Key: aws.String(s.prefix + name)})
	}
	reqCtx, cancel := s.limit(ctx, 0)
	defer cancel()
	out, err := s.client.DeleteObjects(reqCtx, in, func(o *s3.Options) {
		// Older stores require this header where newer ones accept a CRC.
		o.APIOptions = append(o.APIOptions, smithyhttp.AddContentChecksumMiddleware)
	})
	answers := make(map[string]error) // by key; nil means deleted
	missing := fmt.Errorf("%s: %w: not in the answer", what, objproxy.ErrTransient)
	if err != nil {
		missing = requestError(ctx, what, err)
	} else {
		for _, d := range out.Deleted {
			answers[aws.ToString(d.Key)] = nil
		}
		for _, e := range out.Errors {
			answers[aws.ToString(e.Key)] = deleteError(what, aws.ToString(e.Code), aws.ToString(e.Message))
		}
	}
	for _, name := range names {
		err, answered := answers[s.prefix+name]
		if !answered {
			err = missing
		}
		if err != nil {
			failed = append(failed, &objproxy.DeleteError{Name: name, Err: err})
		}
	}
	return failed
}

func (s *Store) describe(do, name string) string {
	return fmt.Sprintf("%s %s%s in bucket %s at %s", do, s.prefix, name, s.bucket, s.endpoint)
}
