package s3

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"time"

	"bs3/internal/bs3/objproxy"
)

// wants is what a store turns out to want of a Put, by what it refuses.
type wants struct {
	// checksum is the header of a checksum of the payload; empty = none. A bucket
	// that locks its objects requires one.
	checksum string
	// encrypt asks for server-side encryption, as some buckets' policies require.
	encrypt bool
	// bareETag leaves out the quotes in If-Match: Ceph's RGW (16) compares them too.
	bareETag bool
}

const (
	checksumCRC32 = "X-Amz-Checksum-Crc32"
	checksumMD5   = "Content-Md5"
)

// Put implements objproxy.Store.
func (s *Store) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	if version, isVersion := cond.Version(); isVersion && version == "" {
		return "", fmt.Errorf("%s: %w: no object has an empty version", s.describe("put", name), objproxy.ErrExists)
	}
	known := s.wants.Load()
	w := *known
	var denied error // the answer to a put without encryption; to ask for it is a guess
	for {
		version, err := s.putOnce(ctx, name, body, cond, w)
		if err == nil {
			if w != *known {
				s.wants.Store(&w)
			}
			return version, nil
		}
		more, ok := s.learn(ctx, name, cond, w, err)
		if ok {
			if more.encrypt != w.encrypt {
				denied = err
			}
			w = more
			continue
		}
		failed := s.putError(ctx, name, err, cond)
		status, _ := answer(err)
		switch {
		case denied == nil:
		case errors.Is(failed, objproxy.ErrExists), status == http.StatusConflict: // it is no longer denied
			s.wants.Store(&wants{checksum: w.checksum, encrypt: true, bareETag: known.bareETag})
		case !errors.Is(failed, objproxy.ErrTransient): // otherwise it may have been stored
			failed = s.putError(ctx, name, denied, cond)
		}
		return "", failed
	}
}

// guessEvery is how often at most a put that is denied is made again with
// encryption, as long as that does not help.
const guessEvery = time.Minute

// mayGuess reports whether it is time for a guess, which is the caller's then.
func (s *Store) mayGuess() bool {
	last, now := s.guessed.Load(), time.Now()
	return (last == nil || now.Sub(*last) >= guessEvery) && s.guessed.CompareAndSwap(last, &now)
}

// noteKey notes whether an answer is about an object that is encrypted with a key
// of KMS.
func (s *Store) noteKey(header http.Header) {
	if strings.HasPrefix(header.Get("X-Amz-Server-Side-Encryption"), "aws:kms") {
		s.keyed.Store(true)
	}
}

// learn returns what a Put that failed with err, although it respected w, may
// have lacked, and reports whether there is such a thing.
func (s *Store) learn(ctx context.Context, name string, cond objproxy.Condition, w wants, err error) (wants, bool) {
	refused, ok := errors.AsType[*refusal](err)
	if !ok {
		return w, false
	}
	version, isVersion := cond.Version()
	switch {
	case refused.status == http.StatusBadRequest && w.checksum == "" && refused.says("x-amz-checksum"):
		w.checksum = checksumCRC32
	case refused.status == http.StatusBadRequest && w.checksum == "" && refused.says("content-md5"):
		w.checksum = checksumMD5
	case refused.status == http.StatusForbidden && refused.code == "AccessDenied" && !w.encrypt && s.encryption == (encryption{}) &&
		!refused.says("kms") && !s.keyed.Load() && // the bucket's own encryption must not be evaded
		(s.wants.Load().encrypt || s.mayGuess()):
		w.encrypt = true
	case refused.status == http.StatusPreconditionFailed && isVersion && !w.bareETag && strings.HasPrefix(string(version), `"`):
		_, there, err := s.Get(ctx, name, nil, 0)
		if err != nil || there.Version != version {
			return w, false
		}
		w.bareETag = true // the condition holds, but the store does not see it
	default:
		return w, false
	}
	return w, true
}

// putOnce makes one request. It returns an error of requester.do.
func (s *Store) putOnce(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition, w wants) (objproxy.Version, error) {
	header := make(http.Header, 12)
	if version, isVersion := cond.Version(); isVersion {
		etag := string(version)
		if w.bareETag {
			etag = strings.Trim(etag, `"`)
		}
		header["If-Match"] = []string{etag}
	}
	if cond.Absent() {
		header["If-None-Match"] = []string{"*"}
	}
	if s.storageClass != "" {
		header["X-Amz-Storage-Class"] = []string{s.storageClass}
	}
	s.encryption.put(header, w.encrypt)
	switch w.checksum {
	case checksumCRC32:
		header[checksumCRC32] = []string{encodeChecksum(crc32.Update(crc32.ChecksumIEEE(body.Data), crc32.IEEETable, body.Tail))}
	case checksumMD5:
		h := md5.New()
		h.Write(body.Data)
		h.Write(body.Tail)
		header[checksumMD5] = []string{base64.StdEncoding.EncodeToString(h.Sum(nil))}
	}
	payload := unsignedPayload
	if s.signPayload {
		h := sha256.New()
		h.Write(body.Data)
		h.Write(body.Tail)
		payload = hex.EncodeToString(h.Sum(nil))
	}
	// Closing r ends all reading of the body, so nothing of an abandoned request
	// outlives this call.
	r := body.Open()
	defer r.Close()
	reqCtx, watched := s.watch(ctx, http.MethodPut, body.Size())
	defer watched.stop()
	answer, err := s.requests.do(reqCtx, watched, request{
		method: http.MethodPut, object: s.prefix + name, header: header,
		payload: payload, body: watchedReader{r, watched}, size: body.Size(),
	})
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	s.noteKey(answer.Header)
	_, _ = drain(answer.Body) // so that the connection can be used again
	version, err := versionOf(answer.Header)
	if err != nil {
		return "", &noAnswer{err}
	}
	return version, nil
}

// versionOf returns the version that an answer names. It is empty if the store
// says that the object has none: such a store has no conditions either.
func versionOf(header http.Header) (objproxy.Version, error) {
	switch etag := header.Get("Etag"); etag {
	case "":
		return "", errNoETag
	case `""`, `W/""`:
		return "", nil
	default:
		return objproxy.Version(etag), nil
	}
}
