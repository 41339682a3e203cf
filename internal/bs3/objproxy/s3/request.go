package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/auth"
	"github.com/aws/smithy-go/encoding/httpbinding"
	smithyendpoints "github.com/aws/smithy-go/endpoints"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Values of X-Amz-Content-Sha256 (SigV4, "Authenticating Requests: Using the
// Authorization Header") that need no hashing.
const (
	emptyPayload    = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of nothing
	unsignedPayload = "UNSIGNED-PAYLOAD"
)

// sigV4 is the SDK's name for the signatures that we make.
const sigV4 = "sigv4"

// requester makes plain HTTP requests signed by the SDK's signer. The SDK's own
// operations take two to three times as much CPU, sign a header that some proxies
// change (Accept-Encoding), and lose the connection of a request with a payload
// whose answer arrives in two pieces. Credentials, region and endpoint are the
// SDK's.
type requester struct {
	// transport is not wrapped in an http.Client, which would follow redirects; a
	// signature is valid for one address.
	transport   http.RoundTripper
	credentials aws.CredentialsProvider
	signer      *v4.Signer
	tls         bool
	region      string // of the signature
	service     string // of the signature
	// bucket is its URL, without a slash at the end. It changes to virtual, if that
	// is not empty, when the store refuses the other.
	bucket  atomic.Pointer[string]
	virtual string
	// skew is how far the store's clock is ahead of ours, in ns, once a signature
	// was refused because of it.
	skew atomic.Int64
}

// newRequester resolves the address of the bucket. It sends no request.
func newRequester(ctx context.Context, transport http.RoundTripper, o s3.Options, bucket string, style PathStyle) (*requester, error) {
	r := &requester{
		transport:   transport,
		credentials: o.Credentials,
		signer: v4.NewSigner(func(o *v4.SignerOptions) {
			o.DisableURIPathEscaping = true // S3 signs paths as they are sent
		}),
		region:  o.Region,
		service: "s3",
	}
	endpoint, err := resolve(ctx, o, bucket, style != PathStyleNever)
	if err != nil {
		return nil, err
	}
	address := bucketURL(endpoint)
	r.bucket.Store(&address)
	r.tls = endpoint.URI.Scheme == "https"
	if style == PathStyleAuto || style == "" {
		other, err := resolve(ctx, o, bucket, false)
		if err != nil {
			return nil, err
		}
		if virtual := bucketURL(other); virtual != address {
			r.virtual = virtual
		}
	}
	schemes, _ := auth.GetAuthOptions(&endpoint.Properties)
	for _, scheme := range schemes {
		if scheme.SchemeID != sigV4 {
			continue
		}
		if region, ok := smithyhttp.GetSigV4SigningRegion(&scheme.SignerProperties); ok {
			r.region = region
		}
		if service, ok := smithyhttp.GetSigV4SigningName(&scheme.SignerProperties); ok {
			r.service = service
		}
		return r, nil
	}
	if len(schemes) > 0 {
		return nil, fmt.Errorf("bucket %s requires signatures of type %s; bs3 only makes %s", bucket, schemes[0].SchemeID, sigV4)
	}
	return r, nil
}

// resolve returns the address of the bucket, in path style or with the bucket's
// name before that of the server.
func resolve(ctx context.Context, o s3.Options, bucket string, pathStyle bool) (smithyendpoints.Endpoint, error) {
	p := s3.EndpointParameters{
		Bucket:         &bucket,
		Region:         &o.Region,
		Endpoint:       o.BaseEndpoint,
		ForcePathStyle: &pathStyle,
		UseFIPS:        aws.Bool(o.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		UseDualStack:   aws.Bool(o.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
	}
	endpoint, err := o.EndpointResolverV2.ResolveEndpoint(ctx, p.WithDefaults())
	if err != nil {
		return smithyendpoints.Endpoint{}, fmt.Errorf("find the address of bucket %s: %w", bucket, err)
	}
	return endpoint, nil
}

func bucketURL(e smithyendpoints.Endpoint) string { return strings.TrimSuffix(e.URI.String(), "/") }

// request is one request to the store.
type request struct {
	method  string
	object  string     // its name in the bucket; empty = the bucket itself
	query   url.Values // may be nil
	header  http.Header
	payload string        // value of X-Amz-Content-Sha256
	body    io.ReadCloser // may be nil
	size    int64         // of body, in bytes
}

// do sends one request, which w watches, and returns the answer if that is a
// success; the caller must close its body. Errors: *refusal, *noAnswer, or what
// prevented the request.
func (r *requester) do(ctx context.Context, w *watched, q request) (*http.Response, error) {
	bucket := *r.bucket.Load()
	u, err := url.Parse(bucket + "/" + httpbinding.EscapePath(q.object, false))
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", q.object, err)
	}
	if q.object == "" && u.Path != "/" {
		u.Path = strings.TrimSuffix(u.Path, "/") // for some servers a bucket has none
	}
	u.RawQuery = q.query.Encode()
	credentials, err := r.credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	q.header["X-Amz-Content-Sha256"] = []string{q.payload}
	q.header["User-Agent"] = []string{"bs3"}
	req := (&http.Request{
		Method: q.method, URL: u, Host: u.Host, Header: q.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if q.body != nil {
		req.Body, req.ContentLength = q.body, q.size
		if q.size == 0 {
			req.Body = http.NoBody // otherwise net/http takes its length for unknown
		}
	}
	now := time.Now().Add(time.Duration(r.skew.Load()))
	if err := r.signer.SignHTTP(ctx, credentials, req, q.payload, r.service, r.region, now); err != nil {
		return nil, fmt.Errorf("sign the request: %w", err)
	}
	answer, err := r.transport.RoundTrip(req)
	if err != nil {
		return nil, r.noAnswer(ctx, err)
	}
	w.answered()
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	refused := readRefusal(answer, r.tls)
	switch {
	case refused.code == skewedCode:
		r.learnSkew(answer)
	case slices.Contains(pathStyleCodes, refused.code) && r.virtual != "" && bucket != r.virtual:
		r.bucket.Store(&r.virtual)
		refused.again = true
	case refused.ofCredentials():
		if found, ok := r.credentials.(*reloaded); ok {
			refused.again = found.reload(ctx, credentials)
		}
	}
	return nil, refused
}

// pathStyleCodes refuse an address in path style: those of Alibaba's, Huawei's and
// Volcano Engine's stores.
var pathStyleCodes = []string{"SecondLevelDomainForbidden", "VirtualHostDomainRequired", "InvalidPathAccess"}

// noAnswer returns the error of a request that got no answer. If it was given up
// the way to the store may be broken in a manner that nobody is told of, so the
// next try makes a new connection.
func (r *requester) noAnswer(reqCtx context.Context, err error) error {
	why := stuck(reqCtx, err)
	if _, ok := errors.AsType[*givenUp](why); ok {
		if t, ok := r.transport.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
	return &noAnswer{why}
}

// learnSkew sets the skew from the date of an answer.
func (r *requester) learnSkew(answer *http.Response) {
	if t, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		r.skew.Store(int64(time.Until(t)))
	}
}

// refusal is an answer other than success.
type refusal struct {
	status        int
	code, message string // S3's; empty if the answer has none
	id            string // of the request, for the store's operator
	region        string // of the bucket, if the answer names it
	plainToTLS    bool   // the server expects TLS
	again         bool   // the next try is another request: it takes what this answer has taught into account
}

func (r *refusal) Error() string {
	s := fmt.Sprintf("the store answers %d %s", r.status, http.StatusText(r.status))
	if r.code != "" {
		s += ": " + r.code
	}
	if r.message != "" {
		s += ": " + r.message
	}
	if r.id != "" {
		s += " (request " + r.id + ")"
	}
	switch {
	case r.plainToTLS:
		s += "; it expects TLS there: does s3.remote have to begin with https://?"
	case slices.Contains(regionCodes, r.code) && r.region != "":
		s += "; the bucket is in region " + r.region + " (s3.region)"
	case slices.Contains(regionCodes, r.code):
		s += "; is s3.region right?"
	}
	return s
}

// says reports whether the message has what, which is in lower case.
func (r *refusal) says(what string) bool { return strings.Contains(strings.ToLower(r.message), what) }

// regionCodes say, or may say, that the request was made for another region.
var regionCodes = []string{"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "IncorrectEndpoint"}

// noAnswer is the failure of a request that got no answer, sent or not.
type noAnswer struct{ err error }

func (n *noAnswer) Error() string {
	if strings.Contains(n.err.Error(), `malformed HTTP response "\x15\x03`) { // a TLS alert
		return n.err.Error() + "; the server expects TLS there: does s3.remote have to begin with https://?"
	}
	return n.err.Error()
}

func (n *noAnswer) Unwrap() error { return n.err }

// readRefusal reads an answer to its end, within reason, so that its
// connection can be used again.
func readRefusal(answer *http.Response, overTLS bool) *refusal {
	r := &refusal{
		status: answer.StatusCode,
		id:     answer.Header.Get("X-Amz-Request-Id"),
		region: answer.Header.Get("X-Amz-Bucket-Region"),
	}
	// If the answer breaks off, what arrived must suffice; the status is known.
	b, _ := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
	var reason struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}
	if xml.Unmarshal(b, &reason) == nil { // a page of a proxy has no reason
		r.code, r.message = reason.Code, reason.Message
	} else {
		// So say the servers of Go, nginx and Apache.
		text := strings.ToLower(string(b))
		r.plainToTLS = answer.StatusCode == http.StatusBadRequest && !overTLS &&
			(strings.Contains(text, "https server") || strings.Contains(text, "https port") || strings.Contains(text, "ssl-enabled"))
	}
	return r
}

// maxRefusal is how much of a refusal is read, in bytes.
const maxRefusal = 64 << 10
