package s3

import "time"

// SetRequestTime replaces the time limit of a request without payload.
func (s *Store) SetRequestTime(d time.Duration) { s.requestTime = d }

// SignsPayload says whether the signatures of Puts cover their payload.
func SignsPayload(s *Store) bool { return s.signPayload }
