package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"bs3/test/bench/s3server"
)

// serveCommand makes this program the S3 server.
const serveCommand = "serve-s3"

// serveStore runs the S3 server and prints its address.
func serveStore(args []string) error {
	reserve, err := strconv.ParseInt(strings.Join(args, ""), 10, 64)
	if err != nil {
		return fmt.Errorf("bytes to reserve: %w", err)
	}
	handler, err := s3server.New(reserve)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, handler)
}

// store is the running S3 server.
type store struct {
	*process
	endpoint string
}

// startStore starts the S3 server in a process of its own.
func startStore(ctx context.Context, reserve int64) (*store, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := start(ctx, self, serveCommand, strconv.FormatInt(reserve, 10))
	if err != nil {
		return nil, err
	}
	s := &store{process: p}
	err = p.wait(ctx, func() bool {
		line, err := bufio.NewReader(strings.NewReader(p.output())).ReadString('\n')
		s.endpoint = "http://" + strings.TrimSpace(line)
		return err == nil
	})
	return s, err
}

// stop kills it; it has nothing to lose.
func (s *store) stop() { s.kill() }

// call makes a request to the server that is not S3.
func (s *store) call(ctx context.Context, method, name string, values url.Values, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.endpoint+"/_/"+name+"?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("S3 server: %s: %s %s", name, answer.Status, body)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(body, result)
}

// latency sets how long the answers to GETs and PUTs wait.
func (s *store) latency(ctx context.Context, get, put time.Duration) error {
	return s.call(ctx, http.MethodPost, "latency", url.Values{"get": {get.String()}, "put": {put.String()}}, nil)
}

func (s *store) counts(ctx context.Context, bucket string) (c s3server.Counts, err error) {
	err = s.call(ctx, http.MethodGet, "counts", url.Values{"bucket": {bucket}}, &c)
	return c, err
}

// kept returns what a bucket has.
func (s *store) kept(ctx context.Context, bucket string) (k s3server.Kept, err error) {
	err = s.call(ctx, http.MethodGet, "kept", url.Values{"bucket": {bucket}}, &k)
	return k, err
}

// copyTo makes a bucket with what another has. It takes no time.
func (s *store) copyTo(ctx context.Context, bucket, to string) error {
	return s.call(ctx, http.MethodPost, "copy", url.Values{"bucket": {bucket}, "to": {to}}, nil)
}

func (s *store) drop(ctx context.Context, bucket string) error {
	return s.call(ctx, http.MethodPost, "drop", url.Values{"bucket": {bucket}}, nil)
}

// Prices of S3 Standard in us-east-1, in dollars a request; deleting is free.
const (
	pricePut = 0.005 / 1000 // LIST costs the same
	priceGet = 0.0004 / 1000
)

// price returns what requests would cost at AWS, in dollars.
func price(c s3server.Counts) float64 {
	return pricePut*float64(c.Put+c.List) + priceGet*float64(c.Get+c.Head)
}
