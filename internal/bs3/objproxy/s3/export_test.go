package s3

import (
	"net/http"
	"time"
)

// SetRequestTime replaces the time limit of a request without payload.
func (s *Store) SetRequestTime(d time.Duration) { s.requestTime = d }

// Transport is what requests are sent with.
func Transport(o Options) *http.Transport { return httpClient(o).Transport.(*http.Transport) }

// SignsPayload says whether the signatures of Puts cover their payload.
func SignsPayload(s *Store) bool { return s.signPayload }
