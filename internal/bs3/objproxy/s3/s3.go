// Package s3 is a store in a bucket of Amazon S3 or of anything that speaks
// its protocol: PutObject with If-None-Match and If-Match, GetObject with
// ranges, ListObjectsV2, and DeleteObjects or DeleteObject.
//
// Stores differ in what they want of a request. What a refusal shows of that is
// taken into account from then on (type wants and requester.do), so that it need
// not be configured.
//
// A request is tried once; objproxy.Retry tries again. A version is an ETag,
// which with most stores depends on the content alone: equal bytes put again
// have the same version. Callers that rely on versions must put something into
// the bytes that never repeats, as the volume record does.
package s3

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
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

// PathStyle is whether the bucket is named in the path of an address, or before
// the name of the server.
type PathStyle string

const (
	// PathStyleAuto names it in the path, unless the store refuses that. The zero
	// value means this too.
	PathStyleAuto PathStyle = "auto"
	// PathStyleAlways names it in the path.
	PathStyleAlways PathStyle = "always"
	// PathStyleNever names it before the name of the server, unless that is an IP
	// address.
	PathStyleNever PathStyle = "never"
)

// Options are where the bucket is and how to talk to it.
type Options struct {
	Bucket   string
	Prefix   string // of all names in the bucket, with a slash between; may be empty
	Endpoint string // URL; empty = Amazon's for the region
	Region   string // empty = the SDK's (environment, shared files), or else us-east-1
	// AccessKey and SecretKey are the credentials, and SessionToken if they are
	// temporary. If all are empty, the SDK looks for some (environment, shared
	// files, the machine's role).
	AccessKey, SecretKey, SessionToken string
	// CACert is a file of certificates, in PEM, that may sign the server's, beside
	// those of the system; it may be empty.
	CACert       string
	PathStyle    PathStyle
	Workers      int  // requests at once; as many idle connections are kept open
	HTTP2        bool // over TLS, if the server offers it
	StorageClass string
	Checksums    Checksums
	SignPayload  SignPayload
	// SSE is the server-side encryption that is asked for: AES256 or aws:kms;
	// empty = the bucket's own, and AES256 if the store denies puts without it.
	SSE            string
	SSEKMSKeyID    string // for aws:kms; empty = the bucket's own
	SSECustomerKey []byte // 32 bytes, for encryption by a key that the store does not keep
}

const (
	dialTime = 10 * time.Second
	// unackedTime is how long sent bytes may stay unacknowledged before the
	// kernel closes the connection (TCP_USER_TIMEOUT).
	unackedTime = 30 * time.Second
	idleTime    = 90 * time.Second // after which an unused connection is closed

	maxBatch = 1000 // names or keys in one request or answer

	// defaultRegion is Amazon's first.
	defaultRegion = "us-east-1"
)

// Store is an objproxy.Store in a bucket.
type Store struct {
	requests     *requester
	bucket       string
	prefix       string // empty or ends in a slash
	endpoint     string // for messages
	region       string
	storageClass string
	checksums    bool // send and verify them wherever possible
	signPayload  bool
	encryption   encryption
	wants        atomic.Pointer[wants]
	guessed      atomic.Pointer[time.Time] // see mayGuess; nil = never
	keyed        atomic.Bool               // the bucket is encrypted with a key of KMS, as answers show
	singly       atomic.Bool               // there is no DeleteObjects
	paces        paces
	// See the constants of these names.
	stallTime, leastWait time.Duration
}

var _ objproxy.Store = (*Store)(nil)

// New returns a store. It sends no request to the bucket.
func New(ctx context.Context, o Options) (*Store, error) {
	var cfg aws.Config
	hasKeys := o.AccessKey != "" || o.SecretKey != ""
	if !hasKeys || o.Region == "" {
		var err error
		if cfg, err = sdkConfig(ctx); err != nil {
			return nil, err
		}
	}
	if hasKeys {
		cfg = aws.Config{Region: cfg.Region}
		cfg.Credentials = credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, o.SessionToken)
	} else {
		cfg.Credentials = &reloaded{found: cfg.Credentials}
	}
	o.Region = cmp.Or(o.Region, cfg.Region, defaultRegion)
	s := &Store{
		bucket:       o.Bucket,
		endpoint:     o.Endpoint,
		region:       o.Region,
		storageClass: o.StorageClass,
		encryption:   newEncryption(o),
		stallTime:    stallTime,
		leastWait:    leastWait,
	}
	if s.endpoint == "" {
		s.endpoint = "AWS " + o.Region
	}
	if p := strings.Trim(o.Prefix, "/"); p != "" {
		s.prefix = p + "/"
	}
	w := &wants{}
	switch o.Checksums {
	case "", ChecksumsWhenRequired:
	case ChecksumsWhenSupported:
		s.checksums = true
		w.checksum = checksumCRC32
	default:
		return nil, fmt.Errorf("checksums %q: want %q or %q", o.Checksums, ChecksumsWhenRequired, ChecksumsWhenSupported)
	}
	s.wants.Store(w)
	// Of the SDK's client only the options are used: what it makes of the
	// environment and of its own files.
	sdk := s3.NewFromConfig(cfg, func(c *s3.Options) {
		c.Region = o.Region
		if o.Endpoint != "" {
			c.BaseEndpoint = &o.Endpoint
		}
	}).Options()
	sdk.Credentials = cfg.Credentials // the client has wrapped them
	var err error
	transport := Transport(o)
	if transport.TLSClientConfig, err = trusting(o.CACert); err != nil {
		return nil, err
	}
	if s.requests, err = newRequester(ctx, transport, sdk, o.Bucket, o.PathStyle); err != nil {
		return nil, err
	}
	if len(o.SSECustomerKey) > 0 && !s.requests.tls {
		return nil, fmt.Errorf("the key for encryption by %s is sent with each request, so its address must begin with https://", s.endpoint)
	}
	switch o.SignPayload {
	case "", SignPayloadAuto:
		s.signPayload = !s.requests.tls
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
	// Requests share a connection of HTTP/2, so that giving one up does not close it.
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: unackedTime}
	return t
}

// trusting returns the configuration of TLS that trusts what the certificates in a
// file sign, beside those of the system; nil, the usual one, if path is empty.
func trusting(path string) (*tls.Config, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificates of the store: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // the system has none
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates of the store: %s has none in PEM", path)
	}
	return &tls.Config{RootCAs: pool}, nil
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

func (s *Store) describe(do, name string) string {
	return fmt.Sprintf("%s %s%s in bucket %s at %s", do, s.prefix, name, s.bucket, s.endpoint)
}
