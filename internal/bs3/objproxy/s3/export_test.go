package s3

import (
	"net/http"
	"time"
)

// SetTimes replaces how long a transfer may stand still and how long an answer
// is waited for at first.
func (s *Store) SetTimes(stall, leastWait time.Duration) { s.stallTime, s.leastWait = stall, leastWait }

// SignsPayload reports whether the signatures of Puts cover their payload.
func SignsPayload(s *Store) bool { return s.signPayload }

// SetTransport replaces the transport of Gets and Puts.
func (s *Store) SetTransport(t http.RoundTripper) { s.requests.transport = t }

// UnsentBytes is how much of a request its connection has not sent.
var UnsentBytes = unsentBytes

// Pace is a pace with the limits of a request without payload.
type Pace struct{ p pace }

// NewPace returns the pace of a store that has not answered yet.
func NewPace() *Pace { return &Pace{} }

// Bound returns how long an answer is waited for.
func (p *Pace) Bound() time.Duration { return p.p.bound(leastWait, mostWait) }

// Answered notes that an answer took that long.
func (p *Pace) Answered(d time.Duration) { p.p.answered(d) }

// Unanswered notes that there was none for that long.
func (p *Pace) Unanswered(d time.Duration) { p.p.unanswered(d) }
