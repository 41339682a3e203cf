package nbd

import (
	"io"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/device"
	"bs3/internal/null"
)

// BenchmarkRead is a read with 32 in flight: one that device.Fast serves, and one
// that becomes a task.
func BenchmarkRead(b *testing.B) {
	const depth = 32
	g := device.Geometry{Size: 64 << 20, BlockSize: 4096}
	for name, test := range map[string]struct {
		vol device.Volume
		n   int
	}{
		"fast 4 KiB": {null.New(g), 4096},
		"task 4 KiB": {slow{null.New(g)}, 4096},
		"fast 1 MiB": {null.New(g), 1 << 20},
		"task 1 MiB": {slow{null.New(g)}, 1 << 20},
	} {
		b.Run(name, func(b *testing.B) {
			c, _, client := pipelined(b, New(test.vol, Options{Log: zerolog.Nop()}))
			go func() { _ = c.transmit() }() // ends with the connection
			request := requestBytes(0, cmdRead, 1, 0, uint32(test.n))
			var first []byte
			for range depth {
				first = append(first, request...)
			}
			if _, err := client.Write(first); err != nil {
				b.Fatal(err)
			}
			reply := make([]byte, chunkSize+offsetSize+test.n)
			b.SetBytes(int64(test.n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.ReadFull(client, reply); err != nil {
					b.Fatal(err)
				}
				if _, err := client.Write(request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
