package s3server

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Server is the http.Handler of a server.
type Server struct {
	pages    *pages
	get, put atomic.Int64 // latencies, ns
	versions atomic.Int64

	mu      sync.RWMutex
	buckets map[string]*bucket
}

// New returns a server with reserve bytes of memory touched beforehand; objects
// beyond that are slower.
func New(reserve int64) (*Server, error) {
	p, err := newPages(reserve)
	if err != nil {
		return nil, err
	}
	return &Server{pages: p, buckets: make(map[string]*bucket)}, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	if call, ok := strings.CutPrefix(path, "_/"); ok {
		s.control(w, r, call)
		return
	}
	name, object, _ := strings.Cut(path, "/")
	b := s.bucket(name)
	switch {
	case b == nil && r.Method == http.MethodPut && object == "":
		s.create(name)
	case b == nil:
		fail(w, http.StatusNotFound, "NoSuchBucket")
	case object == "":
		s.serveBucket(w, r, b)
	case r.Method == http.MethodGet:
		s.serveGet(w, r, b, object)
	case r.Method == http.MethodPut:
		s.servePut(w, r, b, object)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

func (s *Server) bucket(name string) *bucket {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.buckets[name]
}

func (s *Server) create(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[name] == nil {
		s.buckets[name] = &bucket{pages: s.pages, objects: make(map[string]*object)}
	}
}

// control answers what is not S3.
func (s *Server) control(w http.ResponseWriter, r *http.Request, call string) {
	name := r.FormValue("bucket")
	switch call {
	case "latency":
		for key, to := range map[string]*atomic.Int64{"get": &s.get, "put": &s.put} {
			d, err := time.ParseDuration(r.FormValue(key))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			to.Store(int64(d))
		}
	case "counts":
		var c Counts
		if b := s.bucket(name); b != nil {
			c = b.counts()
		}
		_ = json.NewEncoder(w).Encode(c) // a client that is gone needs no answer
	case "kept":
		var k Kept
		if b := s.bucket(name); b != nil {
			k = b.kept()
		}
		_ = json.NewEncoder(w).Encode(k)
	case "copy":
		to := r.FormValue("to")
		s.create(to)
		if from, to := s.bucket(name), s.bucket(to); from != nil && to != nil && from != to {
			from.copyTo(to)
		}
	case "drop":
		s.mu.Lock()
		b := s.buckets[name]
		delete(s.buckets, name)
		s.mu.Unlock()
		if b != nil {
			b.empty()
		}
	default:
		http.NotFound(w, r)
	}
}

// wait delays an answer by a latency.
func wait(r *http.Request, latency *atomic.Int64) {
	d := time.Duration(latency.Load())
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code></Error>", code)
}

// span reads a Range header of one range (RFC 9110, 14.2) of size bytes.
func span(header string, size int64) (from, to int64, ok bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	if !ok {
		return 0, 0, false
	}
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		return max(0, size-n), size, err == nil && n > 0 && size > 0
	}
	from, err := strconv.ParseInt(first, 10, 64)
	if err != nil || from >= size {
		return 0, 0, false
	}
	if last == "" {
		return from, size, true
	}
	to, err = strconv.ParseInt(last, 10, 64)
	return from, min(to+1, size), err == nil && to >= from
}

func (s *Server) serveGet(w http.ResponseWriter, r *http.Request, b *bucket, name string) {
	wait(r, &s.get)
	b.gets.Add(1)
	o := b.get(name)
	if o == nil {
		fail(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	defer b.release(o)
	from, to, status := int64(0), o.size, http.StatusOK
	if header := r.Header.Get("Range"); header != "" {
		var ok bool
		if from, to, ok = span(header, o.size); !ok {
			fail(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange")
			return
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", "bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(to-1, 10)+"/"+strconv.FormatInt(o.size, 10))
	}
	b.out.Add(to - from)
	h := w.Header()
	h.Set("ETag", o.etag)
	h.Set("Content-Type", "binary/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	h.Set("Last-Modified", o.modified.Format(http.TimeFormat))
	w.WriteHeader(status)
	_ = o.send(w, from, to) // the client sees it
}

// receive reads the body of a put.
func (s *Server) receive(r *http.Request) (*object, error) {
	o := &object{size: r.ContentLength, modified: time.Now().UTC()}
	for left := o.size; left > 0; left -= pageSize {
		var page []byte
		if o.size < pageSize {
			page = make([]byte, left)
		} else {
			page = s.pages.get()[:min(left, pageSize)]
		}
		o.pages = append(o.pages, page)
		if _, err := io.ReadFull(r.Body, page); err != nil {
			s.pages.put(o)
			return nil, err
		}
	}
	return o, nil
}

func (s *Server) servePut(w http.ResponseWriter, r *http.Request, b *bucket, name string) {
	if r.ContentLength < 0 || r.Header.Get("Content-Encoding") != "" {
		fail(w, http.StatusNotImplemented, "NotImplemented")
		return
	}
	o, err := s.receive(r)
	if err != nil {
		return // the client is gone
	}
	wait(r, &s.put)
	o.etag = fmt.Sprintf(`"%x"`, s.versions.Add(1))
	b.puts.Add(1)
	b.bytesIn.Add(o.size)
	if !b.put(name, o, r.Header.Get("If-None-Match") == "*", r.Header.Get("If-Match")) {
		s.pages.put(o)
		fail(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	w.Header().Set("ETag", o.etag)
}

func (s *Server) serveBucket(w http.ResponseWriter, r *http.Request, b *bucket) {
	switch {
	case r.Method == http.MethodHead:
		b.heads.Add(1)
	case r.Method == http.MethodPut:
		fail(w, http.StatusConflict, "BucketAlreadyOwnedByYou")
	case r.Method == http.MethodGet:
		wait(r, &s.get)
		b.lists.Add(1)
		serveList(w, r, b)
	case r.Method == http.MethodPost && r.URL.Query().Has("delete"):
		wait(r, &s.put)
		b.deletes.Add(1)
		serveDelete(w, r, b)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

func sendXML(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(v) // a client that is gone needs no answer
}

func serveList(w http.ResponseWriter, r *http.Request, b *bucket) {
	type content struct {
		Key          string
		Size         int64
		ETag         string
		LastModified string
	}
	var answer struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Name, Prefix          string
		KeyCount, MaxKeys     int
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []content
	}
	q := r.URL.Query()
	after, limit := q.Get("start-after"), 1000
	if token := q.Get("continuation-token"); token != "" {
		after = token // which is the last name of the page before
	}
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		limit = min(n, limit)
	}
	found, more := b.list(q.Get("prefix"), after, limit)
	for _, e := range found {
		answer.Contents = append(answer.Contents, content{e.name, e.size, e.etag, e.modified.Format(time.RFC3339)})
	}
	answer.Name, answer.Prefix = "bucket", q.Get("prefix")
	answer.KeyCount, answer.MaxKeys, answer.IsTruncated = len(found), limit, more
	if more && len(found) > 0 {
		answer.NextContinuationToken = found[len(found)-1].name
	}
	sendXML(w, answer)
}

func serveDelete(w http.ResponseWriter, r *http.Request, b *bucket) {
	type key struct{ Key string }
	var asked struct {
		XMLName xml.Name `xml:"Delete"`
		Object  []key
	}
	if err := xml.NewDecoder(r.Body).Decode(&asked); err != nil && !errors.Is(err, io.EOF) {
		fail(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	answer := struct {
		XMLName xml.Name `xml:"DeleteResult"`
		Deleted []key
	}{Deleted: asked.Object}
	names := make([]string, len(asked.Object))
	for i, k := range asked.Object {
		names[i] = k.Key
	}
	b.remove(names)
	sendXML(w, answer)
}
