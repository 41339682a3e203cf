package s3

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/objproxy"
)

// deletes is the request of DeleteObjects.
type deletes struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ Delete"`
	Object  []deletedKey
	Quiet   bool
}

type deletedKey struct{ Key string }

// deleted is the answer to DeleteObjects.
type deleted struct {
	XMLName xml.Name `xml:"DeleteResult"`
	Deleted []deletedKey
	Error   []struct{ Key, Code, Message string }
}

// singleDeletes is how many objects are deleted at a time in a store without
// DeleteObjects.
const singleDeletes = 8

// Delete implements objproxy.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	var failed []*objproxy.DeleteError
	for batch := range slices.Chunk(names, maxBatch) {
		failed = append(failed, s.deleteBatch(ctx, batch)...)
	}
	return objproxy.JoinDelete(failed)
}

func (s *Store) deleteBatch(ctx context.Context, names []string) (failed []*objproxy.DeleteError) {
	what := fmt.Sprintf("in bucket %s at %s", s.bucket, s.endpoint)
	fail := func(name string, err error) {
		failed = append(failed, &objproxy.DeleteError{Name: name, Err: err})
	}
	if s.singly.Load() {
		return s.deleteEach(ctx, what, names, nil)
	}
	out, err := s.deleteObjects(ctx, names)
	switch {
	case lacksDeleteObjects(err):
		return s.deleteEach(ctx, what, names, err)
	case err != nil:
		for _, name := range names {
			fail(name, requestError(ctx, what, err))
		}
		return failed
	}
	answers := make(map[string]error) // by key; nil means deleted
	for _, d := range out.Deleted {
		answers[d.Key] = nil
	}
	// Only a store that never says what it has deleted may pass over a name.
	var passedOver error
	if len(out.Deleted) > 0 {
		passedOver = fmt.Errorf("%s: %w: not in the answer", what, objproxy.ErrTransient)
	}
	for _, e := range out.Error {
		err := deleteError(what, e.Code, e.Message)
		answers[e.Key] = err
		if name, ours := strings.CutPrefix(e.Key, s.prefix); err != nil && (!ours || !slices.Contains(names, name)) {
			passedOver = err // of which name is not known
		}
	}
	for _, name := range names {
		err, answered := answers[s.prefix+name]
		if !answered {
			err = passedOver
		}
		if err != nil {
			fail(name, err)
		}
	}
	return failed
}

// deleteObjects makes one request for at most maxBatch names.
func (s *Store) deleteObjects(ctx context.Context, names []string) (*deleted, error) {
	// Not quiet: then most stores say of each name that it is deleted.
	in := deletes{Object: make([]deletedKey, len(names))}
	for i, name := range names {
		in.Object[i].Key = s.prefix + name
	}
	b, err := xml.Marshal(in)
	if err != nil {
		return nil, err
	}
	body := objproxy.Body{Data: append([]byte(xml.Header), b...)}
	sum := sha256.Sum256(body.Data)
	check := md5.Sum(body.Data)
	r := body.Open()
	defer r.Close()
	var out deleted
	err = s.askXML(ctx, &out, request{
		method: http.MethodPost, query: url.Values{"delete": {""}},
		// Older stores require this header where newer ones accept a CRC.
		header:  http.Header{"Content-Md5": {base64.StdEncoding.EncodeToString(check[:])}, "Content-Type": {"application/xml"}},
		payload: hex.EncodeToString(sum[:]), body: r, size: body.Size(),
	})
	return &out, err
}

// lacksDeleteObjects reports whether err may be what a store answers that has no
// DeleteObjects. Google's says 501 or 400.
func lacksDeleteObjects(err error) bool {
	switch status, _ := answer(err); status {
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		return true
	case http.StatusBadRequest:
		return !transient(err)
	default:
		return false
	}
}

// deleteEach deletes each object by a request of its own. refused is the answer to
// a request for all of them, if one was made.
func (s *Store) deleteEach(ctx context.Context, what string, names []string, refused error) (failed []*objproxy.DeleteError) {
	var mu sync.Mutex
	fail := func(name string, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, &objproxy.DeleteError{Name: name, Err: requestError(ctx, what, err)})
	}
	first := s.deleteOne(ctx, names[0])
	if first != nil {
		fail(names[0], first)
	}
	wholeStatus, wholeCode := answer(refused)
	if first == nil && wholeStatus != http.StatusBadRequest { // which may be about these names
		s.singly.Store(true)
	}
	if status, code := answer(first); first != nil && status != 0 {
		if wholeStatus == status && wholeCode == code {
			// The refusal was not about DeleteObjects.
			for _, name := range names[1:] {
				fail(name, first)
			}
			return failed
		}
	}
	var group errgroup.Group
	group.SetLimit(singleDeletes)
	for _, name := range names[1:] {
		group.Go(func() error {
			if err := s.deleteOne(ctx, name); err != nil {
				fail(name, err)
			}
			return nil
		})
	}
	_ = group.Wait() // failed has the errors
	return failed
}

// deleteOne deletes one object. It returns an error of requester.do.
func (s *Store) deleteOne(ctx context.Context, name string) error {
	err := s.askXML(ctx, nil, request{method: http.MethodDelete, object: s.prefix + name, payload: emptyPayload})
	if status, code := answer(err); status == http.StatusNotFound && code == "NoSuchKey" {
		return nil
	}
	return err
}
