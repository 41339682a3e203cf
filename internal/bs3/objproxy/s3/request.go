package s3

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/auth"
	"github.com/aws/smithy-go/encoding/httpbinding"
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

// requester makes the frequent requests, GET and PUT of single objects, as plain
// HTTP requests signed by the SDK's signer. The SDK's own operations take two to
// three times as much CPU. Credentials, region and endpoint are the SDK's.
type requester struct {
	// transport is not wrapped in an http.Client, which would follow redirects; a
	// signature is valid for one address.
	transport   http.RoundTripper
	credentials aws.CredentialsProvider
	signer      *v4.Signer
	bucket      string // URL of the bucket, with a slash at the end
	tls         bool
	region      string // of the signature
	service     string // of the signature
	// skew is how far the store's clock is ahead of ours, in ns, once a signature
	// was refused because of it.
	skew atomic.Int64
}

// newRequester resolves the address of the bucket. It sends no request.
func newRequester(ctx context.Context, transport http.RoundTripper, o s3.Options, bucket string) (*requester, error) {
	p := s3.EndpointParameters{
		Bucket:         &bucket,
		Region:         &o.Region,
		Endpoint:       o.BaseEndpoint,
		ForcePathStyle: &o.UsePathStyle,
		UseFIPS:        aws.Bool(o.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		UseDualStack:   aws.Bool(o.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
	}
	endpoint, err := o.EndpointResolverV2.ResolveEndpoint(ctx, p.WithDefaults())
	if err != nil {
		return nil, fmt.Errorf("find the address of bucket %s: %w", bucket, err)
	}
	r := &requester{
		transport:   transport,
		credentials: o.Credentials,
		signer: v4.NewSigner(func(o *v4.SignerOptions) {
			o.DisableURIPathEscaping = true // S3 signs paths as they are sent
		}),
		bucket:  strings.TrimSuffix(endpoint.URI.String(), "/") + "/",
		tls:     endpoint.URI.Scheme == "https",
		region:  o.Region,
		service: "s3",
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

// do sends one request for an object and returns the answer if that is a success;
// the caller must close its body. Errors: *refusal, *noAnswer, or what prevented
// the request. payload is the value of X-Amz-Content-Sha256; body, which has size
// bytes, may be nil.
func (r *requester) do(ctx context.Context, method, object string, header http.Header, payload string, body io.ReadCloser, size int64) (*http.Response, error) {
	u, err := url.Parse(r.bucket + httpbinding.EscapePath(object, false))
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", object, err)
	}
	credentials, err := r.credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	header["X-Amz-Content-Sha256"] = []string{payload}
	header["User-Agent"] = []string{"bs3"}
	req := (&http.Request{
		Method: method, URL: u, Host: u.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if body != nil {
		req.Body, req.ContentLength = body, size
		if size == 0 {
			req.Body = http.NoBody // otherwise net/http takes its length for unknown
		}
	}
	now := time.Now().Add(time.Duration(r.skew.Load()))
	if err := r.signer.SignHTTP(ctx, credentials, req, payload, r.service, r.region, now); err != nil {
		return nil, fmt.Errorf("sign the request: %w", err)
	}
	answer, err := r.transport.RoundTrip(req)
	if err != nil {
		return nil, &noAnswer{stuck(ctx, err)}
	}
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	refused := readRefusal(answer)
	if refused.code == skewedCode {
		r.learnSkew(answer)
	}
	return nil, refused
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
	return s
}

// noAnswer is the failure of a request that got no answer, sent or not.
type noAnswer struct{ err error }

func (n *noAnswer) Error() string { return n.err.Error() }
func (n *noAnswer) Unwrap() error { return n.err }

// readRefusal reads an answer to its end, within reason, so that its
// connection can be used again.
func readRefusal(answer *http.Response) *refusal {
	r := &refusal{status: answer.StatusCode, id: answer.Header.Get("X-Amz-Request-Id")}
	// If the answer breaks off, what arrived must suffice; the status is known.
	b, _ := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
	var reason struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}
	if xml.Unmarshal(b, &reason) == nil { // a page of a proxy has no reason
		r.code, r.message = reason.Code, reason.Message
	}
	return r
}

// maxRefusal is how much of a refusal is read, in bytes.
const maxRefusal = 64 << 10
