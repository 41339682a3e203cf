// throwaway
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/s3"
	"bs3/test/bench/s3server"
)

func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func loop(name string, par int, n int64, bytes int64, f func() error) {
	var left atomic.Int64
	left.Store(n)
	c0, t0 := cpu(), time.Now()
	var wg sync.WaitGroup
	for range par {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					panic(err)
				}
			}
		})
	}
	wg.Wait()
	c, t := cpu()-c0, time.Since(t0)
	fmt.Printf("%-20s %8.0f/s  %7.1f us cpu/op", name, float64(n)/t.Seconds(), float64(c.Microseconds())/float64(n))
	if bytes > 0 {
		fmt.Printf("  %.3f s cpu/GB  %.2f GB/s", c.Seconds()/(float64(n*bytes)/1e9), float64(n*bytes)/1e9/t.Seconds())
	}
	fmt.Println()
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		h, err := s3server.New(1 << 30)
		if err != nil {
			panic(err)
		}
		l, err := net.Listen("tcp", os.Args[2])
		if err != nil {
			panic(err)
		}
		http.Serve(l, h)
		return
	}
	addr := "127.0.0.1:18099"
	cmd := exec.Command(os.Args[0], "serve", addr)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	defer cmd.Process.Kill()
	time.Sleep(2 * time.Second)
	ctx := context.Background()
	s, err := s3.New(ctx, s3.Options{Endpoint: "http://" + addr, Region: "us-east-1", AccessKey: "key", SecretKey: "secret", Workers: 160, Bucket: "b"})
	if err != nil {
		panic(err)
	}
	if err := s.EnsureBucket(ctx); err != nil {
		panic(err)
	}
	data, tail := make([]byte, 4<<20), make([]byte, 36<<10)
	scale := int64(1)
	if len(os.Args) > 1 {
		scale, _ = strconv.ParseInt(os.Args[1], 10, 64)
	}
	var k atomic.Int64
	for range 2 {
		loop("put 4M", 8, 256*scale, 4<<20, func() error {
			_, err := s.Put(ctx, fmt.Sprintf("%08x/00000000", k.Add(1)%32), objproxy.Body{Data: data, Tail: tail}, objproxy.Condition{})
			return err
		})
		loop("get 4K x32", 32, 20000*scale, 4096, func() error {
			p := make([]byte, 4096)
			_, _, err := s.Get(ctx, "00000001/00000000", p, k.Add(1)%1024*4096)
			return err
		})
		var pool = sync.Pool{New: func() any { return make([]byte, 4<<20) }}
		loop("get 4M x8", 8, 256*scale, 4<<20, func() error {
			p := pool.Get().([]byte)
			_, _, err := s.Get(ctx, "00000001/00000000", p, 0)
			pool.Put(p)
			return err
		})
		loop("put 4K x8", 8, 10000*scale, 4096, func() error {
			_, err := s.Put(ctx, "small", objproxy.Body{Data: data[:4096], Tail: tail[:200]}, objproxy.Condition{})
			return err
		})
	}
}
