package main

import (
	"context"
	"math/rand/v2"
	"strconv"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
)

// measureStore measures what bs3's store costs the client against requests that are
// only built, signed and sent. Both run in this process.
func measureStore(ctx context.Context, b *bench) ([]row, error) {
	const object = 4 * mib
	onStore := func(ctx context.Context, f func(*s3.Store) (looped, error)) (figures, error) {
		if err := b.store.latency(ctx, 0, 0); err != nil {
			return nil, err
		}
		bucket := b.name("store")
		s, err := s3.New(ctx, b.s3Options(bucket))
		if err != nil {
			return nil, err
		}
		if err := s.EnsureBucket(ctx); err != nil {
			return nil, err
		}
		l, err := f(s)
		if err != nil {
			return nil, err
		}
		return figures{"cpu": l.cpu, "rate": l.rate}, b.store.drop(ctx, bucket)
	}
	tail := make([]byte, objectSize(mib)-object)
	put := func(ctx context.Context) (figures, error) {
		return onStore(ctx, func(s *s3.Store) (looped, error) {
			data := make([]byte, 160*mib)
			for i := range data {
				data[i] = byte(i)
			}
			return loop(ctx, 8, b.ramp, b.runtime, func(_ int, n int64) error {
				_, err := s.Put(ctx, strconv.FormatInt(n%256, 10), objproxy.Body{Data: data[n*object%int64(len(data)):][:object], Tail: tail}, objproxy.Condition{})
				return err
			})
		})
	}
	rawPut := func(ctx context.Context) (figures, error) {
		l, err := b.rawPut(ctx, 8, objectSize(mib), 0)
		return figures{"cpu": l.cpu, "rate": l.rate}, err
	}
	get := func(workers, size int) trial {
		return func(ctx context.Context) (figures, error) {
			return onStore(ctx, func(s *s3.Store) (looped, error) {
				if _, err := s.Put(ctx, "0", objproxy.Body{Data: make([]byte, object)}, objproxy.Condition{}); err != nil {
					return looped{}, err
				}
				buffers := make([][]byte, workers)
				for i := range buffers {
					buffers[i] = make([]byte, size)
				}
				return loop(ctx, workers, b.ramp, b.runtime, func(worker int, _ int64) error {
					_, _, err := s.Get(ctx, "0", buffers[worker], rand.Int64N(int64(object/size))*int64(size))
					return err
				})
			})
		}
	}
	rawGet := func(workers int, size int64) trial {
		return func(ctx context.Context) (figures, error) {
			l, err := b.rawGet(ctx, workers, size, 0)
			return figures{"cpu": l.cpu, "rate": l.rate}, err
		}
	}
	var rows []row
	for _, c := range []struct {
		name      string
		ours, raw trial
		unit      string
		scale     float64
	}{
		{"CPU of a PUT of 4 MiB through the store, against the signed PUT alone", put, rawPut, "s/GB", 1e9 / object},
		{"CPU of a GET of 4 KiB through the store, against the signed GET alone", get(32, 4*kib), rawGet(32, 4*kib), "µs", 1e6},
		{"CPU of a GET of 4 MiB through the store, against the signed GET alone", get(8, object), rawGet(8, object), "s/GB", 1e9 / object},
	} {
		p, err := b.compare(ctx, c.ours, c.raw, c.raw)
		if err != nil {
			return nil, err
		}
		r := p.row(c.name, "cpu", c.unit, c.scale, 0, true)
		r.Free = true
		rows = append(rows, p.with(r, "rate", "rate", "requests/s", 1))
	}
	return rows, nil
}
