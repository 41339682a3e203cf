package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/http"

	"bs3/internal/bs3/objproxy"
)

// Put implements objproxy.Store.
func (s *Store) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	header := make(http.Header, 12)
	version, isVersion := cond.Version()
	switch {
	case cond.Absent():
		header["If-None-Match"] = []string{"*"}
	case isVersion && version == "":
		return "", fmt.Errorf("%s: %w: no object has an empty version", s.describe("put", name), objproxy.ErrExists)
	case isVersion:
		header["If-Match"] = []string{string(version)}
	}
	if s.storageClass != "" {
		header["X-Amz-Storage-Class"] = []string{s.storageClass}
	}
	if s.checksums {
		header["X-Amz-Checksum-Crc32"] = []string{encodeChecksum(crc32.Update(crc32.ChecksumIEEE(body.Data), crc32.IEEETable, body.Tail))}
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
	reqCtx, watched := s.watch(ctx, body.Size())
	defer watched.stop()
	answer, err := s.objects.do(reqCtx, http.MethodPut, s.prefix+name, header, payload, watchedReader{r, watched}, body.Size())
	if err != nil {
		return "", s.putError(ctx, name, err, cond)
	}
	defer answer.Body.Close()
	_ = drain(answer.Body) // so that the connection can be used again
	etag := answer.Header.Get("Etag")
	if etag == "" {
		return "", fmt.Errorf("%s: %w: %w", s.describe("put", name), objproxy.ErrTransient, errNoETag)
	}
	return objproxy.Version(etag), nil
}
