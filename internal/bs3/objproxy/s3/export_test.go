package s3

import (
	"net/http"
	"time"
)

// SetRequestTime replaces the time limit of a request without payload.
func (s *Store) SetRequestTime(d time.Duration) { s.requestTime = d }

// SignsPayload reports whether the signatures of Puts cover their payload.
func SignsPayload(s *Store) bool { return s.signPayload }

// SetTransport replaces the transport of Gets and Puts.
func (s *Store) SetTransport(t http.RoundTripper) { s.objects.transport = t }
