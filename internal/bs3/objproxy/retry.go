package objproxy

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// RetryOptions are the settings of a Retry. The zero value waits 50 ms at first
// and 5 s at most, and logs nothing.
type RetryOptions struct {
	First time.Duration // wait before the second try; 0 = 50 ms
	Max   time.Duration // longest wait; 0 = 5 s
	// Random returns numbers in [0,1) for the jitter; nil = math/rand/v2. It
	// must be safe for concurrent use.
	Random func() float64
	Log    zerolog.Logger
}

const (
	defaultFirstWait = 50 * time.Millisecond
	defaultMaxWait   = 5 * time.Second
	// logEvery is how often a kind of request that keeps failing is reported.
	logEvery = time.Minute
)

// Retry is a Store that tries again as long as ctx allows (a Delete: for
// seconds), after any error but the definite answers ErrNotFound, ErrExists,
// ErrDamaged, ErrRange and errors.ErrUnsupported (conditions, see Probe). Errors
// other than ErrTransient are retried too, because somebody may free the disk or
// correct the credentials, but with the longest wait from the start.
//
// A conditional Put whose answer was lost may have been applied. Its next try
// then returns ErrExists, and only the caller can judge whose object it is.
// When ctx ends, the error wraps both that of ctx and the store's last one.
type Retry struct {
	inner Store
	opt   RetryOptions

	mu       sync.Mutex
	trouble  map[string]*trouble // by kind of request
	underWay list.List           // of time.Time: when each request was made that has not ended, the oldest first
}

// trouble is the state of one kind of request that keeps failing.
type trouble struct {
	waiting int       // requests that have failed and have not ended yet
	since   time.Time // when the first of them failed
	last    error
	logged  time.Time // last report of this kind, perhaps of an earlier trouble
	said    bool      // this trouble was reported, so its end will be too
}

// NewRetry returns a Retry around inner.
func NewRetry(inner Store, opt RetryOptions) *Retry {
	if opt.First == 0 {
		opt.First = defaultFirstWait
	}
	if opt.Max == 0 {
		opt.Max = defaultMaxWait
	}
	if opt.Random == nil {
		opt.Random = rand.Float64
	}
	return &Retry{inner: inner, opt: opt, trouble: make(map[string]*trouble)}
}

// Waiting reports whether requests wait for the store now, since when, and the
// store's last error.
func (r *Retry) Waiting() (since time.Time, lastErr error, waiting bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.trouble {
		if t.waiting > 0 && (!waiting || t.since.Before(since)) {
			since, lastErr, waiting = t.since, t.last, true
		}
	}
	return since, lastErr, waiting
}

// Oldest returns when the oldest of the requests was made that have not ended,
// tried again or not, and reports whether there is one.
func (r *Retry) Oldest() (since time.Time, underWay bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.underWay.Front(); e != nil {
		return e.Value.(time.Time), true
	}
	return time.Time{}, false
}

func (r *Retry) begin() *list.Element {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.underWay.PushBack(time.Now())
}

func (r *Retry) end(e *list.Element) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.underWay.Remove(e)
}

// Put implements Store.
func (r *Retry) Put(ctx context.Context, name string, body Body, cond Condition) (Version, error) {
	var v Version
	err := r.Do(ctx, "put", name, func() (err error) {
		v, err = r.inner.Put(ctx, name, body, cond)
		return err
	})
	return v, err
}

// Get implements Store.
func (r *Retry) Get(ctx context.Context, name string, p []byte, off int64) (int, Info, error) {
	var n int
	var info Info
	err := r.Do(ctx, "get", name, func() (err error) {
		n, info, err = r.inner.Get(ctx, name, p, off)
		return err
	})
	return n, info, err
}

// List implements Store.
func (r *Retry) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	var infos []Info
	err := r.Do(ctx, "list", prefix, func() (err error) {
		infos, err = r.inner.List(ctx, prefix, after, limit)
		return err
	})
	return infos, err
}

// deleteFor is for how long a Delete is tried again.
const deleteFor = 10 * time.Second

// Delete implements Store. Only the names that failed are tried again, and not for
// long: nothing but the space waits for a delete, so its caller comes back another
// time, and holds nobody up until then.
func (r *Retry) Delete(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, deleteFor)
	defer cancel()
	var last error
	err := r.Do(waiting, "delete", names[0], func() error {
		last = r.inner.Delete(ctx, names) // however long it takes
		if failed := FailedDeletes(last); failed != nil {
			names = make([]string, len(failed))
			for i, f := range failed {
				names[i] = f.Name
			}
		}
		return last
	})
	if err != nil && ctx.Err() == nil {
		return last // that time was up says nothing
	}
	return err
}

// definite reports whether err, which may be nil, is an answer that another
// request would get as well.
func definite(err error) bool {
	for _, answer := range []error{ErrNotFound, ErrExists, ErrDamaged, ErrRange, errors.ErrUnsupported} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return err == nil
}

// Do makes any other request to the store, retrying in the same way. kind and
// name are for messages; requests of one kind are reported together.
func (r *Retry) Do(ctx context.Context, kind, name string, try func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", kind, name, err)
	}
	defer r.end(r.begin())
	err := try()
	if definite(err) || ctx.Err() != nil {
		return err
	}
	r.failed(kind, name, err, true)
	wait := r.opt.First
	for {
		if !errors.Is(err, ErrTransient) {
			wait = r.opt.Max
		}
		// Half of the wait is fixed, half is jitter.
		jittered := wait/2 + time.Duration(r.opt.Random()*float64(wait/2))
		if Sleep(ctx, jittered) != nil {
			r.ended(kind, false)
			return fmt.Errorf("%s %s: %w; the store's last answer: %w", kind, name, ctx.Err(), err)
		}
		wait = min(2*wait, r.opt.Max)
		next := try()
		switch {
		case definite(next):
			r.ended(kind, true)
			return next
		case ctx.Err() != nil:
			// This try was cut short; the store's answer is that of the one before.
			r.ended(kind, false)
			return fmt.Errorf("%s %s: %w; the store's last answer: %w", kind, name, ctx.Err(), err)
		}
		err = next
		r.failed(kind, name, err, false)
	}
}

// failed notes a failed try, and reports it unless the same kind of request
// was reported less than logEvery ago.
func (r *Retry) failed(kind, name string, err error, first bool) {
	now := time.Now()
	r.mu.Lock()
	t := r.trouble[kind]
	if t == nil {
		t = &trouble{}
		r.trouble[kind] = t
	}
	if first {
		if t.waiting == 0 {
			t.since = now
		}
		t.waiting++
	}
	t.last = err
	waiting, since := t.waiting, t.since
	report := t.logged.IsZero() || now.Sub(t.logged) >= logEvery
	if report {
		t.logged, t.said = now, true
	}
	r.mu.Unlock()
	if report {
		r.opt.Log.Warn().Err(err).Str("request", kind).Str("name", name).Int("waiting", waiting).
			Time("since", since).Msg("the store does not answer as it should; trying again until it does")
	}
}

// ended notes that a request that had failed was answered or was given up.
func (r *Retry) ended(kind string, answered bool) {
	r.mu.Lock()
	t := r.trouble[kind]
	t.waiting--
	report := false
	since := t.since
	if t.waiting == 0 {
		report = t.said && answered
		t.said = false
	}
	r.mu.Unlock()
	if report {
		r.opt.Log.Info().Str("request", kind).Time("since", since).Msg("the store answers again")
	}
}
