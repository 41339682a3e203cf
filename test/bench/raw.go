package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"golang.org/x/sys/unix"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy/s3"
)

// raw makes signed requests with the same transport as bs3's store, and nothing
// around them: the most that the network and the server allow.
type raw struct {
	transport http.RoundTripper
	signer    *v4.Signer
	url       string // of the bucket
}

// s3Options returns how bs3's daemons reach the store by default.
func (b *bench) s3Options(bucket string) s3.Options {
	return s3.Options{
		Bucket: bucket, Endpoint: b.store.endpoint, Region: "us-east-1", AccessKey: "key", SecretKey: "secret",
		Workers: 160, SignPayload: s3.SignPayloadNever,
	}
}

// onRaw calls f with raw requests to a new bucket.
func (b *bench) onRaw(ctx context.Context, f func(*raw) error) error {
	bucket := b.name("raw")
	transport := s3.Transport(b.s3Options(bucket))
	defer transport.CloseIdleConnections()
	r := &raw{
		transport: transport,
		signer:    v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }),
		url:       b.store.endpoint + "/" + bucket,
	}
	if _, err := r.do(ctx, http.MethodPut, "", "", nil, nil); err != nil {
		return err
	}
	if err := f(r); err != nil {
		return err
	}
	return b.store.drop(ctx, bucket)
}

// SHA-256 of nothing.
const emptyPayload = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// do makes one request and reads its answer into p, which it must fill.
func (r *raw) do(ctx context.Context, method, name, span string, body, p []byte) (http.Header, error) {
	var reader io.Reader
	payload := emptyPayload
	if body != nil {
		reader, payload = bytes.NewReader(body), "UNSIGNED-PAYLOAD"
	}
	req, err := http.NewRequestWithContext(ctx, method, r.url+name, reader)
	if err != nil {
		return nil, err
	}
	req.Header["X-Amz-Content-Sha256"] = []string{payload}
	if span != "" {
		req.Header["Range"] = []string{span}
	}
	credentials := aws.Credentials{AccessKeyID: "key", SecretAccessKey: "secret"}
	if err := r.signer.SignHTTP(ctx, credentials, req, payload, "s3", "us-east-1", time.Now()); err != nil {
		return nil, err
	}
	answer, err := r.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s", method, req.URL, answer.Status)
	}
	if _, err := io.ReadFull(answer.Body, p); err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, answer.Body) // to its end, for the connection's sake
	return answer.Header, err
}

func (r *raw) put(ctx context.Context, name string, body []byte) error {
	_, err := r.do(ctx, http.MethodPut, "/"+name, "", body, nil)
	return err
}

func (r *raw) get(ctx context.Context, name string, p []byte, off int64) error {
	span := "bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+int64(len(p))-1, 10)
	_, err := r.do(ctx, http.MethodGet, "/"+name, span, nil, p)
	return err
}

// looped is the result of a loop.
type looped struct {
	rate    float64 // a second
	cpu     float64 // seconds each, of this process
	latency latency
}

// loop has workers call f for the time d, after a ramp, and measures that. f is told
// the number of the worker and of the call.
func loop(ctx context.Context, workers int, ramp, d time.Duration, f func(worker int, n int64) error) (looped, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var n atomic.Int64
	var measuring, over atomic.Bool
	errs := make([]error, workers)
	times := make([][]float64, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for !over.Load() && errs[w] == nil {
				began := time.Now()
				if errs[w] = f(w, n.Add(1)-1); errs[w] != nil {
					cancel() // of the others
				}
				if measuring.Load() {
					times[w] = append(times[w], float64(time.Since(began)))
				}
			}
		})
	}
	var used time.Duration
	var took float64
	if pause(ctx, ramp) == nil {
		began, before := time.Now(), ownCPU()
		measuring.Store(true)
		_ = pause(ctx, d) // whoever cancels has set an error, or is our caller
		measuring.Store(false)
		used, took = ownCPU()-before, time.Since(began).Seconds()
	}
	over.Store(true)
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return looped{}, err
	}
	all := slices.Concat(times...)
	if len(all) == 0 {
		return looped{}, errors.New("a loop made no call in its time")
	}
	done := float64(len(all))
	return looped{rate: done / took, cpu: used.Seconds() / done, latency: distribution(all)}, nil
}

// distribution sorts all.
func distribution(all []float64) latency {
	slices.Sort(all)
	at := func(q float64) float64 { return all[int(q*float64(len(all)-1))] }
	sum := 0.0
	for _, v := range all {
		sum += v
	}
	return latency{P50: at(0.5), P99: at(0.99), P999: at(0.999), Mean: sum / float64(len(all))}
}

// objectSize returns the size in the store of a full chunk that was written in
// blocks of so many bytes.
func objectSize(write int64) int64 {
	const chunk = 4 * mib
	return int64(chunk/4096*layout.Stride(4096) + layout.TailSize(int(chunk/write)))
}

// rawPut sets the latency and measures PUTs of size bytes by so many workers.
func (b *bench) rawPut(ctx context.Context, workers int, size int64, latency time.Duration) (l looped, err error) {
	if err := b.store.latency(ctx, latency, latency); err != nil {
		return l, err
	}
	err = b.onRaw(ctx, func(r *raw) error {
		// As much memory as bs3 sends from, which the processor's cache does not hold.
		bodies := make([]byte, 160*mib/size*size)
		for i := range bodies {
			bodies[i] = byte(i) // otherwise one page of the kernel stands for all of it
		}
		l, err = loop(ctx, workers, b.ramp, b.runtime, func(_ int, n int64) error {
			from := n * size % int64(len(bodies))
			// Few names, because the server's memory is bounded.
			return r.put(ctx, fmt.Sprintf("%08x/00000000", n%256), bodies[from:from+size])
		})
		return err
	})
	return l, err
}

// rawGet sets the latency and measures ranged GETs of size bytes in objects of 4 MiB
// by so many workers.
func (b *bench) rawGet(ctx context.Context, workers int, size int64, latency time.Duration) (l looped, err error) {
	const object, area = 4 * mib, 128 * mib
	if err := b.store.latency(ctx, 0, 0); err != nil {
		return l, err
	}
	err = b.onRaw(ctx, func(r *raw) error {
		body := make([]byte, object)
		for i := range int64(area / object) {
			if err := r.put(ctx, strconv.FormatInt(i, 10), body); err != nil {
				return err
			}
		}
		if err := b.store.latency(ctx, latency, latency); err != nil {
			return err
		}
		buffers := make([][]byte, workers)
		for i := range buffers {
			buffers[i] = make([]byte, size)
		}
		l, err = loop(ctx, workers, b.ramp, b.runtime, func(worker int, _ int64) error {
			off := rand.Int64N(area/size) * size
			return r.get(ctx, strconv.FormatInt(off/object, 10), buffers[worker], off%object)
		})
		return err
	})
	return l, err
}

// rawSync measures a pwrite of 4 KiB followed by an fdatasync, in a file that was
// written before.
func (b *bench) rawSync(ctx context.Context) (l looped, err error) {
	const size = 64 * mib
	f, err := os.Create(filepath.Join(b.disk, "raw"))
	if err != nil {
		return l, err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		return l, err
	}
	if err := f.Sync(); err != nil {
		return l, err
	}
	block := make([]byte, 4096)
	return loop(ctx, 1, b.ramp, b.runtime, func(_ int, n int64) error {
		if _, err := f.WriteAt(block, n*4096%size); err != nil {
			return err
		}
		return unix.Fdatasync(int(f.Fd()))
	})
}
